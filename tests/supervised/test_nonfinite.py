"""Losses and parameters that are NaN or infinite stop training where they are good."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.support import tiny

NUM_STEPS = 60


def make_batches(bad: dict[int, float]) -> Iterator[ArrayBatch]:
    """Batches 0, 1, ..., of which batch 0 initialises; `bad` gives inputs by batch."""
    rng = np.random.default_rng(0)
    for i in range(200):
        x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 1))
        yield ArrayBatch(x=np.full_like(x, bad[i]) if i in bad else x, y=y)


def root_loss(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
    """A loss with an infinite gradient, but a finite value, where x is 0."""
    loss, (state, _) = tiny.loss_fn(enn, params, state, batch, key)
    scale = jnp.abs(batch.x).sum() * params["linear"]["w"].sum() ** 2
    return loss + 1e-6 * jnp.sqrt(scale), (state, {"scale": scale})


def make_experiment(bad: dict[int, float], **kwargs: Any) -> Any:
    return tiny.make_experiment(make_batches(bad), **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad_step", "value"), [(1, np.nan), (17, np.inf), (20, np.nan), (60, np.nan)]
)
def test_a_bad_loss_stops_before_its_step(bad_step: int, value: float) -> None:
    experiment, expected = make_experiment({bad_step: value}), make_experiment({})
    with pytest.raises(supervised.NonFiniteError, match="a loss that is NaN") as raised:
        experiment.train(NUM_STEPS)
    assert isinstance(raised.value, FloatingPointError)
    assert raised.value.step == bad_step
    expected.train(bad_step - 1)
    tiny.assert_same_training(experiment, expected)
    tiny.assert_identical(experiment.logger.rows, expected.logger.rows)
    experiment.train(5)
    assert experiment.step == bad_step + 4
    assert np.isfinite(
        [row["loss"] for row in experiment.logger.rows if row["sgd"]]
    ).all()


@pytest.mark.parametrize("bad_step", [1, 17, 20])
def test_bad_parameters_stop_even_where_the_loss_is_good(bad_step: int) -> None:
    kwargs = {"loss_fn": root_loss, "optimizer": optax.sgd(1e-2)}
    experiment = make_experiment({bad_step: 0.0}, **kwargs)
    expected = make_experiment({}, **kwargs)
    with pytest.raises(
        supervised.NonFiniteError, match="made parameters that"
    ) as error:
        experiment.train(NUM_STEPS)
    assert error.value.step == bad_step
    expected.train(bad_step - 1)
    tiny.assert_same_training(experiment, expected)


def test_training_may_go_on_regardless() -> None:
    experiment = make_experiment({17: np.nan})
    experiment.train(30, on_nonfinite="continue")
    assert experiment.step == 30
    rows = [row for row in experiment.logger.rows if row["sgd"]]
    assert [bool(np.isfinite(row["loss"])) for row in rows] == [True] * 16 + [
        False
    ] * 14
    with pytest.raises(ValueError, match="must be one of 'stop', 'continue'; got 'go'"):
        experiment.train(1, on_nonfinite="go")


@pytest.mark.slow
def test_no_bad_state_is_saved(tmp_path: pathlib.Path) -> None:
    batches = utils.make_batch_iterator(tiny.make_data(), batch_size=1)
    last_row = [int(next(batches).data_index[0, 0]) for _ in range(12)][-1]
    batches.data.y[last_row] = np.inf
    batches.restore({**batches.state(), "position": 0})
    experiment = tiny.make_experiment(batches)
    with pytest.raises(supervised.NonFiniteError, match="Step 11 "):
        experiment.train(NUM_STEPS, save_dir=tmp_path, save_every=1)
    assert supervised.saved_steps(tmp_path) == [8, 9, 10]
    experiment.restore(tmp_path)
    assert np.isfinite(experiment.state.params["linear"]["w"]).all()


def test_one_of_several_losses_stops_all() -> None:
    def make_experiment(bad: dict[int, float]) -> Any:
        often = supervised.MultilossTrainer(tiny.loss_fn, make_batches({}))
        # Its batch 4 is for step 10.
        seldom = supervised.MultilossTrainer(
            tiny.loss_fn, make_batches(bad), lambda step: step % 2 == 0
        )
        return supervised.MultilossExperiment(
            tiny.make_enn(), [often, seldom], optax.adam(1e-2), logger=MemoryLogger()
        )

    experiment, expected = make_experiment({4: np.nan}), make_experiment({})
    with pytest.raises(supervised.NonFiniteError) as error:
        experiment.train(NUM_STEPS)
    assert error.value.step == 10
    expected.train(9)
    tiny.assert_same_training(experiment, expected)
    tiny.assert_identical(experiment.logger.rows, expected.logger.rows)
