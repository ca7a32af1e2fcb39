"""The demo's synthetic data: pictures of what each network knows."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from enn import losses, metrics
from enn.datasets.toy import make_regression_data
from enn.demo import agents as demo_agents
from enn.supervised import classification_data, plots, regression_data
from enn.supervised.base import sample_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_SAMPLES = 100
_TITLES = {
    "mlp": "MLP",
    "ensemble": "Ensemble with matched priors",
    "epinet": "MLP epinet",
}


def draw_regression(names: list[str], seed: int, steps: int) -> "Figure":
    """Trains on the regression data and draws sampled functions and their spread."""
    agents = demo_agents.make_agents([50, 50], prior_scale=1.0)
    figure, axes = plots.make_figure(1, len(names), (5.0 * len(names), 4.0))
    for ax, name in zip(axes[0], names, strict=True):
        experiment = demo_agents.train(
            name,
            agents[name],
            1,
            losses.L2Loss(),
            regression_data.make_dataset(),
            seed,
            steps,
        )
        frame = regression_data.make_plot_data(experiment, _NUM_SAMPLES)
        functions = frame.pivot(index="k", columns="x", values="y")
        plots.draw_functions(
            ax,
            functions.columns.to_numpy(),
            functions.to_numpy(),
            *make_regression_data(),
        )
        ax.set_title(_TITLES[name])
    for ax in axes[0, 1:]:
        ax.set_ylabel("")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    return figure


def draw_moons(names: list[str], seed: int, steps: int) -> "Figure":
    """Trains on the two moons; draws mean probability and epistemic uncertainty."""
    agents = demo_agents.make_agents([50, 50], prior_scale=3.0)
    figure, axes = plots.make_figure(2, len(names), (3.6 * len(names) + 1, 7.0))
    grid = classification_data.gen_2d_grid(3)
    x1 = x2 = np.unique(grid[:, 0])
    for column, name in zip(axes.T, names, strict=True):
        dataset = classification_data.make_dataset()
        experiment = demo_agents.train(
            name, agents[name], 2, losses.XentLoss(2), dataset, seed, steps
        )
        logits = sample_predictions(experiment, grid, _NUM_SAMPLES)
        mean = jax.nn.softmax(logits)[..., 1].mean(axis=0)
        bald = metrics.mutual_information(logits) / np.log(2)
        data = (dataset.data.x, dataset.data.y[:, 0])
        for ax, values, title in zip(
            column, (mean, bald), (_TITLES[name], ""), strict=True
        ):
            table = np.asarray(values).reshape(len(x1), len(x2))
            cmap = "coolwarm" if values is mean else "viridis"
            image = plots.draw_probabilities(ax, x1, x2, table, *data, cmap=cmap)
            ax.set_title(title)
            if name == names[-1]:
                label = "mean probability" if values is mean else "BALD (bits)"
                figure.colorbar(image, ax=ax, label=label)
    return figure
