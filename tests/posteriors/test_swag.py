"""SWAG: its moments, its samples, and statistics of batch normalisation for each."""

import pathlib
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from enn import networks, posteriors, supervised, utils
from enn.datasets import ArrayBatch
from tests.support import tiny
from tests.support.fast import key

SNAPSHOTS = np.array([[1, 0], [1.5, -0.4], [0.8, 0.6], [1.2, 0.2]], np.float32)


def record(snapshots: Any, rank: int = 3) -> Any:
    """Returns the optimiser state after these snapshots."""
    optimizer = posteriors.track_moments(optax.identity(), every=1, rank=rank)
    params = jnp.zeros_like(SNAPSHOTS[0, : snapshots.shape[1]])
    state = optimizer.init(params)
    for snapshot in snapshots:
        _, state = optimizer.update(snapshot, state, params)
    return state


def standard_normals(key: Any, k: int, dim: int) -> tuple[Any, Any]:
    low_rank_key, diagonal_key = jax.random.split(key)
    (diagonal_key,) = jax.random.split(diagonal_key, 1)
    w = jax.random.normal(low_rank_key, [k])
    return w, jax.random.normal(diagonal_key, [dim])


def covariance(moments: Any, scale: float = 0.5) -> Any:
    low_rank = moments.deviations.T @ moments.deviations
    k = len(moments.deviations)
    return scale * (np.diag(moments.variance) + low_rank / (k - 1))


@pytest.mark.strict
def test_moments() -> None:
    moments = posteriors.get_moments(record(SNAPSHOTS))
    assert moments.count == 4
    np.testing.assert_allclose(moments.mean, [1.125, 0.1], rtol=1e-5)
    np.testing.assert_allclose(moments.variance, [0.066875, 0.13], rtol=1e-5)
    # Of the mean that holds the snapshot; of the old mean .1490625 would come first.
    np.testing.assert_allclose(
        moments.deviations, [[0.25, -0.2], [-0.3, 0.5333333], [0.075, 0.1]], rtol=1e-5
    )
    np.testing.assert_allclose(
        covariance(moments),
        [[0.07296875, -0.050625], [-0.050625, 0.1486111]],
        rtol=1e-5,
    )


def test_variance_that_is_small_beside_the_mean() -> None:
    snapshots = np.array([[1000], [1000 + 1 / 1024], [1000 + 2 / 1024]], np.float32)
    variance = posteriors.get_moments(record(snapshots)).variance
    # The mean of squares less the square of the mean is .0625 in float32.
    np.testing.assert_allclose(variance, [6.357829e-7], rtol=1e-4)


def test_samples_follow_their_formula() -> None:
    moments = posteriors.get_moments(record(SNAPSHOTS))
    w, z = np.array([0.5, -1, 2]), np.array([1, -1])
    deviation = w @ moments.deviations / np.sqrt(2)
    expected = moments.mean + np.sqrt(0.5) * (np.sqrt(moments.variance) * z + deviation)
    np.testing.assert_allclose(expected, [1.5953592, -0.3716176], rtol=1e-5)
    samples = posteriors.draw_swag_samples(moments, jax.random.key(3), num_samples=4)
    assert samples.shape == (4, 2)
    for i in range(4):
        w, z = standard_normals(jax.random.split(jax.random.key(3), 4)[i], 3, 2)
        low_rank = w @ moments.deviations / np.sqrt(2)
        std = np.sqrt(moments.variance)
        expected = moments.mean + np.sqrt(0.5) * (std * z + low_rank)
        np.testing.assert_allclose(samples[i], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "scale"), [(3, 0.5), (20, 0.5), (2, 1.0)])
