from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

from enn.networks.resnet.base import EnsembleResNetENN
from enn.networks.resnet.priors import ResnetCnnPrior, ResnetMlpPrior
from tests.support import fast, golden
from tests.support.resnets import IMAGES, TINY


def test_trees_on_32x32_images() -> None:
    images = np.zeros((1, 32, 32, 3), np.float32)
    res_net, state = fast.shapes(EnsembleResNetENN(5, config=TINY), images)
    trees = {
        ResnetMlpPrior: {
            "prior/~/linear_0": {"w": (3072, 10), "b": (10,)},
            "prior/~/linear_1": {"w": (10, 5), "b": (5,)},
        },
        ResnetCnnPrior: {
            "prior_conv": {"w": (10, 10, 3, 4), "b": (4,)},
            "prior_conv_1": {"w": (10, 10, 4, 8), "b": (8,)},
            "prior_conv_2": {"w": (3, 3, 8, 8), "b": (8,)},
            "prior/~/linear_0": {"w": (8, 5), "b": (5,)},
        },
    }
    for make, prior in trees.items():
        params, prior_state = fast.shapes(make(5, config=TINY), images)
        assert params == {**_without_members(res_net), **prior}
        assert prior_state == _without_members(state)


def _without_members(shapes: Any) -> Any:
    return jax.tree.map(lambda s: s[1:], shapes, is_leaf=lambda s: isinstance(s, tuple))


@pytest.mark.slow
@pytest.mark.parametrize("make", [ResnetMlpPrior, ResnetCnnPrior])
def test_prior_is_scaled_and_gets_no_gradients(
    make: Any,
) -> None:
    enn, scaled = make(5, config=TINY), make(5, 2.5, config=TINY)
    params, state = fast.random_params(enn, IMAGES)
    out, _ = jax.jit(enn.apply)(params, state, IMAGES, 0)
    scaled_out, _ = jax.jit(scaled.apply)(params, state, IMAGES, 0)
    np.testing.assert_allclose(scaled_out.prior, 2.5 * out.prior, rtol=1e-5)
    np.testing.assert_allclose(scaled_out.train, out.train, rtol=1e-5)
    assert np.abs(out.prior).max() > 0
    assert sorted(out.extra) == ["final_out", "hidden_0"]

    def loss(params: hk.Params) -> jax.Array:
        return enn.apply(params, state, IMAGES, 0)[0].preds.sum()

    grads = jax.jit(jax.grad(loss))(params)
    for module, values in grads.items():
        is_zero = all(not np.any(value) for value in values.values())
        assert is_zero == module.startswith("prior"), module


def test_mlp_prior_is_that_mlp_of_the_flattened_images() -> None:
    enn = ResnetMlpPrior(5, hidden_sizes=(4,), config=TINY)
    params, state = fast.random_params(enn, IMAGES)
    out, _ = jax.jit(enn.apply)(params, state, IMAGES, 0)
    first, second = params["prior/~/linear_0"], params["prior/~/linear_1"]
    hidden = np.maximum(np.asarray(IMAGES).reshape(2, -1) @ first["w"] + first["b"], 0)
    expected = hidden @ second["w"] + second["b"]
    np.testing.assert_allclose(out.prior, expected, rtol=1e-4, atol=1e-4)


def test_residual_network_draws_its_keys_before_the_prior() -> None:
    enn = ResnetMlpPrior(3, hidden_sizes=(), config=TINY)
    params, _ = jax.jit(enn.init)(golden.keys(0), IMAGES, 0)
    rng = hk.PRNGSequence(0)
    # Three convolutions come before the prior's one layer of 8 * 8 * 3 inputs.
    *_, key = (next(rng) for _ in range(4))
    draw = jax.jit(lambda key: jax.random.truncated_normal(key, -2, 2, (192, 3)))
    expected = draw(key) / np.sqrt(192)
    np.testing.assert_allclose(params["prior/~/linear_0"]["w"], expected, atol=1e-6)


def test_lists_of_different_lengths_raise() -> None:
    with pytest.raises(ValueError, match="output_channels has 2, kernel_shapes has 3"):
        ResnetCnnPrior(5, output_channels=(4, 8))


def test_index_is_that_of_one_member() -> None:
    assert ResnetMlpPrior(5).indexer(golden.keys(3)) == 0


def test_evaluation_network_can_be_initialised() -> None:
    train, test = (
        jax.eval_shape(
            ResnetMlpPrior(5, is_training=is_training, config=TINY).init,
            golden.keys(0),
            IMAGES,
            0,
        )
        for is_training in (True, False)
    )
    assert train == test
