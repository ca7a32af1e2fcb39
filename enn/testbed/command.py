"""The testbed's command: `python -m enn.testbed run | rank | plot | reproduce | list`.

    python -m enn.testbed run --agent epinet --sweep classification_2d --out results
    python -m enn.testbed rank results
    python -m enn.testbed plot results --out ranking.png
    python -m enn.testbed reproduce --out reproduction

A sweep is many tasks of `enn.sweeps`, with a file each. In a task an agent trains once
on each of some worlds of one shape, if it can on all in one program, and is judged at
each tau. Started again, a sweep goes on where it stopped.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import gc
import importlib
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from enn import _extras, sweeps
from enn.testbed.base import TestbedAgent, TestbedProblem, similar_ones
from enn.testbed.estimators import AtManyTaus
from enn.testbed.leaderboard import rank_rows
from enn.testbed.many import equal_ones, groups_of_one_shape, train_many
from enn.testbed.plots import plot_ranking
from enn.testbed.problems import (
    SETTINGS,
    SWEEPS,
    ProblemConfig,
    config_from_id,
    problem_from_config,
    published_stream,
)
from enn.testbed.registry import get_implemented_agents, make_agent
from enn.testbed.reproduction import (
    AGENTS,
    agent_options,
    label,
    write_comparison,
)

_MOST = 15  # Problems of a task: half of those of one shape in the plane.
_MOST_GROWTH = 3 * 2**28  # Bytes of compiled programs.


def resolve_agent(name: str, options: dict[str, Any]) -> TestbedAgent:
    """Returns an agent of the benchmark, or what `module:function` returns.

    Raises:
      ValueError: for an unknown name, option, module or function.
    """
    module, colon, function = name.partition(":")
    if not colon or name in get_implemented_agents():
        return make_agent(name, **options)
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"There is no agent {name!r}: {error}.") from error
    return make(**options)


def run_task(task: dict[str, Any]) -> dict[str, list[Any]]:
    """Trains an agent on worlds, and returns a row for each at every tau.

    For `run_sweep`. Seconds are of one world, where several train together their mean:
    `*_seconds` of a clock, and `*_cpu_seconds` of all processors.

    Args:
      task: `agent`, its `options` as JSON, `problems` (ids of the first tau) and `taus`
        separated by spaces, `stream`.
    """
    _MEMORY.bound()
    published = task["stream"] == "published"
    with published_stream() if published else contextlib.nullcontext():
        return _run_task(task)


def _run_task(task: dict[str, Any]) -> dict[str, list[Any]]:
    ids = task["problems"].split()
    configs = [SETTINGS[problem_id] for problem_id in ids]
    is_regression = configs[0].prior_knowledge.num_classes == 1
    taus = [1] if is_regression else list(map(int, task["taus"].split()))
    agent = _agent_of_process(task["agent"], task["options"])
    first = [_problem(config, task["stream"]) for config in configs]
    clock = _Clock()
    samplers = train_many(
        agent,
        [problem.train_data for problem in first],
        [config.prior_knowledge for config in configs],
    )
    jax.block_until_ready([getattr(sampler, "params", None) for sampler in samplers])
    train_seconds = clock.seconds("train", len(ids))
    rows = []
    for problem_id, config, sampler in zip(ids, configs, samplers, strict=True):
        sampler = AtManyTaus(sampler)
        for tau in taus:  # The same world, with the same training data.
            judge = _problem(_at_tau(config, tau), task["stream"])
            clock = _Clock()
            quality = judge.evaluate_quality(sampler)
            extra = dict(quality.extra or {})
            extra.pop("stream")
            prior = dataclasses.asdict(config.prior_knowledge) | {"tau": tau}
            names = ("input_dim", "num_train", "temperature", "tau")
            rows.append(
                {"problem": problem_id}
                | {name: prior[name] for name in names}
                | {"seed": config.seed, "kl_estimate": quality.kl_estimate}
                | extra
                | train_seconds
                | clock.seconds("evaluation", 1)
            )
    return {name: [row[name] for row in rows] for name in rows[0]}


class _Memory:
    """Forgets compiled programs once they take more than 768 MiB."""

    def __init__(self) -> None:
        self._bytes: int | None = None

    def bound(self) -> None:
        """Looks at the growth since the first call, or since programs were forgotten.

        Tasks of one shape share programs, but those of other shapes pile up.
        """
        if self._bytes is None:
            self._bytes = _bytes_of_process()
        if self._has_grown():
            # Compilation leaves holes in the memory, which glibc, not musl, would keep.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
            trim(0)
            if self._has_grown():
                _agent_of_process.cache_clear()
                jax.clear_caches()
                gc.collect()
                trim(0)
                self._bytes = _bytes_of_process()

    def _has_grown(self) -> bool:
        assert self._bytes is not None
        return _bytes_of_process() - self._bytes > _MOST_GROWTH


_MEMORY = _Memory()


def _bytes_of_process() -> int:
    """Returns the memory that this process holds, 0 where Linux does not tell."""
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Clock:
    """Seconds of a clock, and those of all processors that this process used."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def seconds(self, what: str, num: int) -> dict[str, float]:
        """Returns those since the start, divided by `num`."""
        return {
            f"{what}_seconds": (time.monotonic() - self._wall) / num,
            f"{what}_cpu_seconds": (time.process_time() - self._cpu) / num,
        }


