"""The testbed's command: `python -m enn.testbed run | rank | plot | list`.

    python -m enn.testbed run --agent epinet --sweep classification_2d --out results
    python -m enn.testbed rank results
    python -m enn.testbed plot results --out ranking.png

A sweep is many tasks of `enn.sweeps`: one file a world, in which an agent trains once
and is judged at each tau. Started again, it goes on where it stopped.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from enn import _extras, sweeps
from enn.testbed.base import TestbedAgent, similar_ones
from enn.testbed.leaderboard import rank_rows
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
    """Trains an agent on one world and returns a row for every tau; for `run_sweep`.

    Args:
      task: `agent`, its `options` as JSON, `problem` (an id of the first tau), `taus`
        separated by spaces, `stream`.
    """
    if task["stream"] == "published":
        with published_stream():
            return _run_task(task)
    return _run_task(task)


def _run_task(task: dict[str, Any]) -> dict[str, list[Any]]:
    config = SETTINGS[task["problem"]]
    is_regression = config.prior_knowledge.num_classes == 1
    taus = [1] if is_regression else list(map(int, task["taus"].split()))
    # They are the same world, each with the same training data.
    judges = [problem_from_config(_at_tau(config, tau), exact=True) for tau in taus]
    agent = resolve_agent(task["agent"], json.loads(task["options"]))
    started = time.monotonic()
    sampler = agent(judges[0].train_data, config.prior_knowledge)
    jax.block_until_ready(getattr(sampler, "params", None))
    train_seconds = time.monotonic() - started
    rows = []
    for tau, judge in zip(taus, judges, strict=True):
        started = time.monotonic()
        quality = judge.evaluate_quality(sampler)
        extra = dict(quality.extra or {})
        extra.pop("stream")
        prior = dataclasses.asdict(config.prior_knowledge) | {"tau": tau}
        names = ("input_dim", "num_train", "temperature", "tau")
        rows.append(
            {name: prior[name] for name in names}
            | {"seed": config.seed, "kl_estimate": quality.kl_estimate}
            | extra
            | {
                "train_seconds": train_seconds,
                "evaluation_seconds": time.monotonic() - started,
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def _at_tau(config: ProblemConfig, tau: int) -> ProblemConfig:
    """Returns the same world tested at another tau, above 10 with fewer batches."""
    prior = dataclasses.replace(config.prior_knowledge, tau=tau)
    seeds = config.num_test_seeds if tau <= 10 else config.num_test_seeds * 10 // tau
    return dataclasses.replace(config, prior_knowledge=prior, num_test_seeds=seeds)


def _tasks(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    options = json.dumps(dict(map(_option, args.option)), sort_keys=True)
    for problem_id in _worlds(args.sweep, args.problem):
        yield {
            "agent": args.agent,
            "options": options,
            "problem": problem_id,
            "taus": " ".join(map(str, args.taus)),
            "stream": args.stream,
        }


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


def _run(args: argparse.Namespace) -> None:
    tasks = list(_tasks(args))
    resolve_agent(args.agent, json.loads(tasks[0]["options"]))
    executor = sweeps.local_executor(args.workers) if args.workers > 1 else None
    sweeps.run_sweep(run_task, tasks, args.out, executor=executor)
    print(_table(args.out, args.normalize_by))


def _rank(args: argparse.Namespace) -> None:
    print(_table(args.results, args.normalize_by))


def results_frame(directory: str) -> Any:
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


def _list(args: argparse.Namespace) -> None:
    print("agents:", *get_implemented_agents())
    print("sweeps:", *(f"{name} ({len(ids)})" for name, ids in SWEEPS.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m enn.testbed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True, metavar="run | rank | plot | list")
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