def test_samples_have_the_covariance(rank: int, scale: float) -> None:
    """With fewer snapshots than the rank, as many as there are count."""
    moments = posteriors.get_moments(record(SNAPSHOTS, rank))
    assert len(moments.deviations) == min(4, rank)
    num_samples = 40_000
    samples = posteriors.draw_swag_samples(moments, key(0), num_samples, scale)
    expected = covariance(moments, scale)
    # The standard error of a covariance of normals.
    variances = np.diag(expected)
    standard_error = np.sqrt(
        (np.outer(variances, variances) + expected**2) / num_samples
    )
    assert (np.abs(np.cov(samples.T) - expected) < 4 * standard_error).all()
    error = np.abs(samples.mean(0) - moments.mean)
    assert (error < 4 * np.sqrt(variances / num_samples)).all()


def test_leaves_are_drawn_apart_and_half_precision_keeps_its_digits() -> None:
    optimizer = posteriors.track_moments(optax.identity(), every=1, rank=2)
    params = {"a": jnp.zeros([3], jnp.bfloat16), "b": {"w": jnp.zeros([3])}}
    state = optimizer.init(params)
    for value in (1.0, 3.0):
        grads = jax.tree.map(lambda p, v=value: jnp.full_like(p, v), params)
        _, state = jax.jit(optimizer.update)(grads, state, params)
    moments = posteriors.get_moments(state)
    for leaf in jax.tree.leaves(moments.variance):
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, 1)
    samples = posteriors.draw_swag_samples(moments, key(0), 2)
    assert not np.any(samples["a"] == samples["b"]["w"])


def test_wrong_settings() -> None:
    sgd = optax.sgd(0.1)
    moments = posteriors.get_moments(record(SNAPSHOTS))
    for call, message in (
        (lambda: posteriors.track_moments(sgd, 1, rank=1), "rank must be at least 2"),
        (lambda: posteriors.track_moments(sgd, 1, rank=0), "rank must be an integer"),
        (lambda: posteriors.track_moments(sgd, 0), "every must be an integer >= 1"),
        (
            lambda: posteriors.get_moments(record(SNAPSHOTS[:1])),
            "at least 2 snapshots, got 1",
        ),
        (
            lambda: posteriors.draw_swag_samples(moments._replace(count=1), key(0)),
            "at least 2 snapshots, got 1",
        ),
        (
            lambda: posteriors.get_moments(record(SNAPSHOTS[:0])),
            "Nothing is recorded yet",
        ),
        (lambda: posteriors.get_moments(sgd.init(0.0)), "made by posteriors.track_mom"),
        (
            lambda: posteriors.draw_swag_samples(moments, key(0), 0),
            "num_samples must be an integer",
        ),
        (
            lambda: posteriors.draw_swag_samples(moments, key(0), scale=-1.0),
            "scale must be >= 0, got -1.0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def make_run() -> Any:
    optimizer = posteriors.track_moments(optax.sgd(0.02, 0.9), every=6, burn_in=5)
    return tiny.make_experiment(optimizer=optimizer)


@pytest.mark.slow
def test_an_experiment_resumes_in_the_middle_of_recording(
    tmp_path: pathlib.Path,
) -> None:
    whole = make_run()
    by_hand = []
    for step in range(1, 31):
        whole.train(1)
        if step in (5, 11, 17, 23, 29):
            by_hand.append(np.asarray(whole.state.params["linear"]["w"], float))
    moments = posteriors.get_moments(whole.state.opt_state)
    np.testing.assert_allclose(
        moments.mean["linear"]["w"], np.mean(by_hand, 0), rtol=1e-5
    )
    np.testing.assert_allclose(
        moments.variance["linear"]["w"], np.var(by_hand, 0), rtol=1e-4
    )
    first = make_run()
    first.train(19, save_dir=tmp_path)
    resumed = make_run()
    resumed.restore(tmp_path)
    resumed.train(11)
    tiny.assert_same_training(resumed, whole)


def batch_norm_nets() -> tuple[Any, Any]:
    """Returns a network for training and one for evaluation."""

    def make(is_training: bool) -> Any:
        def net(x: jax.Array) -> jax.Array:
            x = hk.Linear(2, with_bias=False)(x)
            x = hk.BatchNorm(True, True, 0.9)(x, is_training=is_training)
            return hk.Linear(1, with_bias=False)(x)

        return networks.wrap_net_fn_as_enn(net)

    return make(True), make(False)


DATA = ArrayBatch(
    x=np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32),
    y=np.zeros([7, 1], np.float32),
)
BATCHES = [jax.tree.map(lambda a, s=s: a[s], DATA) for s in (slice(4), slice(4, 7))]


@pytest.mark.slow
def test_statistics_of_batch_norm_are_those_of_each_sample() -> None:
    train_enn, eval_enn = batch_norm_nets()
    init = jax.jit(jax.vmap(train_enn.init, (0, None, None)))
    samples, states = init(jax.random.split(key(0), 3), DATA.x, key(1))
    init_state = jax.tree.map(lambda leaf: leaf[0], states)
    states = posteriors.recompute_state(train_enn, samples, init_state, iter(BATCHES))
    mean, variance = (
        states[f"batch_norm/~/{name}_ema"]["average"] for name in ("mean", "var")
    )
    counters = states["batch_norm/~/mean_ema"]["counter"]
    np.testing.assert_array_equal(counters, [1, 1, 1])
    for i in range(3):
        hidden = [np.asarray(b.x @ samples["linear"]["w"][i]) for b in BATCHES]
        expected = np.concatenate(hidden).mean(0)
        np.testing.assert_allclose(mean[i, 0], expected, rtol=1e-4, atol=1e-6)
        # Each batch's variance, weighted by its rows.
        expected = sum(len(h) * h.var(0) for h in hidden) / 7
        np.testing.assert_allclose(variance[i, 0], expected, rtol=1e-4)
    net = networks.from_network_samples(eval_enn, samples, states)
    params, state = (samples, states)
    out, _ = net.apply(params, state, DATA.x, 1)
    normal = (DATA.x @ samples["linear"]["w"][1] - mean[1]) / np.sqrt(
        variance[1] + 1e-5
    )
    expected = normal @ samples["linear_1"]["w"][1]
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-5)


