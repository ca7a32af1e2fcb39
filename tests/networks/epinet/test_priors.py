import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.base import OutputWithPrior
from enn.networks.epinet.base import EpinetWithState
from enn.networks.epinet.priors import (
    combine_epinet_and_prior,
    make_cifar_conv_prior,
    make_imagenet_conv_prior,
    make_imagenet_mlp_prior,
)
from enn.networks.indexers import GaussianIndexer
from enn.networks.priors import conv_prior_net
from tests.support import cost, golden

ONES = np.ones((1, 32, 32, 3), np.float32)


@functools.cache
def _cifar_prior() -> Any:
    return make_cifar_conv_prior(2, 10)


def test_cifar_prior_gives_the_golden_numbers() -> None:
    images, index = golden.normal(2, 32, 32, 3), golden.normal(2, seed=8)
    golden.assert_matches(
        "epinet_conv_priors", {"cifar": _cifar_prior()(images, index)}
    )


def test_cifar_prior_of_the_specification() -> None:
    images, index = golden.normal(2, 32, 32, 3, seed=5), jnp.array([1, -1, 0.5])
    values = make_cifar_conv_prior(3)(images, index)
    np.testing.assert_allclose(values[0, :2], [0.052016, 0.118711], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_imagenet_conv_prior, [0.218551, -0.145520]),
        (make_imagenet_mlp_prior, [0.068769, -0.014984]),
    ],
)
def test_imagenet_priors_of_the_specification(make: Any, expected: list[float]) -> None:
    images, index = golden.normal(1, 224, 224, 3, seed=6), jnp.array([1.0, -1.0])
    prior = make(2, num_classes=5)
    values = prior(images, index)
    np.testing.assert_allclose(values[0, :2], expected, atol=1e-5)
    # The order of axes in which the input pipeline hands batches to a TPU.
    transposed = jnp.transpose(images, (1, 2, 3, 0))
    np.testing.assert_array_equal(prior(transposed, index), values)
    for shape in [(1, 32, 32, 3), (2, 224, 224, 1), (224, 224, 3)]:
        with pytest.raises(ValueError, match="inputs must have shape"):
            prior(jnp.ones(shape), index)


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize(
    ("partitionable", "legacy_stream", "transform", "expected"),
    [
        (True, False, jax.jit, [0.015639, 0.000126]),
        (True, True, jax.jit, [-0.064599, 0.301349]),
        (True, True, lambda fn: fn, [-0.064599, 0.301349]),
        (False, False, lambda fn: fn, [-0.064599, 0.301349]),
    ],
)
def test_prior_comes_from_the_stream_asked_for(
    partitionable: bool, legacy_stream: bool, transform: Any, expected: list[float]
) -> None:
    @transform
    def values(images: jax.Array) -> jax.Array:
        prior = make_cifar_conv_prior(2, legacy_stream=legacy_stream)
        assert jax.config.jax_threefry_partitionable == partitionable
        return prior(images, jnp.array([1.0, -1.0]))  # pyrefly: ignore[bad-return]

    with jax.threefry_partitionable(partitionable):
        np.testing.assert_allclose(values(ONES)[0, :2], expected, atol=1e-5)


@pytest.mark.slow
def test_imagenet_mlp_prior_takes_the_stream_asked_for() -> None:
    images, index = golden.normal(1, 224, 224, 3, seed=6), jnp.ones(1)
    make = functools.partial(make_imagenet_mlp_prior, 1, (), 2)
    with jax.threefry_partitionable(False):
        expected = make()(images, index)
    np.testing.assert_array_equal(make(legacy_stream=True)(images, index), expected)
    assert not np.allclose(make()(images, index), expected)


@pytest.mark.slow
def test_value_is_the_sum_of_networks_weighted_by_the_index() -> None:
    # The slow way: every network on its own, its parameters drawn from its own key.
    net = conv_prior_net(4, (2, 3), (3, (2, 4)), (2, 2))
    model = hk.without_apply_rng(hk.transform(net))
    images, index = golden.normal(2, 32, 32, 3), np.array([0.3, -2.0, 1.5])
    rng = hk.PRNGSequence(7)
    next(rng)
    expected = 0.0
    init, apply = jax.jit(model.init), jax.jit(model.apply)
    for key, z in zip(jax.random.split(next(rng), 3), index, strict=True):
        expected += z * np.asarray(apply(init(key, images), images))
    prior = make_cifar_conv_prior(3, 4, 7, (2, 3), (3, (2, 4)))
    np.testing.assert_allclose(prior(images, jnp.asarray(index)), expected, atol=1e-5)


def test_images_of_other_sizes_are_resized() -> None:
    prior = _cifar_prior()
    images = np.random.default_rng(0).normal(size=(2, 48, 40, 3)).astype(np.float32)
    index = np.ones(2, np.float32)
    resize = functools.partial(jax.image.resize, shape=(2, 32, 32, 3))
    resized = jax.jit(functools.partial(resize, method="bilinear"))(images)
    np.testing.assert_allclose(prior(images, index), prior(resized, index), atol=1e-5)


def test_many_indices_run_every_network_once() -> None:
    prior = make_cifar_conv_prior(3, 2, output_channels=(2,))
    images, index = np.ones((4, 32, 32, 3), np.float32), np.ones(3, np.float32)
    one = cost.flops(prior, images, index)
    indices = np.ones((100, 3), np.float32)
    many = cost.flops(jax.vmap(prior, (None, 0)), images, indices)
    assert many < one + 100 * 1.5 * cost.mlp_flops(4, 3, 2)


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (make_cifar_conv_prior, {"kernel_shapes": [5]}, "kernel_shapes has 1"),
        (make_imagenet_conv_prior, {"strides": (5, 5)}, "strides has 2"),
        (make_imagenet_conv_prior, {"output_channels": (4,)}, "output_channels has 1"),
        (make_imagenet_conv_prior, {"strides": (5, 0, 2)}, "strides"),
        (make_cifar_conv_prior, {"kernel_shapes": (5, (0, 3), 5)}, "kernel_shapes"),
        (make_cifar_conv_prior, {"num_ensemble": 0}, "num_ensemble"),
        (make_cifar_conv_prior, {"num_classes": 0}, "num_classes"),
    ],
)
def test_wrong_arguments_raise(make: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_index_of_another_size_raises() -> None:
    with pytest.raises(ValueError, match=r"index must have shape \[2\]"):
        _cifar_prior()(ONES, np.ones(3))


def test_prior_is_added_to_that_of_the_epinet() -> None:
    def apply(params: Any, state: Any, x: Any, index: Any, hidden: Any) -> Any:
        return OutputWithPrior(hidden, x, {"extra": index}), state

    epinet = EpinetWithState(apply, lambda *args: ({}, {}), GaussianIndexer(3))
    combined = combine_epinet_and_prior(
        epinet, lambda x, z: 10 * x * jnp.sum(z), prior_scale=0.5
    )
    x, index, hidden, state = jnp.ones((4, 2)), jnp.arange(3.0), jnp.zeros((4, 2)), {}
    out, new_state = combined.apply({}, state, x, index, hidden)
    np.testing.assert_array_equal(out.prior, np.full((4, 2), 16))
    assert (out.train is hidden, out.extra["extra"] is index) == (True, True)
    assert new_state is state
    assert (combined.init, combined.indexer) == (epinet.init, epinet.indexer)
