"""Two classes in the plane: data on two moons, and plots of what a network knows."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from enn import _checks, _extras
from enn.datasets.base import ArrayBatch, ArrayBatchIterator
from enn.datasets.in_memory import BatchIterator, make_batch_iterator
from enn.datasets.toy import make_moons
from enn.supervised import plots
from enn.supervised.base import BaseExperiment, sample_predictions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_NUM_SAMPLES = 100
_NUM_PANELS = 12
_PANELS_PER_ROW = 4


def make_dataset(
    num_sample: int = 10, prob_swap: float = 0.0, seed: int = 0
) -> BatchIterator:
    """Returns an iterator over two moons with noise 0.1, all points in each batch.

    Args:
      num_sample: number of points of each moon.
      prob_swap: probability that a label is flipped.
      seed: of the points and the flips.

    Raises:
      ValueError: unless `num_sample` is an integer >= 1 and `prob_swap` a
        probability.
    """
    if not 0 <= prob_swap <= 1:
        raise ValueError(f"prob_swap must be in [0, 1], got {prob_swap!r}.")
    num_data = 2 * _checks.positive_int("num_sample", num_sample)
    x, y = make_moons(num_data, noise=0.1, seed=seed)
    swap = np.random.RandomState(seed).binomial(1, prob_swap, num_data)
    return make_batch_iterator(ArrayBatch(x=x, y=np.where(swap == 1, 1 - y, y)))


def make_dataframe(dataset: ArrayBatchIterator | None = None) -> "pd.DataFrame":
    """Returns data as columns `x1`, `x2` and `label`.

    Args:
      dataset: an iterator in memory, of which this takes all data and no batch; or
        any other, of which it takes the next batch. By default `make_dataset()`.

    Raises:
      ImportError: without pandas.
      ValueError: if inputs are not `[batch, 2]`.
    """
    pd = _extras.require("pandas", "plots")
    dataset = make_dataset() if dataset is None else dataset
    batch = dataset.data if isinstance(dataset, BatchIterator) else next(dataset)
    _checks.shape("x", batch.x, (None, 2), "[batch, 2]")
    columns = np.column_stack([batch.x, batch.y]).astype(np.float64)
    return pd.DataFrame(columns, columns=["x1", "x2", "label"])


def gen_2d_grid(plot_range: float) -> np.ndarray:
    """Returns 50 × 50 points on [-plot_range, plot_range]², `[2500, 2]`.

    The second coordinate varies fastest.
    """
    coordinates = np.linspace(-plot_range, plot_range, 50)
    grid = np.meshgrid(coordinates, coordinates, indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def make_plot_data(experiment: BaseExperiment, num_sample: int) -> "pd.DataFrame":
    """Returns sampled probabilities of class 1 on `gen_2d_grid(3)`.

    Args:
      experiment: network trained on two classes in the plane.
      num_sample: number of epistemic indices.

    Returns:
      Columns `x1`, `x2`, `label` (the probability) and `sample`.

    Raises:
      ImportError: without pandas.
      ValueError: unless `num_sample` is an integer >= 1.
    """
    pd = _extras.require("pandas", "plots")
    grid = gen_2d_grid(3)
    logits = sample_predictions(experiment, grid, num_sample)
    probabilities = np.asarray(jax.jit(jax.nn.softmax)(logits))[..., 1]
    return pd.concat(
        pd.DataFrame({"x1": grid[:, 0], "x2": grid[:, 1], "label": p, "sample": k})
        for k, p in enumerate(probabilities)
    )


def make_sample_plot(
    plot_df: "pd.DataFrame", data_df: "pd.DataFrame | None" = None
) -> "Figure":
    """Returns a figure of the probability of class 1, one panel a sample.

    Args:
      plot_df: what `make_plot_data` returns.
      data_df: data to draw on it, as `make_dataframe` returns them.

    Raises:
      ImportError: without Matplotlib.
    """
    panels = {f"sample {k}": frame for k, frame in plot_df.groupby("sample")}
    num_columns = min(len(panels), _PANELS_PER_ROW)
    return _draw(panels, data_df, num_columns, "Posterior samples from ENN", 2.5)


def make_mean_plot(
    plot_df: "pd.DataFrame", data_df: "pd.DataFrame | None" = None
) -> "Figure":
    """Returns a figure of the mean probability of class 1.

    Takes the arguments of `make_sample_plot`.

    Raises:
      ImportError: without Matplotlib.
    """
    panels = {"": _mean_over_samples(plot_df)}
    return _draw(panels, data_df, 1, "Posterior mean from ENN", 4.5)


def make_mean_plot_data(
    experiment: BaseExperiment,
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Returns the mean of 100 sampled probabilities, and the training data.

    Returns:
      Columns `x1`, `x2`, `label` of `gen_2d_grid(3)`, and of the data.

    Raises:
      ImportError: without pandas.
    """
    plot_df = make_plot_data(experiment, _NUM_SAMPLES)
    return _mean_over_samples(plot_df), make_dataframe(experiment.dataset)


def colab_plots(experiment: BaseExperiment) -> tuple["Figure", "Figure"]:
    """Shows in a notebook, and returns, the mean of 100 samples and 12 of them.

    Raises:
      ImportError: without Matplotlib or pandas.
    """
    plot_df = make_plot_data(experiment, _NUM_SAMPLES)
    data_df = make_dataframe(experiment.dataset)
    mean = make_mean_plot(plot_df, data_df)
    samples = make_sample_plot(plot_df[plot_df["sample"] < _NUM_PANELS], data_df)
    plots.show(mean)
    plots.show(samples)
    return mean, samples


def _mean_over_samples(plot_df: "pd.DataFrame") -> "pd.DataFrame":
    return plot_df.groupby(["x1", "x2"])[["label"]].mean().reset_index()


def _draw(
    panels: dict[str, "pd.DataFrame"],
    data_df: "pd.DataFrame | None",
    num_columns: int,
    title: str,
    panel_size: float,
) -> "Figure":
    num_rows = -(-len(panels) // num_columns)
    size = (panel_size * num_columns + 1, panel_size * num_rows + 0.5)
    figure, axes = plots.make_figure(num_rows, num_columns, size)
    points = None if data_df is None else data_df[["x1", "x2"]].to_numpy()
    labels = None if data_df is None else data_df["label"].to_numpy()
    for ax, (name, frame) in zip(axes.flat, panels.items(), strict=False):
        table = frame.pivot(index="x1", columns="x2", values="label")
        image = plots.draw_probabilities(
            ax,
            table.index.to_numpy(),
            table.columns.to_numpy(),
            table.to_numpy(),
            points,
            labels,
        )
        ax.set_title(name)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    figure.suptitle(title)
    for ax in axes[-1]:
        ax.set_xlabel("x1")
    for ax in axes[:, 0]:
        ax.set_ylabel("x2")
    figure.colorbar(image, ax=axes, label="probability of class 1")
    if data_df is not None:
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
    return figure