@functools.lru_cache(maxsize=1)
def _agent_of_process(name: str, options: str) -> TestbedAgent:
    """Returns the agent, one for all tasks of it: they share compiled programs."""
    return resolve_agent(name, json.loads(options))


@functools.lru_cache(maxsize=1024)
def _problem(config: ProblemConfig, stream: str) -> TestbedProblem:
    """Returns the problem of a configuration, one for all agents of this process."""
    del stream
    return problem_from_config(config, exact=True)


def _at_tau(config: ProblemConfig, tau: int) -> ProblemConfig:
    """Returns the same world tested at another tau, above 10 with fewer batches."""
    prior = dataclasses.replace(config.prior_knowledge, tau=tau)
    seeds = config.num_test_seeds if tau <= 10 else config.num_test_seeds * 10 // tau
    return dataclasses.replace(config, prior_knowledge=prior, num_test_seeds=seeds)


def make_tasks(
    agent: str,
    options: dict[str, Any],
    worlds: Sequence[str],
    taus: Sequence[int],
    stream: str,
) -> list[dict[str, Any]]:
    """Returns the tasks of an agent on problems that differ in more than tau.

    Problems that can train together are one task, at most `_MOST` of them. Settings are
    dealt out, so that any first tasks hold problems of all of them.
    """
    priors = [SETTINGS[world].prior_knowledge for world in worlds]
    together = hasattr(resolve_agent(agent, options), "train_many")
    dealt = []
    for group in groups_of_one_shape(priors) if together else equal_ones(priors):
        num_tasks = -(-len(group) // _MOST) if together else len(group)
        dealt.append([group[i::num_tasks] for i in range(num_tasks)])
    columns = itertools.zip_longest(*dealt, fillvalue=())
    return [
        {
            "agent": agent,
            "options": json.dumps(options, sort_keys=True),
            "problems": " ".join(worlds[i] for i in group),
            "taus": " ".join(map(str, taus)),
            "stream": stream,
        }
        for group in itertools.chain.from_iterable(columns)
        if group
    ]


def _worlds(sweep: str, problem_id: str | None) -> list[str]:
    """Returns the ids that differ in more than tau."""
    if problem_id is not None:
        config_from_id(problem_id)
        return [problem_id]
    if sweep not in SWEEPS:
        raise ValueError(f"Unknown sweep {sweep!r}; {similar_ones(sweep, SWEEPS)}.")
    ids = SWEEPS[sweep]
    first = SETTINGS[ids[0]].prior_knowledge.tau
    return [i for i in ids if SETTINGS[i].prior_knowledge.tau == first]


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"An option is NAME=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _executor(workers: int) -> contextlib.AbstractContextManager[Any]:
    """Returns processes, or None for this one alone."""
    return sweeps.local_executor(workers) if workers > 1 else contextlib.nullcontext()


def _run(args: argparse.Namespace) -> None:
    options = dict(map(_option, args.option))
    worlds = _worlds(args.sweep, args.problem)
    tasks = make_tasks(args.agent, options, worlds, args.taus, args.stream)
    with _executor(args.workers) as executor:
        sweeps.run_sweep(run_task, tasks, args.out, executor=executor)
    print(_table(args.out, args.normalize_by))


def _rank(args: argparse.Namespace) -> None:
    print(_table(args.results, args.normalize_by))


def results_frame(directory: str | pathlib.Path) -> Any:
    """Returns the results in a folder as a pandas data frame, with `agent_name`.

    Raises:
      ValueError: for results of two random streams.
    """
    frame = _extras.require("pandas", "plots").DataFrame(sweeps.load(directory))
    if frame.stream.nunique() > 1:
        raise ValueError(f"{directory} mixes results of two random streams.")
    options = frame.options.where(frame.options != "{}", "")
    return frame.assign(agent_name=frame.agent + options)


def _table(directory: str, normalize_by: str) -> str:
    frame = results_frame(directory)
    titles = {
        tau: f"tau {tau}, KL divergence of {one} = 1\n{ranking.to_string(index=False)}"
        for tau, (one, ranking) in _rankings(frame, normalize_by).items()
    }
    return "\n\n".join(titles.values())


def _rankings(frame: Any, normalize_by: str) -> dict[int, tuple[str, Any]]:
    """Returns, by tau, the agent that scores 1 and the ranking."""
    rankings = {}
    for tau, rows in frame.groupby("tau"):
        names = list(rows.agent_name)
        one = normalize_by if normalize_by in names else names[0]
        table = rank_rows(rows, ["kl_estimate"], tau=tau, normalize_by=one)
        rankings[int(tau)] = one, table
    return rankings


def _plot(args: argparse.Namespace) -> None:
    rankings = _rankings(results_frame(args.results), args.normalize_by)
    figure = plot_ranking({tau: table for tau, (_, table) in rankings.items()})
    figure.savefig(args.out)


def _reproduce(args: argparse.Namespace) -> None:
    directory = pathlib.Path(args.out)
    results = directory / "problems"
    worlds = _worlds(args.sweep, None)
    all_tasks = {}
    for text in args.agents:
        agent, options = _agent_and_options(text)
        options |= agent_options(agent, args.sgmcmc_steps)
        tasks = make_tasks(agent, options, worlds, args.taus, "default")
        all_tasks[label(agent, options)] = tasks
    try:
        if not args.no_run:
            # As one sweep: no process waits for the last task of an agent.
            tasks = [task for tasks in all_tasks.values() for task in tasks]
            with _executor(args.workers) as executor:
                sweeps.run_sweep(run_task, tasks, results, executor=executor)
    finally:  # What failed or was interrupted has a table, too.
        if args.no_run or any(results.glob("*.csv")):
            rows = results_frame(results)
            options = map(json.loads, rows.options)
            rows["agent_name"] = list(map(label, rows.agent, options))
            rows = rows[rows.agent_name.isin({"mlp", *all_tasks})]
            print(write_comparison(rows, directory, len(worlds), args.name))


def _agent_and_options(text: str) -> tuple[str, dict[str, Any]]:
    """Returns what `NAME{JSON}`, or a name alone, stands for."""
    agent, brace, rest = text.partition("{")
    try:
        return agent, json.loads(brace + rest or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(
            f'An agent with options is NAME{{"OPTION": VALUE}}, got {text!r}.'
        ) from error


def _list(args: argparse.Namespace) -> None:
    print("agents:", *get_implemented_agents())
    print("sweeps:", *(f"{name} ({len(ids)})" for name, ids in SWEEPS.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m enn.testbed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = "run | rank | plot | reproduce | list"
    commands = parser.add_subparsers(required=True, metavar=names)
    run = commands.add_parser("run", help="runs an agent on problems")
    run.add_argument("--agent", required=True, help="a name, or module:function")
    run.add_argument("--option", nargs="*", default=[], help="NAME=VALUE of the agent")
    run.add_argument("--sweep", default="classification_2d")
    run.add_argument("--problem", help="one id, instead of a sweep")
    run.add_argument("--taus", type=int, nargs="+", default=[1, 10])
    run.add_argument("--stream", choices=["default", "published"], default="default")
    run.add_argument("--workers", type=int, default=1, help="processes")
    run.add_argument("--out", required=True, help="folder of the results")
    run.set_defaults(command=_run)
    rank = commands.add_parser("rank", help="ranks the agents in a folder")
    rank.add_argument("results")
    rank.set_defaults(command=_rank)
    plot = commands.add_parser("plot", help="draws the agents in a folder")
    plot.add_argument("results")
    plot.add_argument("--out", required=True, help="file of the picture")
    plot.set_defaults(command=_plot)
    reproduce = commands.add_parser(
        "reproduce", help="draws the benchmark's figure beside the published one"
    )
    reproduce.add_argument("--out", required=True, help="folder of table and figure")
    reproduce.add_argument(
        "--name", default="reproduction", help="of the files of table and figure"
    )
    reproduce.add_argument(
        "--agents",
        nargs="+",
        default=list(AGENTS),
        help='names, or with options NAME{"OPTION": VALUE}',
    )
    reproduce.add_argument("--taus", type=int, nargs="+", default=[1, 10, 100])
    reproduce.add_argument("--sgmcmc-steps", type=int, default=500_000)
    reproduce.add_argument("--sweep", default="classification_2d")
    reproduce.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        help="processes, by default one a core and at most 8",
    )
    reproduce.add_argument(
        "--no-run", action="store_true", help="draw what has been run so far"
    )
    reproduce.set_defaults(command=_reproduce)
    for subparser in (run, rank, plot):
        subparser.add_argument("--normalize-by", default="mlp")
    listing = commands.add_parser("list", help="lists agents and sweeps")
    listing.set_defaults(command=_list)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; what cannot be is told in one line, with exit status 2."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        args.command(args)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    sys.stdout.flush()
