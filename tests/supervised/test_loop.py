"""The training loop by itself, against updates written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn.supervised.chunks import Chunk
from enn.supervised.loop import TrainingState, TrainLoop

DATA = np.array([1.0, 2.0, 4.0], np.float32)
ROWS = np.array([[0, 1], [2, 2], [1, 1], [0, 0]], np.int32)


def loss(params, state, batch, key):
    noise = jax.random.normal(key)
    value = jnp.square(params["w"] - batch - noise).mean()
    return value, ({"calls": state["calls"] + 1}, {"noise": noise})


OPTIMIZER = optax.sgd(0.25)
LOOP = TrainLoop([loss], OPTIMIZER)
UNROLLED = TrainLoop([loss], OPTIMIZER, unrolled=True)


def start(w=3.0):
    params = {"w": jnp.float32(w)}
    state = TrainingState(params, {"calls": 0}, OPTIMIZER.init(params))
    return state, jax.random.key(5)


def by_hand(num_steps):
    """d/dw of the mean of (w - x - noise)² is 2 (w - mean of x - noise)."""
    w, key, noises = 3.0, jax.random.key(5), []
    for rows in ROWS[:num_steps]:
        key, subkey = jax.random.split(key)
        noises.append(float(jax.random.normal(subkey)))
        w -= 0.25 * 2 * (w - DATA[rows].mean() - noises[-1])
    return w, key, noises


def test_steps_of_a_chunk_train_in_order():
    expected, key, noises = by_hand(3)
    by_number = Chunk(3, [ROWS], [DATA])
    stacked = Chunk(3, [DATA[ROWS]])
    for chunk in (by_number, stacked):
        trained = LOOP.run(*start(), chunk)
        np.testing.assert_allclose(trained.state.params["w"], expected, rtol=1e-5)
        np.testing.assert_allclose(trained.metrics[0]["noise"], [*noises, 0], rtol=1e-6)
        assert trained.state.network_state["calls"] == 3
        assert (trained.key == key).all()
        assert trained.finite


def test_a_chunk_may_be_trained_in_parts():
    chunk = Chunk(4, [ROWS], [DATA])
    whole = LOOP.run(*start(), chunk)
    part = LOOP.run(*start(), chunk, 0, 3)
    rest = LOOP.run(part.state, part.key, chunk, 3, 4)
    np.testing.assert_array_equal(rest.state.params["w"], whole.state.params["w"])
    np.testing.assert_array_equal(rest.metrics[0]["noise"][:3], 0)


def test_steps_without_a_loop_are_the_same():
    one = Chunk(1, [ROWS[:1]], [DATA])
    trained = UNROLLED.run(*start(), one)
    expected, _, _ = by_hand(1)
    np.testing.assert_allclose(trained.state.params["w"], expected, rtol=1e-5)


def test_losses_that_pause_leave_the_state_and_the_key():
    loop = TrainLoop([loss], OPTIMIZER)
    chunk = Chunk(3, [ROWS], [DATA], [np.array([-1, 0, -1, -1], np.int32)])
    trained = loop.run(*start(), chunk)
    expected, key, (noise,) = by_hand(1)
    np.testing.assert_allclose(trained.state.params["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(trained.metrics[0]["noise"], [0, noise, 0, 0], rtol=1e-6)
    assert (trained.key == key).all()


def test_goes_on_up_to_the_first_step_that_is_not_finite():
    bad = DATA.copy()
    bad[2] = np.inf  # in the second step
    chunk = Chunk(4, [ROWS], [bad])
    assert not LOOP.run(*start(), chunk).finite
    num_steps, state, key, reason = LOOP.run_while_finite(*start(), chunk)
    expected, expected_key, _ = by_hand(1)
    assert (num_steps, reason) == (1, "has a loss that is NaN or infinite")
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)
    assert (key == expected_key).all()
