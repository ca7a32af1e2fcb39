import types

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

from enn.testbed import base, plots, problems
from enn.testbed import gaussian_processes as gp

SIDE = np.linspace(-3, 3, 50)


def sampler_2d(x, key):
    """Of two functions, one depends on the first coordinate, one on the second."""
    chosen = jax.random.randint(key, [], 0, 2)
    return jnp.stack([jnp.zeros(len(x)), x[:, chosen]], axis=1)


def choices(num):
    """Which function each of the keys of the sequence of PRNGKey(0) draws."""
    key, chosen = jax.random.PRNGKey(0), []
    for _ in range(num):
        key, sub = jax.random.split(key)
        chosen.append(int(jax.random.randint(sub, [], 0, 2)))
    return np.array(chosen)


def images(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


@pytest.fixture(scope="module")
def problem():
    return problems.problem_from_id("classification_2d/75")


@pytest.fixture(scope="module")
def figures(problem):
    wrapped = types.SimpleNamespace(problem=types.SimpleNamespace(problem=problem))
    return plots.sanity_plots(wrapped, sampler_2d)


@pytest.fixture(scope="module")
def expected(problem):
    """The truth and all samples, `[num_x2, num_x1]` as images have them."""
    x1, x2 = np.meshgrid(SIDE, SIDE)
    x = jnp.asarray(np.stack([x1.ravel(), x2.ravel()], 1), jnp.float32)
    truth = jax.nn.softmax(problem.data_sampler.logit_fn(x))[:, 1].reshape(50, 50)
    either = 1 / (1 + np.exp(-np.stack([x1, x2])))
    return np.asarray(truth), either[choices(20)]


def test_truth_is_beside_the_mean(figures, expected, problem):
    truth, samples = expected
    assert set(figures) == {"enn", "more_enn", "err_enn", "std_enn", "sample_enn"}
    true_image, mean_image = images(figures["enn"])
    np.testing.assert_allclose(true_image.get_array(), truth, atol=1e-5)
    np.testing.assert_allclose(mean_image.get_array(), samples.mean(0), atol=1e-5)
    assert true_image.get_clim() == (0, 1)
    assert true_image.get_cmap().name == "bwr"
    x, y = (np.asarray(values) for values in problem.train_data)
    zero, one = figures["enn"].axes[1].lines
    np.testing.assert_array_equal(zero.get_xydata(), x[y[:, 0] == 0])
    np.testing.assert_array_equal(one.get_xydata(), x[y[:, 0] == 1])


def test_percentiles_error_and_spread(figures, expected):
    truth, samples = expected
    drawn = [image.get_array() for image in images(figures["more_enn"])]
    low, high = np.percentile(samples, [5, 95], axis=0)
    for got, want in zip(drawn, [truth, samples.mean(0), low, high], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    (error,) = images(figures["err_enn"])
    np.testing.assert_allclose(error.get_array(), truth - samples.mean(0), atol=1e-5)
    assert error.get_clim() == (-1, 1)
    (spread,) = images(figures["std_enn"])
    np.testing.assert_allclose(spread.get_array(), samples.std(0), atol=1e-5)
    assert spread.norm(0.1) == 0.5
    np.testing.assert_allclose(spread.cmap(0.0)[:3], [1, 1, 1])
    assert spread.get_clim() == (0, 0.5)


def test_every_sample_has_a_facet(figures, expected, problem):
    drawn = [image.get_array() for image in images(figures["sample_enn"])]
    np.testing.assert_allclose(drawn, expected[1], atol=1e-5)
    few = plots.generate_2d_plots(problem.data_sampler, sampler_2d, num_samples=7)
    panels = few["sample_enn"].axes[:8]  # The ninth axes are the colour bar's.
    assert [axes.axison for axes in panels] == [True] * 7 + [False]


def test_figures_can_be_saved(figures, tmp_path):
    for figure in figures.values():
        assert isinstance(figure, matplotlib.figure.Figure)
    figures["std_enn"].savefig(tmp_path / "std.png", dpi=20)


def sampler_1d(x, key):
    chosen = jax.random.randint(key, [], 0, 2)
    return jnp.stack([jnp.zeros(len(x)), x[:, 0] + chosen], axis=1)


def band(axes, index):
    """Lower and upper ends of a ribbon, by x."""
    vertices = axes.collections[index].get_paths()[0].vertices
    num = len(axes.lines[index].get_xdata())
    return vertices[1 : num + 1], vertices[num + 2 : 2 * num + 2][::-1]


@pytest.mark.slow
@pytest.mark.parametrize("problem_id", ["classification/2", "classification/182"])
def test_class_probabilities_over_the_first_coordinate(problem_id):
    """Also of a dyadic problem, of which only two points were drawn."""
    problem = problems.problem_from_id(problem_id)
    (figure,) = [plots.sanity_1d(problem, sampler_1d)]
    (axes,) = figure.axes
    data = problem.data_sampler
    keys = jax.random.split(jax.random.PRNGKey(0), 1000)
    x = jax.jit(jax.vmap(lambda key: data.test_data(key)[0].x[0]))(keys)
    x = np.asarray(x[jnp.argsort(x[:, 0])])
    true_line, enn_line, zero, one = axes.lines
    np.testing.assert_array_equal(true_line.get_xdata(), x[:, 0])
    assert len(set(true_line.get_xdata())) > 900
    truth = jax.nn.softmax(data.logit_fn(x))[:, 1]
    np.testing.assert_allclose(true_line.get_ydata(), truth, atol=1e-5)
    either = 1 / (1 + np.exp(-x[:, 0] - np.array([[0.0], [1.0]])))
    samples = either[choices(100)]
    np.testing.assert_allclose(enn_line.get_ydata(), samples.mean(0), atol=1e-5)
    low, high = band(axes, 1)
    np.testing.assert_allclose(low[:, 1], either[0], atol=1e-5)
    np.testing.assert_allclose(high[:, 1], either[1], atol=1e-5)
    labels = np.asarray(problem.train_data.y)[:, 0]
    assert len(zero.get_xdata()) == (labels == 0).sum()
    np.testing.assert_array_equal(
        one.get_xydata(),
        np.stack([problem.train_data.x[:, 0], labels], 1)[labels == 1],
    )


def gp_problem(make):
    x_train, x_test = gp.gaussian_data(jax.random.PRNGKey(0), 4, 1, 6)
    data = make(gp.mlp_kernel, x_train, x_test, jax.random.PRNGKey(1), noise_std=0.1)
    prior = base.PriorKnowledge(1, 4, 1, noise_std=0.1)
    return problems.SampleBasedTestbed(data, lambda *_: None, prior)


@pytest.mark.slow
@pytest.mark.parametrize("make", [gp.GPRegression, gp.GPRegressionEnvLikelihood])
def test_regression_over_the_first_coordinate(make):
    problem = gp_problem(make)
    data = problem.data_sampler

    def sampler(x, key):
        return x + 2.0 * jax.random.randint(key, [], 0, 2)

    (axes,) = plots.sanity_plots(problem, sampler)["enn"].axes
    order = np.argsort(data.x_test[:, 0])
    x = np.asarray(data.x_test)[order, 0]
    true_line, enn_line, points = axes.lines
    if make is gp.GPRegression:
        mean, std = data.test_mean, np.sqrt(np.diag(data.test_cov))
    else:
        mean, std = data.test_function, np.zeros(6)
    mean, std = np.asarray(mean)[order, 0], std[order]
    np.testing.assert_allclose(
        true_line.get_xydata(), np.stack([x, mean], 1), atol=1e-5
    )
    low, high = band(axes, 0)
    np.testing.assert_allclose(low[:, 1], mean - std, atol=1e-5)
    np.testing.assert_allclose(high[:, 1], mean + std, atol=1e-5)
    shifts = 2 * choices(100)
    np.testing.assert_allclose(enn_line.get_ydata(), x + shifts.mean(), atol=1e-5)
    low, high = band(axes, 1)
    np.testing.assert_allclose(high[:, 1] - low[:, 1], 2 * shifts.std(), rtol=1e-4)
    np.testing.assert_array_equal(points.get_ydata(), data.train_data.y[:, 0])


@pytest.mark.slow
def test_gaussian_process_classes_are_drawn_at_the_cached_inputs():
    x_train, x_test = gp.gaussian_data(jax.random.PRNGKey(0), 4, 2, 6)
    data = gp.GPClassificationEnvLikelihood(
        gp.mlp_kernel, x_train, x_test, jax.random.PRNGKey(1)
    )
    prior = base.PriorKnowledge(2, 4, 1, num_classes=2, temperature=1.0)
    problem = problems.SampleBasedTestbed(data, lambda *_: None, prior)
    figures = plots.sanity_plots(problem, sampler_1d)
    assert list(figures) == ["enn"]
    line = figures["enn"].axes[0].lines[0]
    order = np.argsort(x_test[:, 0])
    np.testing.assert_array_equal(line.get_ydata(), data.probabilities[order, 1])


def test_a_problem_without_data_sampler_is_refused():
    with pytest.raises(TypeError, match="GenerativeDataSampler"):
        plots.sanity_plots(object(), sampler_1d)


def ranking(**kls):
    return pd.DataFrame(
        {
            "agent_name": list(kls),
            "normalized_kl": list(kls.values()),
            "normalized_stderr": [0.01 * (i + 1) for i in range(len(kls))],
        }
    )


def test_ranking_has_bars_errors_and_published_values():
    tables = {1: ranking(b=0.9, a=1.0, c=1.1, d=1.2), 5: ranking(c=1.0)}
    tables[10] = ranking(a=0.6, b=0.8)
    figure = plots.plot_ranking(tables, {10: {"b": 0.75, "unknown": 2.0}})
    one, five, ten = figure.axes
    assert [tick.get_text() for tick in one.get_yticklabels()] == ["a", "b", "c", "d"]
    assert one.get_ylim() == ten.get_ylim() == (3.6, -0.6)  # "a" is at the top.

    def lengths(axes):
        bars = axes.containers[-1]
        return {
            round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in bars
        }

    assert lengths(one) == {1: 0.9, 0: 1.0, 2: 1.1, 3: 1.2}
    assert lengths(five) == {2: 1.0}
    assert lengths(ten) == {0: 0.6, 1: 0.8}
    (segments,) = (container.lines[2][0] for container in [ten.containers[0]])
    ends = [segment[:, 0] for segment in segments.get_segments()]
    np.testing.assert_allclose(ends, [[0.59, 0.61], [0.78, 0.82]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["published"]
    (marks,) = [line for line in ten.lines if line.get_marker() == "D"]
    np.testing.assert_array_equal(marks.get_xydata(), [[0.75, 1]])
    assert not [line for line in one.lines if line.get_marker() == "D"]
    assert (one.get_title(), ten.get_title()) == ("tau = 1", "tau = 10")
    with pytest.raises(ValueError, match="at least one tau"):
        plots.plot_ranking({})


def test_kl_by_number_of_data_and_temperature():
    rows = [
        {"agent_name": name, "tau": tau, "num_train": num, "temperature": t}
        | {"kl_estimate": scale * tau * (1 + seed) / num + t}
        for name, scale in (("mlp", 1.0), ("epinet", 0.5))
        for tau in (1, 10)
        for num in (10, 100)
        for t in (0.01, 0.5)
        for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows)
    frame.loc[0, "tau"] = 10  # A problem of each kind that has failed.
    frame.loc[0, "kl_estimate"] = 1e6
    frame.loc[1, "tau"] = 10
    frame.loc[1, "kl_estimate"] = np.inf
    cold, warm = plots.plot_kl_by_setting(frame, tau=10).axes
    assert [axes.get_title() for axes in (cold, warm)] == [
        "temperature 0.01",
        "temperature 0.5",
    ]
    assert cold.get_xscale() == "log"
    assert cold.get_legend_handles_labels()[1] == ["mlp (2 left out)", "epinet"]
    mlp, epinet = (container.lines[0] for container in warm.containers)
    np.testing.assert_allclose(mlp.get_xydata(), [[10, 2.0], [100, 0.65]])
    np.testing.assert_allclose(epinet.get_ydata(), [1.25, 0.575])
    bars = warm.containers[0].lines[2][0].get_segments()
    # The two seeds give 1.5 and 2.5: a population deviation of .5, over √2.
    np.testing.assert_allclose(bars[0][:, 1], [2 - 0.5 / 2**0.5, 2 + 0.5 / 2**0.5])
    np.testing.assert_allclose(cold.containers[0].lines[0].get_ydata(), [1.51, 0.16])
    with pytest.raises(ValueError, match=r"one of \[1, 10\], got 3"):
        plots.plot_kl_by_setting(frame, tau=3)
