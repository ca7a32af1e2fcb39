import sys
import types

import matplotlib.figure
import numpy as np
import pytest

from enn.supervised import plots


def test_a_figure_has_the_panels_asked_for():
    figure, axes = plots.make_figure(2, 3, (6, 4))
    assert isinstance(figure, matplotlib.figure.Figure)
    assert axes.shape == (2, 3)
    assert tuple(figure.get_size_inches()) == (6, 4)


def test_functions_are_drawn_with_mean_and_band():
    _, axes = plots.make_figure()
    samples = np.array([[0.0, 1.0], [2.0, 5.0]])
    plots.draw_functions(
        axes[0, 0], np.array([0.0, 1.0]), samples, np.array([0.5]), np.array([7.0])
    )
    *lines, mean, data = axes[0, 0].lines
    np.testing.assert_array_equal([line.get_ydata() for line in lines], samples)
    np.testing.assert_array_equal(mean.get_ydata(), [1, 3])
    np.testing.assert_array_equal(data.get_xydata(), [[0.5, 7]])
    (band,) = axes[0, 0].collections
    assert {tuple(xy) for xy in band.get_paths()[0].vertices} == {
        (0, -1),
        (0, 3),
        (1, -1),
        (1, 7),
    }
    assert axes[0, 0].get_legend_handles_labels()[1] == [
        "mean ± 2 std",
        "sampled functions",
        "mean",
        "data",
    ]


def test_probabilities_are_drawn_with_the_first_coordinate_to_the_right():
    _, axes = plots.make_figure()
    x1, x2 = np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0])
    probabilities = np.array([[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]])
    points = np.array([[1.0, 0.5], [3.0, 0.5]])
    image = plots.draw_probabilities(
        axes[0, 0], x1, x2, probabilities, points, np.array([1, 0])
    )
    assert image.get_extent() == [-1, 5, -0.5, 1.5]
    assert image.origin == "lower"
    assert image.get_clim() == (0, 1)
    np.testing.assert_array_equal(image.get_array(), probabilities.T)
    zero, one = axes[0, 0].lines
    np.testing.assert_array_equal(zero.get_xydata(), points[1:])
    np.testing.assert_array_equal(one.get_xydata(), points[:1])


@pytest.mark.parametrize("running", [True, False])
def test_figures_show_in_a_notebook_only(monkeypatch, running):
    shown = []
    display = types.SimpleNamespace(display=shown.append, Image=bytes)
    ipython = types.SimpleNamespace(
        get_ipython=lambda: object() if running else None,
        display=display,
        version_info=(9, 0),
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    plots.show(plots.make_figure()[0])
    assert [image[:4] for image in shown] == [b"\x89PNG"] * running


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "enn\[plots\]"'):
        plots.make_figure()


def test_bands_of_noise_and_of_the_mean_add_their_variances():
    _, axes = plots.make_figure()
    means, stds = np.array([[[0.0]], [[6.0]]]), np.full([2, 1, 1], 4.0)
    plots.draw_uncertainties(axes[0, 0], np.zeros(1), means, stds)
    heights = [
        np.ptp(band.get_paths()[0].vertices[:, 1]) for band in axes[0, 0].collections
    ]
    np.testing.assert_allclose(heights, [4 * 5, 4 * 3])  # √(3² + 4²) and 3
