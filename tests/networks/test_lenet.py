import logging

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.lenet import EnsembleLeNet5ENN, _max_pool
from tests.support import cost, fast, golden

IMAGES = golden.normal(2, 8, 8, 3)


def test_ensemble_gives_the_golden_numbers() -> None:
    enn = EnsembleLeNet5ENN(4, num_ensemble=2)
    golden.assert_enn_matches("lenet", enn, IMAGES, one_index=True)


def test_tree_and_predictions_of_the_specification() -> None:
    images = golden.normal(2, 8, 8, 3, seed=5)
    enn = EnsembleLeNet5ENN(10, 2)
    params, state = jax.jit(enn.init)(golden.keys(0), images, 1)
    assert jax.tree.map(np.shape, params) == {
        "le_net5/~/conv_2d_0": {"w": (2, 5, 5, 3, 6), "b": (2, 6)},
        "le_net5/~/conv_2d_1": {"w": (2, 5, 5, 6, 16), "b": (2, 16)},
        "le_net5/~/conv_2d_2": {"w": (2, 5, 5, 16, 120), "b": (2, 120)},
        "le_net5/~/linear": {"w": (2, 120, 84), "b": (2, 84)},
        "le_net5/~/logits": {"w": (2, 84, 10), "b": (2, 10)},
    }
    assert not state
    logits, _ = jax.jit(enn.apply)(params, state, images, 1)
    np.testing.assert_allclose(logits[0, :2], [-0.039175, 0.117834], atol=1e-5)


def test_28x28_images_have_1920_features_and_channels_can_be_chosen() -> None:
    images = np.zeros((1, 28, 28, 1), np.float32)
    params, _ = fast.shapes(EnsembleLeNet5ENN(10), images)
    assert params["le_net5/~/linear"]["w"] == (1, 1920, 84)
    enn = EnsembleLeNet5ENN(10, 3, lenet_output_channels=(2, 4))
    params, _ = fast.shapes(enn, images)
    assert params["le_net5/~/conv_2d_1"]["w"] == (3, 5, 5, 2, 4)
    assert params["le_net5/~/linear"]["w"] == (3, 7 * 7 * 4, 84)


def test_many_indices_run_every_member_once() -> None:
    enn = EnsembleLeNet5ENN(4, 3, lenet_output_channels=(2, 4))
    one = cost.flops_at_indices(enn, IMAGES, None)
    assert cost.flops_at_indices(enn, IMAGES, 100) < 3.5 * one


def test_making_and_running_it_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        fast.shapes(EnsembleLeNet5ENN(4), IMAGES)
    assert not [record for record in caplog.records if "jax" not in record.name]


@pytest.mark.parametrize("channels", [(6, 0), (2.5,)])
def test_wrong_channels_raise(channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="lenet_output_channels"):
        fast.shapes(EnsembleLeNet5ENN(4, 1, channels), IMAGES)


@pytest.mark.strict
def test_integer_images_are_taken_as_floats() -> None:
    enn = EnsembleLeNet5ENN(4, lenet_output_channels=(2,))
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    params, state = fast.random_params(enn, images)
    apply = jax.jit(enn.apply)
    logits, _ = apply(params, state, images, 0)
    expected, _ = apply(params, state, images.astype(np.float32), 0)
    np.testing.assert_array_equal(logits, expected)


def test_images_without_a_batch_axis_raise() -> None:
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]"):
        fast.shapes(EnsembleLeNet5ENN(4), IMAGES[0])


def test_last_hidden_layer_is_what_the_logits_are_made_of() -> None:
    plain, exposed = (
        EnsembleLeNet5ENN(4, 2, (2,), expose_hidden=expose) for expose in (False, True)
    )
    params, state = fast.random_params(plain, IMAGES)
    out, _ = jax.jit(exposed.apply)(params, state, IMAGES, 1)
    logits, _ = jax.jit(plain.apply)(params, state, IMAGES, 1)
    np.testing.assert_array_equal(out.train, logits)
    layer = jax.tree.map(lambda leaf: leaf[1], params["le_net5/~/logits"])
    assert out.extra["final_out"].shape == (2, 84)
    expected = out.extra["final_out"] @ layer["w"] + layer["b"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.strict
@pytest.mark.parametrize("size", [(6, 4), (7, 3), (1, 1)])
def test_pooling_and_its_gradient_are_those_of_windows(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    # Few values: most windows have several largest ones, of which the first counts.
    images = jnp.asarray(draw.integers(-1, 2, (5, *size, 3)), jnp.float32)

    def windows(images: jax.Array) -> jax.Array:
        return hk.max_pool(images, (2, 2, 1), (2, 2, 1), "SAME")

    pooled, gradient = jax.vjp(_max_pool, images)
    expected, expected_gradient = jax.vjp(windows, images)
    np.testing.assert_array_equal(pooled, expected)
    cotangent = jnp.asarray(draw.normal(size=pooled.shape), jnp.float32)
    np.testing.assert_array_equal(
        gradient(cotangent)[0], expected_gradient(cotangent)[0]
    )


@pytest.mark.parametrize("position", range(4))
def test_pooling_does_not_hide_nan(position: int) -> None:
    image = np.zeros(4, np.float32)
    image[position] = np.nan
    assert np.isnan(_max_pool(jnp.asarray(image.reshape(1, 2, 2, 1))))
