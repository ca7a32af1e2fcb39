import functools
import itertools

import numpy as np
import optax
import pytest

from enn import datasets, loggers, losses, networks, supervised
from enn.supervised import classification_data
from tests.supervised import stub_experiment
from tests.support.fast import compiled_init


@functools.cache
def _five_samples():
    experiment = stub_experiment.StubExperiment(num_outputs=2)
    return classification_data.make_plot_data(experiment, 5)


def _samples(num_sample):
    frame = _five_samples()
    return frame[frame["sample"] < num_sample].copy()


def test_dataset_is_two_moons():
    dataset = classification_data.make_dataset(num_sample=7, seed=3)
    points, labels = datasets.make_moons(14, noise=0.1, seed=3)
    assert dataset.batch_size == 14
    np.testing.assert_array_equal(dataset.data.x, points)
    np.testing.assert_array_equal(dataset.data.y[:, 0], labels)
    assert dataset.data.y.dtype == np.int64


def test_labels_are_flipped_as_specified():
    clean, noisy, flipped = (
        classification_data.make_dataset(50, prob_swap, seed=1).data.y[:, 0]
        for prob_swap in (0.0, 0.3, 1.0)
    )
    swap = np.random.RandomState(1).binomial(1, 0.3, 100)
    np.testing.assert_array_equal(noisy != clean, swap == 1)
    np.testing.assert_array_equal(flipped, 1 - clean)


@pytest.mark.parametrize(
    ("argument", "value"), [("num_sample", 0), ("prob_swap", 1.5), ("prob_swap", -1)]
)
def test_wrong_arguments_are_errors(argument, value):
    with pytest.raises(ValueError, match=argument):
        classification_data.make_dataset(**{argument: value})


def test_training_gives_the_losses_of_the_notebook():
    dataset = classification_data.make_dataset()
    enn = networks.MLPEnsembleMatchedPrior(
        [50, 50, 2], dataset.data.x, num_ensemble=10, prior_scale=5.0, seed=0
    )
    loss_fn = losses.average_single_index_loss(losses.XentLoss(2), 10)
    logger = loggers.MemoryLogger()
    experiment = supervised.Experiment(
        compiled_init(enn), loss_fn, optax.adam(1e-3), dataset, seed=0, logger=logger
    )
    experiment.train(10)
    np.testing.assert_allclose(
        [logger.rows[step - 1]["loss"] for step in (1, 2, 3, 10)],
        [0.86454, 0.77423, 1.03980, 0.86988],
        atol=1e-3,
    )


def test_data_frame_takes_all_data_and_no_batch():
    """The original takes a batch from the training iterator."""
    data = classification_data.make_dataset().data
    dataset = datasets.make_batch_iterator(data, batch_size=3)
    frame = classification_data.make_dataframe(dataset)
    assert list(frame.columns) == ["x1", "x2", "label"]
    assert set(frame.dtypes) == {np.dtype(np.float64)}
    np.testing.assert_array_equal(frame[["x1", "x2"]], data.x)
    np.testing.assert_array_equal(frame["label"], data.y[:, 0])
    assert dataset.state()["position"] == 0


def test_data_frame_takes_one_batch_of_another_iterator():
    batches = [
        datasets.ArrayBatch(x=np.full([2, 2], i), y=np.array([0, 1])) for i in range(2)
    ]
    dataset = iter(batches)
    frame = classification_data.make_dataframe(dataset)
    np.testing.assert_array_equal(frame, [[0, 0, 0], [0, 0, 1]])
    assert next(dataset) is batches[1]


def test_data_frame_defaults_to_the_moons():
    assert len(classification_data.make_dataframe()) == 20


def test_data_frame_of_inputs_outside_the_plane_is_an_error():
    batch = datasets.ArrayBatch(x=np.ones([2, 3]), y=np.ones([2, 1]))
    with pytest.raises(ValueError, match=r"x must have shape \[batch, 2\]"):
        classification_data.make_dataframe(itertools.repeat(batch))


def test_grid_has_its_first_coordinate_outermost():
    grid = classification_data.gen_2d_grid(3)
    assert grid.shape == (2500, 2)
    np.testing.assert_allclose(
        grid[[0, 49, 50]], [[-3, -3], [-3, 3], [grid[50, 0], -3]]
    )
    np.testing.assert_allclose(grid[50, 0], -3 + 6 / 49)
    np.testing.assert_allclose(grid[-1], [3, 3])


def test_plot_data_are_sampled_probabilities():
    """Logits z·x₀ and 2·z·x₀ give the probability 1/(1 + exp(-z·x₀))."""
    frame = _five_samples()
    assert list(frame.columns) == ["x1", "x2", "label", "sample"]
    np.testing.assert_array_equal(frame["sample"], np.repeat(range(5), 2500))
    grid = classification_data.gen_2d_grid(3)
    np.testing.assert_array_equal(frame[["x1", "x2"]], np.tile(grid, (5, 1)))
    logits = stub_experiment.slopes(5)[:, None] * grid[:, 0]
    wanted = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(frame["label"], wanted.ravel(), rtol=1e-4)


def test_mean_plot_data_average_over_100_samples():
    dataset = classification_data.make_dataset()
    experiment = stub_experiment.StubExperiment(dataset, num_outputs=2)
    mean, data = classification_data.make_mean_plot_data(experiment)
    grid = classification_data.gen_2d_grid(3)
    logits = stub_experiment.slopes(100)[:, None] * grid[:, 0]
    assert list(mean.columns) == ["x1", "x2", "label"]
    np.testing.assert_allclose(mean[["x1", "x2"]], grid)
    wanted = (1 / (1 + np.exp(-logits))).mean(axis=0)
    np.testing.assert_allclose(mean["label"], wanted, rtol=1e-4)
    assert data.equals(classification_data.make_dataframe(dataset))


@pytest.mark.parametrize(("num_sample", "num_hidden"), [(1, 0), (5, 3)])
def test_sample_plot_has_a_panel_a_sample(num_sample, num_hidden):
    figure = classification_data.make_sample_plot(
        _samples(num_sample), classification_data.make_dataframe()
    )
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == [
        f"sample {k}" for k in range(num_sample)
    ]
    assert sum(not axes.get_visible() for axes in figure.axes) == num_hidden
    assert figure.get_suptitle() == "Posterior samples from ENN"
    assert len(panels[-1].lines) == 2


def test_mean_plot_shows_the_mean_and_no_data_unless_given():
    plot_df = _samples(2)
    plot_df.loc[plot_df["sample"] == 0, "label"] = 0.2
    plot_df.loc[plot_df["sample"] == 1, "label"] = 0.6
    figure = classification_data.make_mean_plot(plot_df)
    panel = figure.axes[0]
    np.testing.assert_allclose(panel.images[0].get_array(), np.full([50, 50], 0.4))
    assert not panel.lines
    assert figure.get_suptitle() == "Posterior mean from ENN"


def test_colab_plots_are_the_mean_and_twelve_samples():
    dataset = classification_data.make_dataset()
    experiment = stub_experiment.StubExperiment(dataset, num_outputs=2)
    mean, samples = classification_data.colab_plots(experiment)
    assert [sum(bool(axes.images) for axes in f.axes) for f in (mean, samples)] == [
        1,
        12,
    ]
    assert dataset.state()["position"] == 0
