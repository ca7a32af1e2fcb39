"""Results of agents: recording them, checking them, and ranking the agents.

Reference: Osband et al., 2022, The Neural Testbed, https://arxiv.org/abs/2110.04629,
section 4.1: an agent's KL divergence, averaged over problems, beside a baseline's.
"""

import dataclasses
import os
import pathlib
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from enn import _extras
from enn.loggers import Logger, plain
from enn.testbed.base import (
    Data,
    ENNQuality,
    EpistemicSampler,
    PriorKnowledge,
    TestbedProblem,
)
from enn.testbed.problems import CLASSIFICATION_2D, SETTINGS, problem_from_id

_MISSING = 1e6
_ROUNDING = -1e-4
_UNIFORM = "baseline:uniform_class_probs"


class LoggingWrapper(TestbedProblem):
    """A problem that writes down how good an agent was, and how long it took.

    Attributes:
      problem: the problem itself.
    """

    def __init__(self, problem: TestbedProblem, logger: Logger):
        """Starts the clock.

        Args:
          problem: the problem.
          logger: takes one row for each evaluation: `kl_estimate`, `total_seconds`,
            `train_seconds` (since the training data were read), `evaluation_seconds`
            and the figures of the estimate.
        """
        self.problem, self._logger = problem, logger
        self._started = self._read = time.monotonic()

    @property
    def train_data(self) -> Data:
        """The data to train on; reading them starts the clock of training."""
        data = self.problem.train_data
        self._read = time.monotonic()
        return data

    @property
    def prior_knowledge(self) -> PriorKnowledge:
        """What the agent may know."""
        return self.problem.prior_knowledge

    def evaluate_quality(self, enn_sampler: EpistemicSampler) -> ENNQuality:
        """Returns how good the sampler is, and writes it down."""
        # What still trains on the device is not part of the evaluation.
        jax.block_until_ready(getattr(enn_sampler, "params", None))
        trained = time.monotonic()
        quality = self.problem.evaluate_quality(enn_sampler)
        now = time.monotonic()
        row = {
            "kl_estimate": float(quality.kl_estimate),
            "total_seconds": now - self._started,
            "train_seconds": trained - self._read,
            "evaluation_seconds": now - trained,
        }
        self._logger.write(plain(row | (quality.extra or {})))
        return quality


class _CsvFile:
    """A logger whose file, made anew at each row, holds all rows so far."""

    def __init__(self, path: pathlib.Path):
        self._path, self._rows = path, []

    def write(self, data: Any) -> None:
        self._rows.append(dict(data))
        frame = _pandas().DataFrame(self._rows)
        part = self._path.with_suffix(".part")
        frame.to_csv(part, index=False)
        os.replace(part, self._path)


def problem_from_id_csv(
    problem_id: str, results_dir: str | os.PathLike[str], overwrite: bool = False
) -> TestbedProblem:
    """Returns a problem that writes its results to a file of its own.

    >>> import jax.numpy as jnp
    >>> from enn import testbed
    >>> problem = testbed.problem_from_id_csv("classification_2d/0", "results")
    >>> quality = problem.evaluate_quality(lambda x, key: jnp.zeros([len(x), 2]))
    >>> entry = testbed.Entry("uniform", "results")
    >>> board = testbed.load_entries_csv([entry], ["classification_2d/0"])
    >>> board.names, board.agents[0].validated
    (['uniform'], True)

    Args:
      problem_id: the problem.
      results_dir: a folder, made where there is none. `load_entries_csv` reads it.
      overwrite: whether the file may exist.

    Raises:
      ValueError: if the file exists and `overwrite` is False.
    """
    problem = problem_from_id(problem_id)
    path = pathlib.Path(results_dir) / _file_name(problem_id)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: pass overwrite=True to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return LoggingWrapper(problem, _CsvFile(path))


_PREFIX, _SUFFIX = "problem_id_-_", ".csv"


def _file_name(problem_id: str) -> str:
    return f"{_PREFIX}{problem_id.replace('/', '-')}{_SUFFIX}"


