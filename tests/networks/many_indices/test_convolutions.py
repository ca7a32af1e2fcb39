"""Ensembles of convolutional networks cost as much as their members together.

Mapped kernels make grouped convolutions, which cost the square of their number on a
CPU: they must not occur, neither forward nor backward.
"""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import base, networks
from enn.networks.forwarders import predict_at_indices
from tests.support import cost, fast, resnets

IMAGES = resnets.IMAGES


def _lenet(num_ensemble: int) -> base.EpistemicNetwork:
    return networks.EnsembleLeNet5ENN(3, num_ensemble, (2, 3))


def _vgg(num_ensemble: int) -> base.EpistemicNetwork:
    sizes = {"vgg_output_channels": (2, 3), "vgg_strides": (1, 2)}
    return networks.EnsembleVGGENN(3, num_ensemble, **sizes)


def _resnet_v1(num_ensemble: int) -> base.EpistemicNetwork:
    return networks.EnsembleResNetENN(3, num_ensemble, config=resnets.V1)


def _resnet_v2(num_ensemble: int) -> base.EpistemicNetwork:
    return networks.EnsembleResNetENN(3, num_ensemble, config=resnets.V2)


def _own_model(num_ensemble: int) -> base.EpistemicNetwork:
    net = networks.epinet.priors.conv_prior_net(3, (2, 3), (3, 3), (1, 1))
    model = hk.without_apply_rng(hk.transform_with_state(net))
    return networks.EnsembleWithState(model, num_ensemble)


def _training_loss(enn: base.EpistemicNetwork, num_indices: int) -> Any:
    def loss(params: Any, state: Any, images: jax.Array) -> jax.Array:
        def one(index: Any) -> jax.Array:
            out, _ = enn.apply(params, state, images, index)
            return jnp.square(networks.parse_net_output(out)).mean()

        indices = jnp.arange(num_indices) % enn.indexer.num_ensemble
        return jax.vmap(one)(indices).mean()

    return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [_lenet, _vgg, _resnet_v1, _resnet_v2, _own_model], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(("num_indices", "runs"), [(2, 2), (4, 3)])
def test_a_step_has_the_convolutions_of_each_member(
    make: Callable[[int], base.EpistemicNetwork], num_indices: int, runs: int
) -> None:
    def convolutions(num_ensemble: int, num_indices: int) -> list[int]:
        enn = make(num_ensemble)
        step = jax.value_and_grad(_training_loss(enn, num_indices))
        return cost.convolutions(step, *fast.abstract_variables(enn, IMAGES), IMAGES)

    one = convolutions(1, 1)
    assert len(one) >= 5  # Two forward, and three backward.
    assert convolutions(3, num_indices) == runs * one == [1] * runs * len(one)


@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey])
def test_members_with_randomness_of_their_own_are_not_grouped(key: Any) -> None:
    def net(images: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(hk.Conv2D(3, 3)(images))
        hidden = hk.dropout(hk.next_rng_key(), 0.5, hidden)
        return hk.Linear(2)(hk.Flatten()(jax.nn.relu(hk.Conv2D(2, 3)(hidden))))

    enn = networks.make_ensemble(networks.wrap_stochastic_fn_as_enn(net), 2)
    indices = jax.vmap(enn.indexer)(jax.random.split(key(0), 3))

    def loss(params: Any) -> jax.Array:
        def one(index: Any) -> jax.Array:
            return jnp.square(enn.apply(params, {}, IMAGES, index)[0]).mean()

        return jax.vmap(one)(indices).mean()

    params, _ = fast.abstract_variables(enn, IMAGES)
    assert cost.convolutions(jax.grad(loss), params) == [1] * 3 * (2 + 3)


@pytest.mark.slow
def test_a_compiled_step_is_linear_in_the_number_of_members() -> None:
    def flops(num_ensemble: int) -> float:
        enn = _lenet(num_ensemble)
        step = jax.jit(jax.value_and_grad(_training_loss(enn, num_ensemble)))
        lowered = step.lower(*fast.abstract_variables(enn, IMAGES), IMAGES)
        return lowered.compile().cost_analysis()["flops"]

    assert flops(4) <= 1.1 * 4 * flops(1)


def test_predictions_do_not_loop_over_convolutions() -> None:
    # XLA runs convolutions in a loop several times slower on a CPU.
    enn = networks.EnsembleLeNet5ENN(10, 5)
    images = jax.ShapeDtypeStruct((200, 32, 32, 3), np.float32)

    def predict(params: Any, state: Any, images: jax.Array) -> Any:
        indices = jnp.arange(100) % 5
        return predict_at_indices(enn, params, state, images, indices)

    variables = fast.abstract_variables(enn, images)
    assert cost.convolutions(predict, *variables, images) == [1] * 5 * 3
    assert " scan" not in str(jax.make_jaxpr(predict)(*variables, images))


@pytest.mark.slow
def test_prior_functions_have_no_grouped_convolutions() -> None:
    prior = networks.epinet.make_cifar_conv_prior(3, 2, output_channels=(2, 3))
    indices = np.ones((4, 3), np.float32)
    forward = jax.vmap(prior, in_axes=(None, 0))
    assert cost.convolutions(forward, np.ones((2, 32, 32, 3)), indices) == [1] * 6
