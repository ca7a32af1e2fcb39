"""Timing for the benchmarks: medians of interleaved runs."""

import statistics
import time
from collections.abc import Callable, Mapping


def median_seconds(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Returns the median time of each function.

    The functions take turns, so that a change of the machine's load meets them all. A
    turn is two calls, of which the second is timed: the first wakes the cores that the
    function before it left idle, and compiles what is not compiled yet.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
