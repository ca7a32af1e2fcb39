"""Bad input: one clear error before training starts, and the experiment goes on."""

from typing import Any

import haiku as hk
import jax
import numpy as np
import optax
import pytest

from enn import losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.support import tiny
from tests.support.fast import compiled_init

ENN = compiled_init(networks.MLPEnsembleMatchedPrior([2], num_ensemble=2))


def make_data(labels: Any = None, num_data: int = 8) -> ArrayBatch:
    x = np.random.default_rng(0).normal(size=(num_data, 3))
    y = np.arange(num_data)[:, None] % 2 if labels is None else np.asarray(labels)
    return ArrayBatch(x=x, y=y)


def make_experiment(
    data: ArrayBatch | None = None,
    enn: Any = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> Any:
    return supervised.Experiment(
        enn or ENN,
        kwargs.pop("loss_fn", losses.average_single_index_loss(losses.XentLoss(2))),
        optax.adam(1e-2),
        utils.make_batch_iterator(data or make_data(), batch_size),
        logger=MemoryLogger(),
        **kwargs,
    )


@pytest.mark.parametrize("bad", [2, -1, 0.5, np.nan])
def test_labels_anywhere_in_the_data_are_checked_before_training(bad: float) -> None:
    labels = np.zeros((8, 1))
    labels[6] = bad
    with pytest.raises(ValueError, match=r"integers in \[0, 2\), got .* in row 6"):
        make_experiment(make_data(labels), batch_size=2)


def test_labels_of_wrong_rank_are_checked_before_training() -> None:
    with pytest.raises(ValueError, match=r"\[batch, 1\]"):
        make_experiment(make_data(np.zeros((8, 1, 1))))


def test_networks_are_told_from_other_things() -> None:
    with pytest.raises(TypeError, match=r"EpistemicNetwork, .* got function"):
        make_experiment(enn=lambda x: x)
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    with pytest.raises(TypeError, match="wrap_enn_no_state_as_enn"):
        make_experiment(enn=networks.Ensemble(model, 2))


@pytest.mark.parametrize("name", ["train_log_freq", "eval_log_freq"])
def test_negative_frequencies(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got -1"):
        make_experiment(**{name: -1})


def test_number_of_eval_samples() -> None:
    with pytest.raises(ValueError, match="eval_enn_samples must be an integer >= 1"):
        make_experiment(eval_enn_samples=0)


def test_a_loss_that_is_no_scalar() -> None:
    def loss_fn(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
        out, state = enn.apply(params, state, batch.x, enn.indexer(key))
        return out.train[:, 0], (state, {})

    with pytest.raises(ValueError, match=r"scalar loss, got shape \[8\]"):
        make_experiment(loss_fn=loss_fn)


def test_a_loss_that_drops_the_network_state() -> None:
    def net(x: jax.Array) -> jax.Array:
        return hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), is_training=True)

    def loss_fn(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
        out, _ = enn.apply(params, state, batch.x, enn.indexer(key))
        return out.mean(), ({}, {})

    model = hk.without_apply_rng(hk.transform_with_state(net))
    with pytest.raises(ValueError, match="network state of the structure"):
        make_experiment(
            enn=compiled_init(networks.EnsembleWithState(model, 2)), loss_fn=loss_fn
        )


def test_eval_datasets_without_metrics_warn() -> None:
    data = {"test": utils.make_batch_iterator(make_data())}
    with pytest.warns(UserWarning, match="without eval_metrics"):
        make_experiment(eval_datasets=data)


def test_evaluation_data_that_ends_is_named_and_training_can_go_on() -> None:
    batch = next(tiny.make_batches())
    experiment = tiny.make_experiment(eval_datasets={"held out": iter([batch] * 2)})
    with pytest.raises(RuntimeError, match="'held out' has ended"):
        experiment.train(100)
    assert experiment.step == 60
    assert [row["step"] for row in experiment.logger.rows if row["sgd"]] == list(
        range(1, 61)
    )
    experiment.train(17)
    assert experiment.step == 77


@pytest.mark.parametrize("bad", [3, np.zeros((4, 3))])
def test_data_that_is_no_iterator(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"dataset must be an endless iterator.* got "):
        tiny.make_experiment(dataset=bad)


def test_data_need_only_give_the_next_batch() -> None:
    class Batches:
        def __next__(self) -> ArrayBatch:
            return tiny.make_data()

    experiment = tiny.make_experiment(dataset=Batches())
    experiment.train(2)
    assert experiment.step == 2


def test_data_without_a_batch() -> None:
    for empty in (iter([]), []):
        with pytest.raises(ValueError, match="data set is empty"):
            tiny.make_experiment(dataset=empty)


def test_a_loss_at_a_single_index() -> None:
    match = r"XentLoss\(num_classes=2\) is a loss at a single index"
    with pytest.raises(TypeError, match=match):
        make_experiment(loss_fn=losses.XentLoss(2))
    trainer = supervised.MultilossTrainer(losses.XentLoss(2), tiny.make_batches())
    with pytest.raises(TypeError, match=match):
        supervised.MultilossExperiment(ENN, [trainer], optax.sgd(0.1))


@pytest.mark.slow
def test_errors_leave_the_experiment_usable() -> None:
    experiment = make_experiment()
    experiment.train(3)
    with pytest.raises(ValueError, match="num_batches must be an integer >= 0, got -1"):
        experiment.train(-1)
    with pytest.raises(ValueError, match=r"made for inputs of 3 features, got shape"):
        experiment.predict(np.zeros((2, 5)), jax.random.key(0))
    bad = next(utils.make_batch_iterator(make_data(np.zeros((8, 1, 1)))))
    with pytest.raises(ValueError, match=r"\[batch, 1\]"):
        experiment.loss(bad, jax.random.key(0))
    experiment.train(4)
    assert experiment.step == 7
    assert np.isfinite([row["loss"] for row in experiment.logger.rows]).all()


def test_keys_reserved_ahead_are_refused() -> None:
    experiment = tiny.make_experiment()
    experiment.rng.reserve(3)
    with pytest.raises(ValueError, match="reserved ahead"):
        experiment.train(1)
    for _ in range(3):
        next(experiment.rng)
    experiment.train(1)
    assert experiment.step == 1
