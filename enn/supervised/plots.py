"""Pictures of what a network knows: sampled functions and class probabilities.

Each function draws on Matplotlib axes; `make_figure` makes them. In a notebook,
figures show after `%matplotlib inline`.
"""

import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from enn import _extras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CLASS_COLORS = ("navy", "darkred")


def make_figure(
    num_rows: int = 1, num_columns: int = 1, size: tuple[float, float] = (6.4, 4.0)
) -> tuple["Figure", np.ndarray]:
    """Returns a figure, with no part in Matplotlib's global state, and its axes.

    Args:
      num_rows: rows of panels, which share their axes.
      num_columns: columns of panels.
      size: width and height in inches.

    Returns:
      The figure and its axes, `[num_rows, num_columns]`.

    Raises:
      ImportError: without Matplotlib.
    """
    figure = _extras.require("matplotlib.figure", "plots").Figure(
        figsize=size, layout="constrained"
    )
    axes = figure.subplots(
        num_rows, num_columns, sharex=True, sharey=True, squeeze=False
    )
    return figure, axes


def draw_functions(
    axes: "Axes",
    x: np.ndarray,
    samples: np.ndarray,
    data_x: np.ndarray | None = None,
    data_y: np.ndarray | None = None,
) -> None:
    """Draws sampled functions, their mean ± 2 standard deviations, and data.

    Args:
      axes: where to draw.
      x: inputs in ascending order, `[num_points]`.
      samples: values of the functions, `[num_sample, num_points]`.
      data_x: inputs of the data, `[num_data]`.
      data_y: targets of the data, `[num_data]`.
    """
    samples = np.asarray(samples)
    mean, std = samples.mean(axis=0), samples.std(axis=0)
    axes.fill_between(
        x,
        mean - 2 * std,
        mean + 2 * std,
        color="tab:blue",
        alpha=0.15,
        linewidth=0,
        label="mean ± 2 std",
    )
    lines = axes.plot(x, samples.T, color="tab:blue", alpha=0.35, linewidth=0.8)
    lines[0].set_label("sampled functions")
    axes.plot(x, mean, color="navy", linewidth=2, label="mean")
    if data_x is not None and data_y is not None:
        axes.plot(data_x, data_y, "o", color="black", markersize=4, label="data")
    axes.margins(x=0)
    axes.set(xlabel="x", ylabel="y")
    axes.spines[["top", "right"]].set_visible(False)


def draw_uncertainties(
    axes: "Axes",
    x: np.ndarray,
    means: np.ndarray,
    stds: np.ndarray,
    data_x: np.ndarray | None = None,
    data_y: np.ndarray | None = None,
) -> None:
    """Draws a predictive mixture of Gaussians, its two kinds of uncertainty apart.

    By the law of total variance: epistemic is the variance of the means over indices,
    which more data would lower; aleatoric is the mean of the variances, the noise.

    Args:
      axes: where to draw.
      x: inputs in ascending order, `[num_points]`.
      means: mean at each index, `[num_sample, num_points]` or with a last axis of 1.
      stds: standard deviation of the noise at each index, of the same shape.
      data_x: inputs of the data, one number each.
      data_y: targets of the data, one number each.
    """
    shape = (-1, len(x))
    means, stds = (np.reshape(values, shape) for values in (means, stds))
    mean, epistemic = means.mean(axis=0), means.std(axis=0)
    total = np.sqrt(epistemic**2 + np.mean(stds**2, axis=0))
    for std, color, label in (
        (total, "tab:orange", "± 2 std with noise (aleatoric)"),
        (epistemic, "tab:blue", "± 2 std of the mean (epistemic)"),
    ):
        low, high = mean - 2 * std, mean + 2 * std
        axes.fill_between(
            x, low, high, color=color, alpha=0.3, linewidth=0, label=label
        )
    axes.plot(x, mean, color="navy", linewidth=2, label="mean")
    if data_x is not None and data_y is not None:
        axes.plot(
            np.ravel(data_x), np.ravel(data_y), ".", color="black", markersize=3,
            label="data",
        )  # fmt: skip
    axes.margins(x=0)
    axes.set(xlabel="x", ylabel="y")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_probabilities(
    axes: "Axes",
    x1: np.ndarray,
    x2: np.ndarray,
    probabilities: np.ndarray,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    cmap: str = "coolwarm",
) -> Any:
    """Draws values in [0, 1] over the plane, and data of two classes.

    Args:
      axes: where to draw.
      x1: first coordinates of an evenly spaced grid in ascending order, `[num_x1]`.
      x2: second coordinates, `[num_x2]`.
      probabilities: what to draw, such as that of class 1, `[num_x1, num_x2]`.
      points: inputs of the data, `[num_data, 2]`.
      labels: classes 0 or 1 of the data, `[num_data]`.
      cmap: Matplotlib's name of the colour map.

    Returns:
      What a colour bar takes.
    """
    left, right, bottom, top = (
        float(x[end] + sign * (x[1] - x[0]) / 2)
        for x in (x1, x2)
        for end, sign in ((0, -1), (-1, 1))
    )
    image = axes.imshow(
        np.asarray(probabilities).T,
        cmap=cmap,
        vmin=0,
        vmax=1,
        alpha=0.7,
        origin="lower",
        extent=(left, right, bottom, top),
        interpolation="bilinear",
    )
    if points is not None and labels is not None:
        for label, color in enumerate(_CLASS_COLORS):
            chosen = points[np.asarray(labels) == label]
            axes.plot(
                *chosen.T,
                "o",
                color=color,
                markeredgecolor="white",
                markersize=7,
                label=f"data of class {label}",
            )
    return image


def show(figure: "Figure") -> None:
    """Shows a figure, if this runs in a notebook."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return
    png = io.BytesIO()
    figure.savefig(png, format="png")
    ipython.display.display(ipython.display.Image(png.getvalue()))
