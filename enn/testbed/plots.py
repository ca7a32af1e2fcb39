"""Pictures of an agent's predictions beside the truth, and of the benchmark's results.

All return Matplotlib figures.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _extras
from enn.supervised.plots import draw_probabilities, make_figure
from enn.testbed.base import Array, EpistemicSampler, TestbedProblem
from enn.testbed.estimators import sample_logits
from enn.testbed.gaussian_processes import GPRegression, GPRegressionEnvLikelihood
from enn.testbed.generative import ClassificationEnvLikelihood, GenerativeDataSampler

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_TRUE_COLOR, _ENN_COLOR = "tab:green", "black"
_CLASS_COLORS = ("tab:red", "tab:blue")
_MISSING = 1e6  # The loss of a problem without a finite result.


def sanity_plots(
    problem: TestbedProblem, enn_sampler: EpistemicSampler
) -> dict[str, "Figure"]:
    """Draws what a sampler predicts beside the truth.

    Args:
      problem: the problem; wrappers with an attribute `problem` are taken off.
      enn_sampler: the sampler of a trained agent.

    Returns:
      Figures by name: those of `generate_2d_plots` for two classes in the plane, else
      that of `sanity_1d`, named `"enn"`.
    """
    sampler = _data_sampler(problem)
    is_known = isinstance(sampler, ClassificationEnvLikelihood)
    if is_known and sampler.test_x.shape[1] == sampler.probabilities.shape[1] == 2:
        return generate_2d_plots(sampler, enn_sampler)
    return {"enn": sanity_1d(problem, enn_sampler)}


def sanity_1d(problem: TestbedProblem, enn_sampler: EpistemicSampler) -> "Figure":
    """Draws predictions and truth over the first coordinate of the inputs.

    In classification, the probability of class 1 with its 5th to 95th percentiles at
    1000 test inputs; in regression, the mean ± one standard deviation. Of an agent,
    100 functions are drawn.

    Args:
      problem: the problem; wrappers with an attribute `problem` are taken off.
      enn_sampler: the sampler of a trained agent.
    """
    sampler = _data_sampler(problem)
    figure, ((axes,),) = make_figure()
    train = sampler.train_data
    if isinstance(sampler, GPRegression | GPRegressionEnvLikelihood):
        x = sampler.x_test
        if isinstance(sampler, GPRegression):
            truth, std = sampler.test_mean[:, 0], jnp.sqrt(jnp.diag(sampler.test_cov))
        else:
            truth, std = sampler.test_function[:, 0], jnp.zeros(len(x))
        _draw_band(axes, x, truth, truth - std, truth + std, "truth", _TRUE_COLOR)
        samples = _sample(enn_sampler, x, 100)[..., 0]
        mean, std = samples.mean(0), samples.std(0)
        _draw_band(axes, x, mean, mean - std, mean + std, "enn", _ENN_COLOR)
        axes.plot(train.x[:, 0], train.y[:, 0], "o", color="tab:red", label="data")
        axes.set_ylabel("y")
    else:
        keys = jax.random.split(jax.random.PRNGKey(0), 1000)
        x = sampler.test_batches(keys)[0].x[:, 0]
        true_x, truth = sampler.test_x, sampler.probabilities[:, 1]
        if isinstance(sampler, ClassificationEnvLikelihood):
            # Of a dyadic problem, `test_x` holds two distinct inputs alone.
            true_x, truth = x, jax.nn.softmax(sampler.logit_fn(x))[:, 1]
        _draw_band(axes, true_x, truth, truth, truth, "truth", _TRUE_COLOR)
        samples = _class_1(enn_sampler, x, 100)
        low, high = np.percentile(samples, [5, 95], axis=0)
        _draw_band(axes, x, samples.mean(0), low, high, "enn", _ENN_COLOR)
        for label, color in enumerate(_CLASS_COLORS):
            rows = train.y[:, 0] == label
            axes.plot(
                *(train.x[rows, 0], train.y[rows, 0]),
                "o",
                color=color,
                label=f"data of class {label}",
            )
        axes.set_ylabel("probability of class 1")
    axes.set_xlabel(f"x[0] of {train.x.shape[1]}-dimensional input")
    axes.legend(frameon=False)
    return figure


def generate_2d_plots(
    sampler: ClassificationEnvLikelihood,
    enn_sampler: EpistemicSampler,
    num_samples: int = 20,
) -> dict[str, "Figure"]:
    """Draws the probability of class 1 over the plane, from blue, 0, to red, 1.

    Args:
      sampler: data of a problem with two inputs and two classes, drawn on top.
      enn_sampler: the sampler of a trained agent.
      num_samples: number of functions drawn from it.

    Returns:
      Figures by name: `enn`, the truth beside the mean; `more_enn`, also the 5th and
      95th percentiles; `err_enn`, the truth minus the mean; `std_enn`, the standard
      deviation; `sample_enn`, each function.
    """
    side = np.linspace(-3, 3, 50)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    x = jnp.asarray(grid.reshape(-1, 2), jnp.float32)
    samples = _class_1(enn_sampler, x, num_samples).reshape(-1, 50, 50)
    truth = np.asarray(jax.nn.softmax(sampler.logit_fn(x))[:, 1]).reshape(50, 50)
    mean, std = samples.mean(0), samples.std(0)
    low, high = np.percentile(samples, [5, 95], axis=0)
    points, labels = (np.asarray(values) for values in sampler.train_data)

    def draw(panels: Mapping[str, np.ndarray], num_rows: int = 1) -> tuple[Any, Any]:
        num_columns = -(-len(panels) // num_rows)
        size = (0.8 + 3.2 * num_columns, 3.2 * num_rows)
        figure, grid = make_figure(num_rows, num_columns, size)
        image: Any = None
        for axes, (title, values) in zip(grid.flat, panels.items(), strict=False):
            image = draw_probabilities(
                axes, side, side, values, points, labels[:, 0], "bwr"
            )
            axes.set(title=title, aspect="equal")
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.colorbar(image, ax=grid)
        return figure, image

    err_figure, err_image = draw({"truth − mean": truth - mean})
    err_image.set_clim(-1, 1)
    std_figure, std_image = draw({"standard deviation": std})
    colors = _extras.require("matplotlib.colors", "plots")
    std_image.set_cmap(
        colors.LinearSegmentedColormap.from_list("std", ["white", "#005a32", "#ffff33"])
    )
    std_image.set_norm(colors.TwoSlopeNorm(0.1, 0, 0.5))
    panels = {"truth": truth, "mean": mean}
    more = panels | {"5th percentile": low, "95th percentile": high}
    each = {f"sample {i}": values for i, values in enumerate(samples)}
    return {
        "enn": draw(panels)[0],
        "more_enn": draw(more, num_rows=2)[0],
        "err_enn": err_figure,
        "std_enn": std_figure,
        "sample_enn": draw(each, num_rows=-(-num_samples // 5))[0],
    }


def plot_ranking(
    rankings: Mapping[int, "DataFrame"],
    published: Mapping[int, Mapping[str, float]] | None = None,
) -> "Figure":
    """Draws the normalised KL of every agent with error bars, a panel for each tau.

    Args:
      rankings: at each tau a table with the columns `agent_name`, `normalized_kl` and
        `normalized_stderr`. The agents are ordered as in the last one.
      published: values to mark beside, by tau and agent.

    Returns:
      The benchmark's figure: bars, with error bars of one standard error.
    """
    if not rankings:
        raise ValueError("rankings must have a table for at least one tau.")
    tables = list(rankings.values())
    in_order = [name for table in (tables[-1], *tables) for name in table["agent_name"]]
    names = list(dict.fromkeys(in_order))
    size = (2.5 + 2.5 * len(rankings), 1 + 0.35 * len(names))
    figure, grid = make_figure(1, len(rankings), size)
    shown: list[Any] = []
    for axes, (tau, table) in zip(grid[0], rankings.items(), strict=True):
        axes.barh(
            [names.index(name) for name in table["agent_name"]],
            table["normalized_kl"],
            xerr=table["normalized_stderr"],
            color="tab:blue",
            alpha=0.8,
            capsize=3,
        )
        marks = (published or {}).get(tau, {})
        marks = {names.index(name): kl for name, kl in marks.items() if name in names}
        if marks:
            shown += axes.plot(
                list(marks.values()), list(marks), "D", color="black", mfc="white"
            )
        axes.set(title=f"tau = {tau}", xlabel="normalised KL")
        axes.spines[["top", "right"]].set_visible(False)
    if shown:
        place = "outside lower left"
        figure.legend(shown[:1], ["published"], loc=place, frameon=False)
    labels = [name.replace(" ", "\n", 1) for name in names]
    grid[0, 0].set_yticks(range(len(names)), labels)  # Panels share their axes.
    grid[0, 0].set_ylim(len(names) - 0.4, -0.6)  # The best one comes first.
    return figure


def plot_kl_by_setting(results: "DataFrame", tau: int) -> "Figure":
    """Draws each agent's KL against the number of data, a panel for each temperature.

    Args:
      results: a row for each agent and problem, with the columns `agent_name`,
        `kl_estimate`, `tau`, `num_train` and `temperature`.
      tau: which rows to draw.

    Returns:
      The figure: means over the problems of a setting, with error bars of one standard
      error. Problems without a finite result (not finite, or 1e6) are left out, and
      counted in the legend.

    Raises:
      ValueError: if no row has this `tau`.
    """
    rows = results[results["tau"] == tau]
    if rows.empty:
        valid = sorted(results["tau"].unique().tolist())
        raise ValueError(f"tau must be one of {valid}, got {tau!r}.")
    temperatures = sorted(rows["temperature"].unique())
    figure, grid = make_figure(1, len(temperatures), (1.5 + 3.5 * len(temperatures), 4))
    for axes, temperature in zip(grid[0], temperatures, strict=True):
        panel = rows[rows["temperature"] == temperature]
        for name, agent in panel.groupby("agent_name", sort=False):
            is_good = agent["kl_estimate"].abs() < _MISSING
            groups = agent[is_good].groupby("num_train")["kl_estimate"]
            mean, error = groups.mean(), groups.sem(ddof=0)
            missing = f" ({(~is_good).sum()} left out)" if not is_good.all() else ""
            axes.errorbar(
                mean.index.to_numpy(),
                mean.to_numpy(),
                yerr=error.to_numpy(),
                label=f"{name}{missing}",
                marker="o",
                markersize=4,
                capsize=3,
            )
        axes.set(title=f"temperature {temperature}", xlabel="number of data")
        axes.set_xscale("log")
        axes.legend(frameon=False, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel(f"KL at tau = {tau}")
    return figure


def _data_sampler(problem: Any) -> Any:
    while hasattr(problem, "problem"):
        problem = problem.problem
    sampler = getattr(problem, "data_sampler", None)
    if not isinstance(sampler, GenerativeDataSampler):
        raise TypeError(
            f"Only problems with a GenerativeDataSampler can be drawn, got {problem!r}."
        )
    return sampler


def _sample(enn_sampler: EpistemicSampler, x: Array, num: int) -> np.ndarray:
    rng = hk.PRNGSequence(jax.random.PRNGKey(0))
    keys = jnp.stack([next(rng) for _ in range(num)])
    return np.asarray(sample_logits(enn_sampler, x, keys))


def _class_1(enn_sampler: EpistemicSampler, x: Array, num: int) -> np.ndarray:
    """Returns sampled probabilities of class 1, `[num, batch]`."""
    return np.asarray(jax.nn.softmax(_sample(enn_sampler, x, num))[..., 1])


def _draw_band(
    axes: "Axes",
    x: Array,
    middle: Array,
    low: Array,
    high: Array,
    label: str,
    color: str,
) -> None:
    order = np.argsort(x[:, 0])
    x, middle, low, high = (np.asarray(v)[order] for v in (x[:, 0], middle, low, high))
    axes.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
    axes.plot(x, middle, color=color, label=label)