def test_averages_of_flax_are_exact_without_momentum() -> None:
    module = linen.BatchNorm(use_running_average=False, momentum=0.0)
    net = networks.from_flax(module)
    params, init_state = net.init(key(0), DATA.x, key(1))
    samples = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    states = posteriors.recompute_state(net, samples, init_state, BATCHES)
    np.testing.assert_allclose(
        states["batch_stats"]["mean"], np.stack([DATA.x.mean(0)] * 2), rtol=1e-4
    )


def test_a_network_without_state_has_none() -> None:
    net = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1)(x))
    samples = {"linear": {"w": np.ones([2, 3, 1]), "b": np.ones([2, 1])}}
    samples = jax.tree.map(np.float32, samples)
    assert posteriors.recompute_state(net, samples, {}, DATA) == {}


def test_data_that_cannot_be_passed_once() -> None:
    net, _ = batch_norm_nets()
    replay = supervised.Replay(capacity=3, batch_size=2)
    replay.add(DATA.x[:3], DATA.y[:3])
    for data in (utils.make_batch_iterator(DATA), replay):
        with pytest.raises(
            TypeError, match=r"endless: give what it reads, its `\.data`"
        ):
            posteriors.recompute_state(net, {}, {}, data)
    empty = ArrayBatch(x=DATA.x[:0], y=DATA.y[:0])
    for data in ([], empty, [empty, empty]):
        with pytest.raises(ValueError, match="at least one row"):
            posteriors.recompute_state(net, {}, {}, data)


@pytest.mark.slow
def test_empty_batches_change_nothing() -> None:
    net, _ = batch_norm_nets()
    params, init_state = net.init(key(0), DATA.x, key(1))
    samples = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    empty = ArrayBatch(x=DATA.x[:0], y=DATA.y[:0])
    got, want = (
        posteriors.recompute_state(net, samples, init_state, batches)
        for batches in ([empty, DATA, empty], DATA)
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)
