import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.vgg import VGG, EnsembleVGGENN
from tests.support import cost, fast, golden

IMAGES = np.random.default_rng(2).normal(size=(2, 8, 8, 3)).astype(np.float32)
SMALL = {"vgg_output_channels": (4, 6), "vgg_strides": (1, 2)}


@pytest.mark.slow
def test_ensemble_gives_the_golden_numbers() -> None:
    left_out = r"^\|out|state\|.*batchnorm_10"
    enn, images = EnsembleVGGENN(3), golden.normal(2, 8, 8, 3)
    golden.assert_enn_matches("vgg", enn, images, one_index=True, left_out=left_out)


def test_tree_and_predictions_of_the_specification() -> None:
    images = golden.normal(2, 8, 8, 3, seed=5)
    enn = EnsembleVGGENN(10, 2, **SMALL)
    params, state = fast.shapes(enn, images)
    assert params == {
        "vgg/~/conv_2d_0": {"w": (2, 3, 3, 3, 4), "b": (2, 4)},
        "vgg/~/batchnorm_0": {"offset": (2, 1, 1, 1, 4)},
        "vgg/~/conv_2d_1": {"w": (2, 3, 3, 4, 6), "b": (2, 6)},
        "vgg/~/batchnorm_1": {"offset": (2, 1, 1, 1, 6)},
        "vgg/~/logits": {"w": (2, 6, 10), "b": (2, 10)},
    }
    average = {"counter": (2,), "hidden": (2, 1, 1, 1, 6), "average": (2, 1, 1, 1, 6)}
    assert state["vgg/~/batchnorm_1/~/mean_ema"] == average
    assert state["vgg/~/batchnorm_1/~/var_ema"] == average
    model = hk.without_apply_rng(
        hk.transform_with_state(lambda x: VGG(10, (4, 6), (1, 2))(x))
    )
    params, state = jax.jit(model.init)(golden.keys(0), images)
    logits, _ = jax.jit(model.apply)(params, state, images)
    np.testing.assert_allclose(logits[0, :2], [0.010929, 0.017377], atol=1e-5)


@pytest.mark.strict
def test_evaluation_reads_the_running_statistics_of_training() -> None:
    train = EnsembleVGGENN(3, 2, is_training=True, **SMALL)
    test = EnsembleVGGENN(3, 2, is_training=False, **SMALL)
    params, state = fast.random_params(train, IMAGES)
    logits, state = jax.jit(train.apply)(params, state, IMAGES, 1)
    evaluated, same_state = jax.jit(test.apply)(params, state, IMAGES, 1)
    # After one step, the running statistics are those of the one batch.
    np.testing.assert_allclose(evaluated, logits, rtol=1e-3, atol=1e-4)
    assert evaluated.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, same_state, state)
    counter = state["vgg/~/batchnorm_0/~/mean_ema"]["counter"]
    np.testing.assert_array_equal(counter, [0, 1])


def test_evaluation_network_is_initialised_as_the_training_one() -> None:
    key = golden.keys(0)
    train, test = (
        jax.jit(EnsembleVGGENN(3, 1, is_training, **SMALL).init)(key, IMAGES, 0)
        for is_training in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, train, test)


def test_local_statistics_need_no_state_and_give_training_outputs() -> None:
    train = EnsembleVGGENN(3, **SMALL)
    local = EnsembleVGGENN(3, is_training=False, test_local_stats=True, **SMALL)
    params, state = fast.random_params(train, IMAGES)
    assert fast.shapes(local, IMAGES)[1] == {}
    expected, _ = jax.jit(train.apply)(params, state, IMAGES, 0)
    logits, new_state = jax.jit(local.apply)(params, {}, IMAGES, 0)
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert new_state == {}


@pytest.mark.parametrize("num_ensemble", [1, 3])
def test_many_indices_run_every_member_once(num_ensemble: int) -> None:
    enn = EnsembleVGGENN(3, num_ensemble, **SMALL)
    one = cost.flops_at_indices(enn, IMAGES, None)
    assert cost.flops_at_indices(enn, IMAGES, 100) < (num_ensemble + 0.5) * one


def test_lists_of_different_lengths_raise() -> None:
    with pytest.raises(ValueError, match="vgg_output_channels has 2, vgg_strides has"):
        fast.shapes(EnsembleVGGENN(3, vgg_output_channels=(4, 6)), IMAGES)


def test_images_without_a_batch_axis_raise() -> None:
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]"):
        fast.shapes(EnsembleVGGENN(3, **SMALL), IMAGES[0])


def test_pooled_features_are_what_the_logits_are_made_of() -> None:
    plain, exposed = (
        EnsembleVGGENN(3, 2, expose_hidden=expose, **SMALL) for expose in (False, True)
    )
    params, state = fast.random_params(plain, IMAGES)
    out, _ = jax.jit(exposed.apply)(params, state, IMAGES, 1)
    logits, _ = jax.jit(plain.apply)(params, state, IMAGES, 1)
    np.testing.assert_array_equal(out.train, logits)
    layer = jax.tree.map(lambda leaf: leaf[1], params["vgg/~/logits"])
    expected = out.extra["final_out"] @ layer["w"] + layer["b"][None]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