def _problem_id(path: pathlib.Path) -> str:
    name = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return "/".join(name.rsplit("-", 1))


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where an agent's results are.

    Attributes:
      name: of the agent, with its settings after a colon.
      results_dir: the folder that `problem_from_id_csv` wrote.
    """

    name: str
    results_dir: str


@dataclasses.dataclass
class AgentData:
    """An agent's results on a whole sweep.

    Attributes:
      df: one row a problem, with the problem's settings; `kl_estimate` as it counts,
        `raw_kl_estimate` as it was measured.
      name: of the agent.
      score: mean KL divergence over all problems.
      pct_health: share of problems with a valid result.
      validated: whether all are valid.
    """

    df: Any
    name: str
    score: float
    pct_health: float
    validated: bool


@dataclasses.dataclass
class LeaderboardData:
    """Results of several agents.

    Attributes:
      agents: one each.
      sweep_vars: columns by which problems differ.
    """

    agents: list[AgentData]
    sweep_vars: list[str]

    @property
    def names(self) -> list[str]:
        """Names of the agents."""
        return [agent.name for agent in self.agents]

    @property
    def df(self) -> Any:
        """All rows of all agents, a pandas data frame."""
        return _pandas().concat([agent.df for agent in self.agents], ignore_index=True)


def _pandas() -> Any:
    return _extras.require("pandas", "plots")


def _metadata() -> Any:
    rows = []
    for problem_id, config in SETTINGS.items():
        fields = config.meta_data.items()
        kept = {k: v for k, v in fields if isinstance(v, int | float | str | None)}
        rows.append({"problem_id": problem_id, **kept})
    return _pandas().DataFrame(rows).drop(columns=["extra", "logit_ctor"])


def join_metadata(df: Any) -> Any:
    """Returns the rows of known problems with the problems' settings.

    Columns of `df` that clash get the suffix `_agent`; `data_ratio` is N/D.

    >>> import pandas as pd
    >>> from enn import testbed
    >>> df = pd.DataFrame({"problem_id": ["classification_2d/75"], "kl_estimate": [1]})
    >>> row = testbed.join_metadata(df).iloc[0]
    >>> int(row.num_train), float(row.temperature), float(row.data_ratio)
    (10, 0.1, 5.0)
    """
    joined = df.merge(_metadata(), on="problem_id", suffixes=("_agent", ""))
    joined["raw_kl_estimate"] = joined.kl_estimate
    joined["data_ratio"] = joined.num_train / joined.input_dim
    return joined


def clean_results(
    df: Any, name: str, leaderboard_sweep: Sequence[str] = CLASSIFICATION_2D
) -> AgentData:
    """Returns results as they count: one row for each problem of the sweep.

    Rows of other problems and repeated rows are dropped, missing ones count as a KL
    divergence of 1e6, and so do values that are not finite. Negative values count as
    0, and as unhealthy below −1e-4.

    >>> import pandas as pd
    >>> from enn import testbed
    >>> ids = ["classification_2d/0", "classification_2d/1"]
    >>> rows = pd.DataFrame({"problem_id": ids[:1], "kl_estimate": [0.25]})
    >>> result = testbed.clean_results(rows, "mine", ids)  # One result is missing.
    >>> result.score, result.pct_health, result.validated
    (500000.125, 0.5, False)

    Args:
      df: data frame with columns `problem_id`, `kl_estimate` and any others.
      name: of the agent.
      leaderboard_sweep: ids of the sweep.
    """
    pd = _pandas()
    df = join_metadata(df)
    wanted = df.problem_id.isin(leaderboard_sweep)
    kept = df[wanted].drop_duplicates("problem_id")
    missing = [i for i in leaderboard_sweep if i not in set(kept.problem_id)]
    num_wrong = int((~wanted).sum()) + len(missing)
    if missing:
        rows = join_metadata(
            pd.DataFrame({"problem_id": missing, "kl_estimate": _MISSING})
        )
        constant = {
            column: kept[column].iloc[0]
            for column in kept.columns.difference(rows.columns)
            if kept[column].nunique(dropna=False) == 1
        }
        kept = pd.concat([kept, rows.assign(**constant)], ignore_index=True)
    kl = kept.kl_estimate.to_numpy(float)
    num_wrong += int((~np.isfinite(kl)).sum() + (kl < _ROUNDING)[np.isfinite(kl)].sum())
    # Before negative ones become 0, or minus infinity would be a perfect score.
    kl = np.maximum(np.where(np.isfinite(kl), kl, _MISSING), 0)
    kept = kept.assign(kl_estimate=kl, agent_name=name)
    kept["entry_name"] = name.partition(":")[0]
    kept["task"] = kept.problem_id.str.partition("/")[0]
    health = 1 - num_wrong / max(len(kept), 1)
    return AgentData(kept, name, float(kl.mean()), health, num_wrong == 0)


def load_entries_csv(
    entries: Sequence[Entry],
    leaderboard_sweep: Sequence[str] = CLASSIFICATION_2D,
    verbose: bool = True,
) -> LeaderboardData:
    """Returns the results that agents left in their folders.

    Args:
      entries: the agents.
      leaderboard_sweep: ids of the sweep.
      verbose: whether to warn of results that are not healthy.

    Raises:
      FileNotFoundError: for a folder without results.
    """
    pd = _pandas()
    agents = []
    for entry in entries:
        paths = sorted(pathlib.Path(entry.results_dir).glob(f"{_PREFIX}*{_SUFFIX}"))
        if not paths:
            raise FileNotFoundError(f"{entry.results_dir} holds no results.")
        frames = [
            pd.read_csv(path).assign(problem_id=_problem_id(path)) for path in paths
        ]
        frame = pd.concat(frames, ignore_index=True)
        if frame.get("stream", pd.Series(dtype=str)).nunique() > 1:
            raise ValueError(
                f"{entry.results_dir} mixes results of two random streams."
            )
        agent = clean_results(frame, entry.name, leaderboard_sweep)
        if verbose and not agent.validated:
            warnings.warn(
                f"{entry.name}: {agent.pct_health:.1%} of the results are valid.",
                stacklevel=2,
            )
        agents.append(agent)
    return combine_leaderboards([LeaderboardData(agents, ["problem_id"])])


def combine_leaderboards(boards: Sequence[LeaderboardData]) -> LeaderboardData:
    """Returns the agents of all boards in one.

    >>> from enn import testbed
    >>> agent = testbed.AgentData(None, "mlp", 0.1, 1.0, True)
    >>> board = testbed.LeaderboardData([agent], ["tau"])
    >>> testbed.combine_leaderboards([board, board])
    Traceback (most recent call last):
        ...
    ValueError: Agents must have different names; repeated: ['mlp'].

    Raises:
      ValueError: for two agents of one name.
    """
    agents = [agent for board in boards for agent in board.agents]
    names = [agent.name for agent in agents]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"Agents must have different names; repeated: {repeated}.")
    sweep_vars = dict.fromkeys(v for board in boards for v in board.sweep_vars)
    return LeaderboardData(agents, list(sweep_vars))


def display_ranking_df(
    data: LeaderboardData,
    display_cols: Sequence[str] = (),
    num_seed_per_class: int = 10,
    tau: int = 1,
    normalize_by: str = _UNIFORM,
) -> Any:
    """Returns the ranking of agents at one `tau`, best first, a pandas data frame.

    `normalized_kl` is the mean KL divergence over problems, divided by that of the
    agent `normalize_by`. Problems are grouped by seed, so that each group holds one
    problem of each setting: `normalized_stderr` is the standard error of the groups'
    means, the divisor taken as constant.

    Osband et al., 2022, https://arxiv.org/abs/2110.04629, section 4.1.

    >>> import pandas as pd
    >>> from enn import testbed
    >>> ids = testbed.CLASSIFICATION_2D
    >>> def agent(name, kl):
    ...     rows = pd.DataFrame({"problem_id": ids, "kl_estimate": kl})
    ...     return testbed.clean_results(rows, name)
    >>> agents = [agent("mine", 0.1), agent("mlp", 0.4)]
    >>> board = testbed.LeaderboardData(agents, ["tau"])
    >>> ranking = testbed.display_ranking_df(board, normalize_by="mlp")
    >>> ranking[["agent_name", "normalized_kl"]].values.tolist()
    [['mine', 0.25], ['mlp', 1.0]]

    Args:
      data: results.
      display_cols: further columns to show, each as its mean over problems.
      num_seed_per_class: seeds of each setting: 10 in `CLASSIFICATION_2D`, and 5 in
        `CLASSIFICATION`.
      tau: inputs predicted jointly.
      normalize_by: an agent. The published figure uses `"mlp"`, the published code
        uniform predictions. Without it the divisor is 1, with a warning.
    """
    return rank_rows(
        data.df, display_cols, num_seed_per_class, tau=tau, normalize_by=normalize_by
    )


def rank_rows(
    rows: Any,
    display_cols: Sequence[str] = (),
    num_seed_per_class: int = 10,
    tau: int = 1,
    normalize_by: str = _UNIFORM,
) -> Any:
    """Returns the ranking of `display_ranking_df` of a data frame of results.

    Its columns are `agent_name`, `tau`, `seed`, `kl_estimate` and any others.
    """
    rows = rows[rows.tau == tau]
    means = rows.groupby("agent_name").kl_estimate.mean()
    if normalize_by in means:
        divisor = means[normalize_by]
    else:
        divisor = 1.0
        warnings.warn(f"No agent {normalize_by!r} to divide by.", stacklevel=2)
    columns = {
        "mean_test_acc": "test_acc",
        "mean_train_seconds": "train_seconds",
        "mean_evaluation_seconds": "evaluation_seconds",
        **{column: column for column in display_cols},
    }
    ranking = []
    for name, agent in rows.groupby("agent_name"):
        groups = agent.groupby(agent.seed % num_seed_per_class).kl_estimate.mean()
        row = {
            "agent_name": name,
            "normalized_kl": means[name] / divisor,
            "normalized_stderr": groups.std(ddof=0) / np.sqrt(len(groups)) / divisor,
        }
        for title, column in columns.items():
            row[title] = agent[column].mean() if column in agent else 0.0
        if means[name] < _MISSING:
            ranking.append(row)
    frame = _pandas().DataFrame(ranking)
    return frame.sort_values("normalized_kl", ignore_index=True)
