"""How long the testbed takes, each figure beside the plain way in the same run.

    python benchmarks/testbed.py [--problems 30] [--alone 3] [--repeats 3]

- `one problem`: an MLP loads, trains on and is judged on a problem, after others of its
  shape; beside it with a program of its own, which is compiled anew.
- `train mlp` and `train ensemble+`: on all problems together, after others of their
  shape; beside one after the other, of which the first few are timed.
- `judge bbb`: the exact estimate of a trained agent; beside one function and one test
  batch at a time in a compiled loop, of which a tenth of the functions is timed.

Seconds are medians, of the clock and of all processors; the latter change less where
other work runs on the machine. What is compared takes turns.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from enn import testbed
from enn.testbed import many

NUM_TRAIN = {1: 0, 3: 30, 10: 60, 30: 90, 100: 120, 300: 150, 1000: 180}
"""Number of data to the first problem in the plane that has so many."""

Way = tuple[Callable[[], Any], float]
"""What to time, and what to multiply its seconds by."""


def compare(title: str, ours: Way, plain: Way, repeats: int) -> None:
    """Prints the seconds of both ways."""
    seconds: tuple[list[Any], list[Any]] = [], []
    for _ in range(repeats):
        for (run, factor), times in zip((ours, plain), seconds, strict=True):
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            end = time.perf_counter(), time.process_time()
            times.append([factor * (b - a) for a, b in zip(start, end, strict=True)])
    (wall, cpu), (plain_wall, plain_cpu) = (
        [statistics.median(column) for column in zip(*times, strict=True)]
        for times in seconds
    )
    print(
        f"{title}: {wall:.2f} s, processors {cpu:.2f} s; "
        f"plainly {plain_wall:.2f} s, {plain_cpu:.2f} s: "
        f"{plain_wall / wall:.1f} times, {plain_cpu / cpu:.1f} times",
        flush=True,
    )


def _load(first: int, num: int) -> list[Any]:
    ids = range(first, first + num)
    return [testbed.problem_from_id(f"classification_2d/{i}") for i in ids]


def _parts(problems: list[Any]) -> tuple[list[Any], list[Any]]:
    data = [problem.train_data for problem in problems]
    return data, [problem.prior_knowledge for problem in problems]


def one_problem(first: int, repeats: int) -> None:
    """Times an agent on one problem, from its id to its quality."""
    agent = testbed.make_agent("mlp")
    testbed.run_many(agent, _load(first, 1))
    plain = testbed.make_agent("mlp")
    testbed.run(plain, *_load(first, 1))
    compare(
        "one problem",
        (lambda: testbed.run_many(agent, _load(first + 1, 1))[0].kl_estimate, 1),
        (lambda: testbed.run(plain, *_load(first + 1, 1)).kl_estimate, 1),
        repeats,
    )


def training(name: str, first: int, num: int, num_alone: int, repeats: int) -> None:
    """Times the training of an agent on many problems."""
    agent = testbed.make_agent(name)
    problems = _load(first, num)
    data, priors = _parts(problems)

    def together() -> Any:
        return [sampler.params for sampler in many.train_many(agent, data, priors)]

    def alone() -> Any:
        few = zip(data[:num_alone], priors[:num_alone], strict=True)
        return [agent(*problem).params for problem in few]

    together()
    title = f"train {name} on {num} problems of {len(data[0].x)} rows"
    compare(title, (together, 1), (alone, num / num_alone), repeats)


def judging(first: int, repeats: int) -> None:
    """Times the estimate of an agent whose functions all differ."""
    problem = _load(first, 1)[0]
    sampler = testbed.make_agent("bbb", num_batches=10)(*map(_only, _parts([problem])))
    _, enn_key = jax.random.split(jax.random.PRNGKey(0))
    enn_keys = jax.random.split(enn_key, 100)
    test_keys = jax.random.split(jax.random.PRNGKey(1), 1000)
    (x, y), _ = problem.data_sampler.test_batches(test_keys)
    estimator = testbed.CategoricalKLSampledXSampledY(1000, 1000, jax.random.PRNGKey(0))

    @jax.jit
    def one_by_one(x: Any, y: Any, keys: Any) -> Any:
        def log_likelihood(row: Any) -> Any:
            x, y = row
            logits = jax.lax.map(lambda key: sampler(x, key), keys)
            return jax.nn.log_softmax(logits)[:, jnp.arange(len(y)), y[:, 0]].sum(1)

        return jax.lax.map(log_likelihood, (x, y))

    def exact() -> Any:
        return estimator(sampler, problem.data_sampler).kl_estimate

    jax.block_until_ready((exact(), one_by_one(x, y, enn_keys)))
    compare(
        "judge bbb by 1000 functions",
        (exact, 1),
        (lambda: one_by_one(x, y, enn_keys), 10),
        repeats,
    )


def _only(values: list[Any]) -> Any:
    return values[0]


def main() -> None:
    """Prints all comparisons, and the most memory that was in use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--problems", type=int, default=30)
    parser.add_argument("--alone", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10, choices=sorted(NUM_TRAIN))
    parser.add_argument("--agents", nargs="*", default=["mlp", "ensemble+"])
    args = parser.parse_args()
    first = NUM_TRAIN[args.rows]
    one_problem(first, args.repeats)
    judging(first, args.repeats)
    for name in args.agents:
        training(name, first, args.problems, args.alone, args.repeats)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"most memory: {most:.2f} GiB")


if __name__ == "__main__":
    main()
