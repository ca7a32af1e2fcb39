"""What a recorder takes, and that a run which was interrupted recorded the same."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import networks, posteriors
from enn.posteriors.tracking import RecorderState
from tests.support import tiny


def count_up(num_steps: int, *args: Any, **kwargs: Any) -> Any:
    """Returns the state after recording θ_t = t."""
    optimizer = posteriors.track_samples(optax.sgd(1.0), *args, **kwargs)
    params = {"w": jnp.zeros([])}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(num_steps):
        updates, state = update({"w": -jnp.ones([])}, state, params)
        params = optax.apply_updates(params, updates)
    return state


@pytest.mark.parametrize(
    ("num_steps", "args", "expected"),
    [
        (10, (3, 2, 3), [5, 7, 9]),
        (8, (3, 2, 3), [3, 5, 7]),
        (5, (3, 2, 3), [3, 5]),
        (6, (9, 2), [2, 4, 6]),
        (3, (2, 1), [2, 3]),
        (7, (1, 5, 0), [5]),
    ],
)
def test_takes_the_last_samples_in_order(
    num_steps: int, args: Any, expected: Any
) -> None:
    samples = posteriors.get_samples(count_up(num_steps, *args))
    np.testing.assert_array_equal(samples["w"], expected)


@pytest.mark.parametrize(
    ("num_steps", "args", "first"), [(2, (3, 2, 3), 3), (3, (1, 4), 4), (0, (1, 1), 1)]
)
def test_before_the_first_sample(num_steps: int, args: Any, first: int) -> None:
    with pytest.raises(ValueError, match=f"taken after step {first}, and this is"):
        posteriors.get_samples(count_up(num_steps, *args))
    assert len(posteriors.get_samples(count_up(first, *args))["w"]) == 1


def test_the_recorder_is_found_anywhere() -> None:
    params = jnp.zeros([2])
    inner = posteriors.track_samples(optax.sgd(1.0), 2, every=1)
    outer = optax.chain(optax.identity(), inner)
    _, state = outer.update(params, outer.init(params), params)
    assert posteriors.get_samples((None, {"a": state})).shape == (1, 2)
    twice = posteriors.track_samples(inner, 2, every=1).init(params)
    assert isinstance(twice.inner, RecorderState)
    for opt_state, number in ((optax.adam(1e-3).init(params), 0), (twice, 2)):
        with pytest.raises(
            ValueError, match=rf"made by posteriors\.track_samples, got {number}"
        ):
            posteriors.get_samples(opt_state)


def test_updates_are_those_of_the_optimizer() -> None:
    params, grads = jnp.ones([2]), jnp.array([0.3, -0.2])
    adam = optax.adam(1e-2)
    recorder = posteriors.track_samples(adam, 2, every=1)
    updates, state = recorder.update(grads, recorder.init(params), params)
    expected, _ = adam.update(grads, adam.init(params), params)
    np.testing.assert_array_equal(updates, expected)
    np.testing.assert_array_equal(posteriors.get_samples(state), [params + expected])
    with pytest.raises(ValueError, match="needs the parameters"):
        recorder.update(grads, recorder.init(params))


def test_samples_have_the_type_of_the_parameters() -> None:
    params = {"a": jnp.ones([2], jnp.bfloat16), "b": np.ones([1], np.float32)}
    recorder = posteriors.track_samples(optax.sgd(0.1), 2, every=1)
    _, state = jax.jit(recorder.update)(params, recorder.init(params), params)
    samples = posteriors.get_samples(state)
    assert samples["a"].dtype == jnp.bfloat16
    assert samples["b"].dtype == np.float32


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0, 1), "num_samples must be an integer >= 1, got 0"),
        ((1, 0), "every must be an integer >= 1, got 0"),
        ((1, 1, -1), "burn_in must be an integer >= 0, got -1"),
    ],
)
def test_wrong_settings(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        posteriors.track_samples(optax.sgd(1.0), *args)


def make_sampling(**kwargs: Any) -> Any:
    """An experiment that samples, and one step of which was seen by no other."""
    sampler = posteriors.sghmc(1e-2, 12, seed=4)
    optimizer = posteriors.track_samples(sampler, 4, every=7, burn_in=10)
    return tiny.make_experiment(optimizer=optimizer, **kwargs)


@pytest.mark.slow
@pytest.mark.strict
def test_an_experiment_resumes_in_the_middle_of_recording(
    tmp_path: pathlib.Path,
) -> None:
    whole = make_sampling()
    by_hand = []
    for step in range(1, 51):
        whole.train(1)
        if step in (24, 31, 38, 45):
            by_hand.append(np.asarray(whole.state.params["linear"]["w"]))
    samples = posteriors.get_samples(whole.state.opt_state)
    np.testing.assert_array_equal(samples["linear"]["w"], by_hand)

    first = make_sampling()
    first.train(29, save_dir=tmp_path, save_every=13)
    for step in (13, 29):
        resumed = make_sampling()
        resumed.restore(tmp_path, step)
        resumed.train(50 - step)
        tiny.assert_same_training(resumed, whole)


def test_samples_of_an_experiment_are_a_network() -> None:
    experiment = make_sampling()
    experiment.train(31)
    samples = posteriors.get_samples(experiment.state.opt_state)
    states = {"calls": {"count": jnp.arange(4)}}
    net = networks.from_network_samples(
        experiment.enn, samples, states, jax.random.PRNGKey(0)
    )
    inputs = np.ones([2, 3], np.float32)
    params, state = net.init(jax.random.PRNGKey(0), inputs, 0)
    logits = networks.make_batch_fwd(net, 30)(params, state, inputs)
    assert logits.shape == (30, 2, 1)
    assert len(np.unique(np.asarray(logits)[:, 0, 0])) == 4
