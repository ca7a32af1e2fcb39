from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import losses
from enn.networks.epinet.mlp import make_mlp_epinet
from enn.networks.priors import is_trainable, trainable_mask
from tests.support import golden

PARAMS = {
    name: {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    for name in ("base_mlp/~/linear_0", "prior_epinet/~/mlp/~/linear_0", "prior_conv_1")
}


@pytest.mark.parametrize(
    ("module_name", "trainable"),
    [
        ("train_epinet/~/mlp/~/linear_0", True),
        ("prior_epinet/~/mlp/~/linear_0", False),
        ("a_prior_epinet/~/mlp/~/linear_1", False),
        ("net/~/prior_epinet_1/~/mlp/~/linear_1", False),
        ("prior/~/linear_0", False),
        ("prior_1/~/linear_0", False),
        ("prior_conv", False),
        ("prior_conv_2", False),
        ("res_net/~/initial_conv", True),
        ("prior_epinet_trained/~/mlp", True),
        ("interior/~/linear_0", True),
        ("mlp_prior", True),
        ("prior_convolution", True),
    ],
)
def test_modules_are_told_apart_by_their_path(
    module_name: str, trainable: bool
) -> None:
    assert is_trainable(module_name, "w", jnp.ones(3)) is trainable


@pytest.mark.strict
def test_decoupled_weight_decay_leaves_priors_as_they_are() -> None:
    optimizer = optax.add_decayed_weights(0.1, mask=trainable_mask)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    for module_name, module in updates.items():
        expected = 0.1 if module_name.startswith("base") else 0
        for value in module.values():
            np.testing.assert_allclose(value, expected)


def test_masked_optimizer_updates_what_trains() -> None:
    optimizer = optax.masked(optax.scale(2.0), trainable_mask(PARAMS))
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS))
    assert float(updates["base_mlp/~/linear_0"]["w"][0, 0]) == 2
    assert float(updates["prior_epinet/~/mlp/~/linear_0"]["w"][0, 0]) == 1


def test_it_is_a_predicate_of_the_weight_decay_loss() -> None:
    def zero_loss(*args: Any) -> Any:
        return 0.0, ({}, {})

    decayed = losses.add_l2_weight_decay(zero_loss, 1.0, is_trainable)
    enn = make_mlp_epinet([4, 2], [5], 3, name="a")
    batch, key = None, golden.keys(0)
    kept, _ = decayed(enn, PARAMS, {}, batch, key)
    base_alone = {"base_mlp/~/linear_0": PARAMS["base_mlp/~/linear_0"]}
    expected, _ = decayed(enn, base_alone, {}, batch, key)
    assert kept == expected > 0


def test_epinet_parameters_that_get_no_gradient_are_those_masked_out() -> None:
    enn = make_mlp_epinet([4, 2], [5], 3, name="a")
    x, index = golden.normal(4, 3), jnp.ones(3)
    params, _ = jax.eval_shape(enn.init, golden.keys(0), x, index)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)

    def loss(params: hk.Params) -> Any:
        return enn.apply(params, {}, x, index)[0].preds.sum()

    grads = jax.jit(jax.grad(loss))(params)
    assert trainable_mask(params) == {
        name: {n: bool(np.any(value)) for n, value in module.items()}
        for name, module in grads.items()
    }
