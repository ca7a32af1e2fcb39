"""The benchmark's figure: agents on all problems in the plane, beside published bars.

Reference: Osband et al., 2022, The Neural Testbed, https://arxiv.org/abs/2110.04629.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from enn import _extras
from enn.testbed.plots import plot_ranking

AGENTS = (
    "mlp",
    "epinet",
    "ensemble+",
    "ensemble",
    "dropout",
    "hypermodel",
    "bbb",
    "sgmcmc",
)
"""The agents with a published bar, and the epinet, which has none."""

PUBLISHED = {
    "mlp": 1.0,
    "ensemble": 0.991,
    "dropout": 0.977,
    "bbb": 0.730,
    "hypermodel": 0.636,
    "ensemble+": 0.581,
    "sgmcmc": 0.566,
}
"""Published KL divergence of joint predictions, that of `mlp` being 1.

Read from the figure, to 0.002. At tau 1 all bars are about 1.
"""

_BASELINE = "mlp"
_MOST_SHOWN = 2.0
_OF_CPU = ("train_cpu_seconds", "evaluation_cpu_seconds")
_SECONDS = ("train_seconds", "evaluation_seconds", *_OF_CPU)


def agent_options(agent: str, sgmcmc_steps: int) -> dict[str, Any]:
    """Returns options of an agent: the benchmark's, but for the length of sgmcmc.

    A shorter chain drops its first fifth and keeps 401 samples, as the full one does.

    Raises:
      ValueError: for less than 500 steps.
    """
    if agent != "sgmcmc" or sgmcmc_steps == 500_000:
        return {}
    if sgmcmc_steps < 500:
        raise ValueError(f"sgmcmc needs at least 500 steps, got {sgmcmc_steps}.")
    burn_in = sgmcmc_steps // 5
    return {
        "num_batches": sgmcmc_steps,
        "burn_in_time": burn_in,
        "model_saving_frequency": (sgmcmc_steps - burn_in) // 400,
    }


def label(agent: str, options: Mapping[str, Any]) -> str:
    """Returns the name of an agent in the comparison: with its options, if any.

    >>> from enn.testbed import reproduction
    >>> reproduction.label("laplace", {"structure": "diagonal"})
    'laplace structure=diagonal'
    """
    if agent == "sgmcmc":  # A shorter chain is sgmcmc all the same.
        return agent
    return " ".join([agent, *(f"{name}={value}" for name, value in options.items())])


def compare(rows: Any, num_problems: int) -> Any:
    """Returns the agents' joint predictions beside the published ones.

    An agent that has not finished is compared with `mlp` on the problems it has.

    Args:
      rows: a data frame of results with the columns that `run_task` of
        `enn.testbed.command` returns, and `agent_name`.
      num_problems: number of problems at each tau.

    Returns:
      A data frame with a row for each agent and tau: `num_problems` that it finished,
      of how many, `normalized_kl` and its `normalized_stderr` as of `rank_rows`,
      `paired_stderr`, that of the ratio over groups of seeds, `published`, seconds of
      all its problems, of a clock and of processors, and medians over them of the
      latter.

    Raises:
      ValueError: without results of `mlp`.
    """
    if _BASELINE not in set(rows.agent_name):
        raise ValueError(
            f"Agents are compared with {_BASELINE!r}, which has no results."
        )
    table = []
    for tau, at_tau in rows.groupby("tau"):
        baseline = at_tau[at_tau.agent_name == _BASELINE]
        for name, agent in at_tau.groupby("agent_name"):
            agent = agent[agent.problem.isin(baseline.problem)]
            shared = baseline[baseline.problem.isin(agent.problem)]
            divisor = shared.kl_estimate.mean()
            ratio = agent.kl_estimate.mean() / divisor
            groups, of_baseline = map(_means_of_groups, (agent, shared))
            with np.errstate(invalid="ignore"):  # Infinite ones have no error.
                residuals = groups - ratio * of_baseline
            table.append(
                {
                    "agent": name,
                    "tau": int(tau),
                    "num_problems": len(agent),
                    "of": num_problems,
                    "kl_estimate": agent.kl_estimate.mean(),
                    "normalized_kl": ratio,
                    "normalized_stderr": _stderr(groups) / divisor,
                    "paired_stderr": _stderr(residuals, 1) / of_baseline.mean(),
                    "published": PUBLISHED.get(name, np.nan) if tau > 1 else np.nan,
                    "min_pct_finite_kl": agent.pct_finite_kl.min(),
                }
                | {column: agent[column].sum() for column in _SECONDS}
                | {f"median_{column}": agent[column].median() for column in _OF_CPU}
            )
    frame = _extras.require("pandas", "plots").DataFrame(table)
    return frame.sort_values(["tau", "normalized_kl"], ignore_index=True)


def _means_of_groups(rows: Any) -> np.ndarray:
    """Returns the mean KL of each group of seeds, which holds every setting once."""
    return rows.groupby(rows.seed % 10).kl_estimate.mean().to_numpy()


def _stderr(means: np.ndarray, ddof: int = 0) -> float:
    """Returns the standard error of their mean; NaN if one is infinite, or alone."""
    if len(means) < 2 or not np.isfinite(means).all():
        return math.nan
    return means.std(ddof=ddof) / math.sqrt(len(means))


def to_markdown(table: Any) -> str:
    """Returns a comparison as a Markdown table, a row for each agent.

    Agents are in the order of the last tau. Columns are the worlds finished, at each
    tau the normalised KL ± its paired standard error, published values if there are
    any, and the median processor seconds of a world: of training, and of drawing 1000
    functions and judging them at the first tau.
    """
    by_tau = {tau: rows.set_index("agent") for tau, rows in table.groupby("tau")}
    first, last = min(by_tau), max(by_tau)
    has_published = bool((table.published > 0).any())
    header = ["agent", "worlds", *(f"τ = {tau}" for tau in by_tau)]
    header += ["published"] * has_published + ["training, s", "1000 functions, s"]
    lines = [header, ["---"] * len(header)]
    for agent, row in by_tau[last].iterrows():
        cells = [f"`{agent}`", str(int(row.num_problems))]
        for rows in by_tau.values():
            at_tau = rows.loc[agent]
            has_error = agent != _BASELINE and math.isfinite(at_tau.paired_stderr)
            error = f" ± {at_tau.paired_stderr:.3f}" if has_error else ""
            cells.append(f"{at_tau.normalized_kl:.3f}{error}")
        if has_published:
            cells.append(f"{row.published:.3f}" if row.published > 0 else "")
        judged = by_tau[first].loc[agent].median_evaluation_cpu_seconds
        cells += [f"{row.median_train_cpu_seconds:.2g}", f"{judged:.2g}"]
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_comparison(
    rows: Any, directory: pathlib.Path, num_problems: int, name: str = "reproduction"
) -> str:
    """Writes a comparison as a CSV file, Markdown and a picture; returns it as text.

    Args:
      rows: a data frame of the sweep's results, with `agent_name` as of `label`.
      directory: where to write.
      num_problems: number of problems at each tau.
      name: of the files: `name.csv`, `name.md` and `name.png`.
    """
    table = compare(rows, num_problems)
    table.round(6).to_csv(directory / f"{name}.csv", index=False)
    (directory / f"{name}.md").write_text(to_markdown(table), encoding="utf-8")
    rankings, published = {}, {}
    for tau, at_tau in table[np.isfinite(table.normalized_kl)].groupby("tau"):
        names = [
            row.agent
            if row.num_problems == row.of
            else f"{row.agent} ({row.num_problems})"
            for row in at_tau.itertuples()
        ]
        rankings[int(tau)] = at_tau.assign(agent_name=names)
        published[int(tau)] = {
            name: kl for name, kl in zip(names, at_tau.published, strict=True) if kl > 0
        }
    figure = plot_ranking(rankings, published)
    for axes in figure.axes:  # Much worse agents run out of the picture.
        axes.set_xlim(0, min(axes.get_xlim()[1], _MOST_SHOWN))
    figure.savefig(directory / f"{name}.png", dpi=100)
    shown = table[[*table.columns[:3], *table.columns[4:9], *_SECONDS]].round(3)
    return shown.to_string(index=False)
