"""Regression in one dimension: data with a gap, and plots of what a network knows."""

from typing import TYPE_CHECKING

import numpy as np

from enn import _extras
from enn.datasets.base import ArrayBatch
from enn.datasets.in_memory import BatchIterator, make_batch_iterator
from enn.datasets.toy import make_regression_data
from enn.supervised import plots
from enn.supervised.base import BaseExperiment, sample_predictions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def make_regression_df() -> "pd.DataFrame":
    """Returns the 20 data points as columns `index`, `x` and `y`.

    Raises:
      ImportError: without pandas.
    """
    pd = _extras.require("pandas", "plots")
    x, y = make_regression_data()
    return pd.DataFrame({"index": np.arange(x.size), "x": x, "y": y})


def make_dataset(extra_input_dim: int = 1) -> BatchIterator:
    """Returns an iterator of the data, all points in each batch.

    Args:
      extra_input_dim: number of constant inputs, all one, after the first; they give
        the first layer a bias that prior functions have too.

    Returns:
      Batches with `x` of shape `[20, 1 + extra_input_dim]` and `y` `[20, 1]`.
    """
    x, y = make_regression_data()
    return make_batch_iterator(
        ArrayBatch(x=_with_ones(x, extra_input_dim), y=y[:, None])
    )


def make_plot_data(
    experiment: BaseExperiment, num_sample: int = 20, extra_input_dim: int = 1
) -> "pd.DataFrame":
    """Returns sampled functions on [-1, 2] as columns `x`, `y` and sample `k`.

    Args:
      experiment: network trained on `make_dataset(extra_input_dim)`.
      num_sample: number of functions, of 50 points each.
      extra_input_dim: number of constant inputs.

    Raises:
      ImportError: without pandas.
      ValueError: unless `num_sample` is an integer >= 1.
    """
    pd = _extras.require("pandas", "plots")
    x, samples = _sample_functions(experiment, num_sample, extra_input_dim)
    return pd.concat(
        pd.DataFrame({"x": x, "y": y, "k": k}) for k, y in enumerate(samples)
    )


def make_plot(
    experiment: BaseExperiment, num_sample: int = 20, extra_input_dim: int = 1
) -> "Figure":
    """Returns a figure of the data, sampled functions and their mean ± 2 std.

    Takes the arguments of `make_plot_data`.

    Raises:
      ImportError: without Matplotlib.
      ValueError: unless `num_sample` is an integer >= 1.
    """
    figure, axes = plots.make_figure()
    x, samples = _sample_functions(experiment, num_sample, extra_input_dim)
    plots.draw_functions(axes[0, 0], x, samples, *make_regression_data())
    axes[0, 0].set_title("Posterior samples from ENN")
    axes[0, 0].legend(frameon=False)
    return figure


def _sample_functions(
    experiment: BaseExperiment, num_sample: int, extra_input_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `[50]` and values `[num_sample, 50]`."""
    x = np.linspace(-1, 2, 50)
    predictions = sample_predictions(
        experiment, _with_ones(x, extra_input_dim), num_sample
    )
    return x, np.asarray(predictions)[..., 0]


def _with_ones(x: np.ndarray, extra_input_dim: int) -> np.ndarray:
    return np.column_stack([x, np.ones([x.size, extra_input_dim])])
