"""Same seed, same trajectory as the original."""

import functools
import itertools
from typing import Any

import numpy as np
import optax
import pytest

from enn import losses, metrics, networks, supervised
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from enn.supervised import regression_data
from tests.support import golden, tiny
from tests.support.fast import compiled_init


@functools.cache
def make_ensemble() -> Any:
    enn = networks.MLPEnsembleMatchedPrior([8, 1], golden.X5, num_ensemble=4)
    return compiled_init(enn)


@functools.cache
def make_small_ensemble() -> Any:
    return compiled_init(networks.MLPEnsembleMatchedPrior([4, 1], num_ensemble=3))


def make_epinet() -> Any:
    return compiled_init(networks.epinet.make_mlp_epinet([8, 8, 3], [6], 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make_enn", "single_loss", "kind"),
    [
        ("train_ensemble", make_ensemble, losses.L2Loss(), "regression"),
        ("train_epinet", make_epinet, losses.XentLoss(3), "classification"),
    ],
)
def test_training(name: str, make_enn: Any, single_loss: Any, kind: str) -> None:
    logger, batch = MemoryLogger(), golden.batch(kind)
    experiment = supervised.Experiment(
        make_enn(),
        losses.average_single_index_loss(single_loss, 3),
        optax.adam(1e-2),
        itertools.repeat(batch),
        seed=7,
        logger=logger,
    )
    experiment.train(20)
    golden.assert_matches(
        name,
        {
            "loss": np.array([row["loss"] for row in logger.rows]),
            "step": np.array([row["step"] for row in logger.rows]),
            "params": experiment.state.params,
            "predict": golden.output(experiment.predict(batch.x, golden.keys(3))),
            "final": experiment.loss(batch, golden.keys(4)),
        },
    )


@pytest.mark.slow
def test_training_on_several_losses() -> None:
    logger, batch = MemoryLogger(), golden.batch("regression")
    main = supervised.MultilossTrainer(
        losses.average_single_index_loss(losses.L2Loss(), 2), itertools.repeat(batch)
    )
    prior = supervised.MultilossTrainer(
        losses.RegressionPriorLoss(num_index_sample=3),
        itertools.repeat(batch),
        should_train=lambda step: step % 3 == 0,
        name="prior",
    )
    experiment = supervised.MultilossExperiment(
        make_ensemble(),
        [main, prior],
        optax.adam(1e-2),
        seed=5,
        logger=logger,
    )
    experiment.train(9)
    golden.assert_matches(
        "train_multiloss",
        {
            "loss": np.array([row["loss"] for row in logger.rows]),
            "params": experiment.state.params,
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("evaluate", "expected"),
    [
        (False, [1.0358673, 2.9238455, 2.7840517, 2.7741156]),
        (True, [1.0358673, 2.7926364, 1.0300288, 2.9074066]),
    ],
)
def test_evaluation_draws_from_the_keys_of_training(
    evaluate: bool, expected: list[float]
) -> None:
    logger = MemoryLogger()
    evaluation: dict[str, Any] = {}
    if evaluate:
        evaluation["eval_datasets"] = {"train": regression_data.make_dataset()}
        evaluation["eval_metrics"] = {"size": lambda logits, labels: logits.size}
    experiment = supervised.Experiment(
        make_small_ensemble(),
        losses.average_single_index_loss(losses.L2Loss(), 2),
        optax.adam(1e-3),
        regression_data.make_dataset(),
        logger=logger,
        **evaluation,
    )
    experiment.train(4)
    rows = [row for row in logger.rows if row["sgd"]]
    np.testing.assert_allclose([row["loss"] for row in rows], expected, rtol=1e-4)
    assert len(logger.rows) == (8 if evaluate else 4)


@pytest.mark.slow
def test_evaluation_passes_logits_of_all_samples_to_the_metrics() -> None:
    seen = []

    def metric(logits: Any, labels: Any) -> Any:
        seen.append((logits.shape, labels.shape))
        return metrics.make_accuracy_calculator()(logits, labels)

    batch = ArrayBatch(x=tiny.make_data().x, y=np.zeros((12, 1), int))
    experiment = supervised.Experiment(
        tiny.make_enn(num_outputs=2),
        tiny.loss_fn,
        optax.adam(1e-3),
        tiny.make_batches(),
        logger=MemoryLogger(),
        eval_datasets={"test": itertools.repeat(batch)},
        eval_metrics={"accuracy": metric},
        eval_enn_samples=7,
        eval_log_freq=2,
    )
    experiment.train(4)
    assert seen == [((7, 12, 2), (12, 1))] * 2
