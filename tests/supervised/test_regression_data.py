import io
import sys

import numpy as np
import optax
import pytest

from enn import data_noise, loggers, losses, networks, supervised
from enn.supervised import classification_data, regression_data
from tests.supervised import stub_experiment
from tests.support.fast import compiled_init


def test_data_frame_holds_the_specified_points():
    frame = regression_data.make_regression_df()
    assert list(frame.columns) == ["index", "x", "y"]
    assert len(frame) == 20
    np.testing.assert_array_equal(frame["index"], np.arange(20))
    np.testing.assert_allclose(frame["x"].iloc[[0, 9, 10, 19]], [0, 0.5, 1, 1.5])
    np.testing.assert_allclose(frame["y"].iloc[[0, -1]], [0.17640523, -0.31392694])


@pytest.mark.parametrize("extra_input_dim", [0, 1, 2])
def test_dataset_appends_ones_to_the_inputs(extra_input_dim):
    dataset = regression_data.make_dataset(extra_input_dim)
    frame = regression_data.make_regression_df()
    assert dataset.batch_size == 20
    assert dataset.data.x.shape == (20, 1 + extra_input_dim)
    assert dataset.data.x.dtype == dataset.data.y.dtype == np.float64
    np.testing.assert_array_equal(dataset.data.x[:, 0], frame["x"])
    np.testing.assert_array_equal(dataset.data.x[:, 1:], 1)
    np.testing.assert_array_equal(dataset.data.y[:, 0], frame["y"])


@pytest.mark.slow
def test_training_gives_the_losses_of_the_notebook():
    dataset = regression_data.make_dataset()
    enn = networks.MLPEnsembleMatchedPrior(
        [50, 50, 1], dataset.data.x, num_ensemble=10, prior_scale=5.0, seed=0
    )
    noise = data_noise.GaussianTargetNoise(enn, noise_std=0.1, seed=0)
    loss_fn = losses.average_single_index_loss(
        losses.add_data_noise(losses.L2Loss(), noise), 10
    )
    logger = loggers.MemoryLogger()
    experiment = supervised.Experiment(
        compiled_init(enn), loss_fn, optax.adam(1e-3), dataset, seed=0, logger=logger
    )
    experiment.train(10)
    np.testing.assert_allclose(
        [logger.rows[step - 1]["loss"] for step in (1, 2, 3, 10)],
        [3.39641, 3.15078, 3.34909, 2.99927],
        atol=1e-3,
    )


def test_plot_data_are_the_sampled_functions():
    frame = regression_data.make_plot_data(stub_experiment.StubExperiment(), 3)
    assert list(frame.columns) == ["x", "y", "k"]
    np.testing.assert_array_equal(frame.index, np.tile(np.arange(50), 3))
    np.testing.assert_array_equal(frame["k"], np.repeat([0, 1, 2], 50))
    x = np.linspace(-1, 2, 50)
    np.testing.assert_array_equal(frame["x"], np.tile(x, 3))
    wanted = stub_experiment.slopes(3)[:, None] * x
    np.testing.assert_allclose(frame["y"], wanted.ravel(), rtol=1e-5)


def test_plot_shows_samples_and_data():
    figure = regression_data.make_plot(stub_experiment.StubExperiment(), num_sample=3)
    (axes,) = figure.axes
    *samples, _, data = axes.lines
    assert len(samples) == 3
    assert len(data.get_xdata()) == 20
    assert axes.get_xlim() == (-1, 2)
    png = io.BytesIO()
    figure.savefig(png)
    assert png.getvalue()


def test_without_pandas_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "enn\[plots\]"'):
        regression_data.make_regression_df()


def test_datasets_need_no_plotting_package(monkeypatch):
    for package in ("matplotlib", "pandas", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    regression_data.make_dataset()
    classification_data.make_dataset()
