"""Training several losses in turn against the same written one update at a time."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.support import tiny


def make_dataset(seed: int, batch_size: int = 4) -> Iterator[ArrayBatch]:
    return utils.make_batch_iterator(tiny.make_data(seed), batch_size)


def absolute_loss(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
    out, state = enn.apply(params, state, batch.x, enn.indexer(key))
    return jnp.abs(out - batch.y).mean(), (state, {})


ENN = tiny.make_enn()
OPTIMIZER = optax.adamw(1e-2)


def make_experiment(
    should_train: Any, first: Any = None, second: Any = None, **kwargs: Any
) -> Any:
    trainers = [
        supervised.MultilossTrainer(
            tiny.loss_fn, first or make_dataset(0), name="first"
        ),
        supervised.MultilossTrainer(
            absolute_loss, second or make_dataset(1, 3), should_train, "second"
        ),
    ]
    return supervised.MultilossExperiment(
        ENN, trainers, OPTIMIZER, logger=MemoryLogger(), **kwargs
    )


@functools.cache
def update_with(loss_fn: Any) -> Any:
    @jax.jit
    def run(params: Any, state: Any, opt_state: Any, batch: Any, key: Any) -> Any:
        (loss, (state, _)), grads = jax.value_and_grad(
            lambda p: loss_fn(ENN, p, state, batch, key), has_aux=True
        )(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

    return run


def one_at_a_time(num_steps: int, should_train: Any) -> tuple[Any, list[Any]]:
    rng = hk.PRNGSequence(0)
    datasets = [make_dataset(0), make_dataset(1, 3)]
    init_x = next(datasets[0]).x
    index = ENN.indexer(next(rng))
    params, state = ENN.init(next(rng), init_x, index)
    opt_state, rows = OPTIMIZER.init(params), []
    updates = [update_with(tiny.loss_fn), update_with(absolute_loss)]
    for step in range(1, num_steps + 1):
        for t, name in enumerate(("first", "second")):
            if t == 0 or should_train(step):
                params, state, opt_state, loss = updates[t](
                    params, state, opt_state, next(datasets[t]), next(rng)
                )
                rows.append((step, name, loss))
    return (params, state), rows


@pytest.mark.parametrize("every", [1, 3, 100])
def test_equals_one_update_at_a_time(every: int) -> None:
    def should_train(step: int) -> bool:
        return step % every == 0

    experiment = make_experiment(should_train)
    experiment.train(11)
    experiment.train(9)
    variables, expected = one_at_a_time(20, should_train)
    rows = [(r["step"], r["trainer"], r["loss"]) for r in experiment.logger.rows]
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    np.testing.assert_allclose(
        [row[2] for row in rows], [row[2] for row in expected], rtol=1e-5
    )
    for leaf, want in zip(
        jax.tree.leaves(experiment.state[:2]), jax.tree.leaves(variables), strict=True
    ):
        np.testing.assert_allclose(leaf, want, rtol=1e-4, atol=1e-6)


def test_trainers_may_share_one_iterator() -> None:
    shared = make_dataset(0)
    experiment = make_experiment(lambda step: True, shared, shared)
    experiment.train(5)
    assert shared.state()["position"] == (1 + 2 * 5) * 4


def test_data_that_end_within_a_step_leave_the_updates_made() -> None:
    second = itertools.islice(make_dataset(1, 3), 4)
    experiment = make_experiment(lambda step: True, second=second)
    with pytest.raises(StopIteration, match="ended after step 5"):
        experiment.train(20)
    updates = [(row["step"], row["trainer"]) for row in experiment.logger.rows]
    assert updates[-3:] == [(4, "first"), (4, "second"), (5, "first")]
    assert experiment.step == 5


def test_evaluates_every_loss_on_a_batch_of_its_own() -> None:
    dataset = make_dataset(2)
    experiment = make_experiment(
        lambda step: False, eval_datasets={"test": dataset}, eval_log_freq=2
    )
    experiment.train(4)
    rows = [row for row in experiment.logger.rows if not row["sgd"]]
    assert [(r["step"], r["dataset"], r["trainer"]) for r in rows] == [
        (2, "test", "first"),
        (2, "test", "second"),
        (4, "test", "first"),
        (4, "test", "second"),
    ]
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert dataset.state()["position"] == 4 * 4


def test_exposes_the_trainers_and_the_first_ones_data_and_loss() -> None:
    first = make_dataset(0)
    experiment = make_experiment(lambda step: step > 3, first)
    assert experiment.dataset is first
    assert [trainer.name for trainer in experiment.pure_trainers] == ["first", "second"]
    assert not experiment.pure_trainers[1].should_train(3)
    batch, key = next(first), jax.random.key(1)
    params, network_state, _ = experiment.state
    loss_fn = jax.jit(functools.partial(tiny.loss_fn, experiment.enn))
    expected, _ = loss_fn(params, network_state, batch, key)
    np.testing.assert_allclose(experiment.loss(batch, key), expected, rtol=1e-6)
    assert isinstance(experiment.state, supervised.TrainingState)


def test_needs_a_trainer() -> None:
    with pytest.raises(ValueError, match="at least one MultilossTrainer"):
        supervised.MultilossExperiment(ENN, [], optax.adam(1e-3))
