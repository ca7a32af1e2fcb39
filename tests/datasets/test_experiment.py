"""Image data sets train and evaluate as they are."""

import numpy as np
import optax
import pytest

from enn import data_noise, datasets, losses, metrics, networks, supervised
from enn.loggers import MemoryLogger
from tests.support import stored


@pytest.mark.slow
def test_an_experiment_trains_on_stored_images_and_evaluates(store):
    # Digit d has its row 2d white: a linear network can tell them apart.
    images = np.zeros([10, 28, 28], np.uint8)
    images[np.arange(10), 2 * np.arange(10)] = 255
    path = stored.write_parquet(
        store / "rows.parquet", [stored.png(image) for image in images], list(range(10))
    )
    dataset = datasets.Mnist(
        train_batch=10,
        eval_batch=10,
        source={"train": path, "test": path},
    )
    enn = networks.MLPEnsembleMatchedPrior([10], num_ensemble=2, prior_scale=0.1)
    single_loss = losses.add_data_noise(
        losses.XentLoss(10), data_noise.BootstrapNoise(enn, "exponential")
    )
    logger = MemoryLogger()
    experiment = supervised.Experiment(
        enn,
        losses.average_single_index_loss(single_loss, 2),
        optax.adam(0.1),
        dataset.train_dataset(),
        logger=logger,
        train_log_freq=None,
        eval_datasets=dataset.eval_datasets(),
        eval_metrics={"accuracy": metrics.make_accuracy_calculator()},
        eval_enn_samples=2,
        eval_log_freq=5,
    )
    experiment.train(10)  # A pass over the evaluation data is one batch.
    assert [row["accuracy"] for row in logger.rows][1] == 1
