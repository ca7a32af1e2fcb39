import haiku as hk
import jax
import numpy as np
import pytest

from enn.networks.inputs import to_nhwc
from enn.networks.resnet.base import EnsembleResNetENN, resnet_model
from enn.networks.resnet.lib import CanonicalResNets
from tests.support import cost, fast, golden
from tests.support.resnets import IMAGES, TINY, V1

# Blocks 13 to 15 see 1x1 images.
ILL_CONDITIONED = r"final_out|hidden_1[345]|state\|.*(final_batch|block_v2_1[345])"


@pytest.mark.slow
def test_resnet18_gives_the_golden_numbers() -> None:
    enn = EnsembleResNetENN(5, 2, config=CanonicalResNets.RESNET_18.value)
    golden.assert_enn_matches(
        "resnet18", enn, golden.normal(2, 8, 8, 3), one_index=True
    )


@pytest.mark.skipif(
    jax.config.read("jax_disable_most_optimizations"),
    reason="takes 25 s to compile; .ci/run has it, with XLA's optimisations",
)
def test_resnet50_gives_the_golden_numbers() -> None:
    images = golden.normal(2, 32, 32, 3)
    golden.assert_enn_matches(
        "resnet50",
        EnsembleResNetENN(4),
        images,
        one_index=True,
        left_out=ILL_CONDITIONED,
    )


@pytest.mark.strict
def test_evaluation_reads_the_running_statistics_of_training() -> None:
    train = EnsembleResNetENN(3, 2, config=TINY)
    test = EnsembleResNetENN(3, 2, is_training=False, config=TINY)
    assert fast.shapes(train, IMAGES) == fast.shapes(test, IMAGES)
    params, state = fast.random_params(test, IMAGES)
    out, state = jax.jit(train.apply)(params, state, IMAGES, 1)
    evaluated, same_state = jax.jit(test.apply)(params, state, IMAGES, 1)
    jax.tree.map(np.testing.assert_array_equal, same_state, state)
    # After one step, the running statistics are those of the one batch.
    np.testing.assert_allclose(
        evaluated.extra["final_out"], out.extra["final_out"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("num_ensemble", [1, 3])
def test_many_indices_run_every_member_once(num_ensemble: int) -> None:
    enn = EnsembleResNetENN(3, num_ensemble, config=TINY, expose_hidden=False)
    one = cost.flops_at_indices(enn, IMAGES, None)
    assert cost.flops_at_indices(enn, IMAGES, 100) < (num_ensemble + 0.5) * one


def test_model_made_outside_a_transform_has_the_same_parameters() -> None:
    outside = resnet_model(3, config=TINY)
    models = [
        hk.without_apply_rng(hk.transform_with_state(forward))
        for forward in (
            lambda x: outside(x, True).train,
            lambda x: resnet_model(3, config=TINY)(x, True).train,
        )
    ]
    variables = [jax.eval_shape(model.init, golden.keys(0), IMAGES) for model in models]
    assert variables[0] == variables[1]
    # Also in further transforms, and called twice in one.
    jax.eval_shape(models[0].apply, *variables[0], IMAGES)
    twice = hk.transform_with_state(
        lambda x: outside(x, True).train + outside(x, True).train
    )
    assert jax.eval_shape(twice.init, golden.keys(0), IMAGES) == variables[0]


def test_only_double_transposed_batches_on_tpu_change_their_axes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = np.zeros((5, 6, 3, 2))
    assert to_nhwc(batch, enable_double_transpose=True).shape == (5, 6, 3, 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert to_nhwc(batch, enable_double_transpose=False).shape == (5, 6, 3, 2)
    assert to_nhwc(batch, enable_double_transpose=True).shape == (2, 5, 6, 3)


def test_hidden_activations_can_be_left_out() -> None:
    enn = EnsembleResNetENN(3, config=V1, expose_hidden=False)
    variables = jax.eval_shape(enn.init, golden.keys(0), IMAGES, 0)
    out, _ = jax.eval_shape(enn.apply, *variables, IMAGES, 0)
    assert list(out.extra) == ["final_out"]
