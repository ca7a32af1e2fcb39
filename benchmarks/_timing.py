"""Timing for the benchmarks: medians of interleaved runs."""

import statistics
import time
from collections.abc import Callable, Mapping


def median_seconds(
    runs: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Returns the median time of each function, after one warm-up call each.

    The functions take turns, so that a change of the machine's load meets them all.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
