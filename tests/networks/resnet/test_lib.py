from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

from enn.networks.resnet.lib import ResNet, ResNetConfig
from tests.support import golden
from tests.support.resnets import IMAGES, V1, V2


def _model(config: ResNetConfig, **kwargs: Any) -> hk.TransformedWithState:
    def forward(images: jax.Array) -> Any:
        return ResNet(10, config, **kwargs)(images, is_training=True)

    return hk.without_apply_rng(hk.transform_with_state(forward))


def _norm(channels: int) -> dict[str, tuple[int, ...]]:
    return {"scale": (1, 1, 1, channels), "offset": (1, 1, 1, channels)}


def _v1_block(name: str, inputs: int, outputs: int) -> dict[str, Any]:
    return {
        f"{name}/~/conv0": {"w": (3, 3, inputs, outputs)},
        f"{name}/~/batchnorm_0": _norm(outputs),
        f"{name}/~/conv1": {"w": (3, 3, outputs, outputs)},
        f"{name}/~/batchnorm_1": _norm(outputs),
    }


def _v2_block(name: str, inputs: int, outputs: int, first: bool) -> dict[str, Any]:
    width = outputs // 4
    shortcut = {f"{name}/~/conv_shortcut": {"w": (1, 1, inputs, outputs)}}
    return {
        f"{name}/~/batchnorm_0": _norm(inputs),
        f"{name}/~/conv0": {"w": (1, 1, inputs, width)},
        f"{name}/~/batchnorm_1": _norm(width),
        f"{name}/~/conv1": {"w": (3, 3, width, width)},
        f"{name}/~/batchnorm_2": _norm(width),
        f"{name}/~/conv2": {"w": (1, 1, width, outputs)},
    } | (shortcut if first else {})


TREES = {
    "V1": {
        "res_net/~/initial_conv": {"w": (3, 3, 3, 16)},
        "res_net/~/initial_batchnorm": _norm(16),
        **_v1_block("res_net/~/res_block_v1", 16, 16),
        **_v1_block("res_net/~/res_block_v1_1", 16, 16),
        **_v1_block("res_net/~/res_block_v1_2", 16, 32),
        "res_net/~/final_fc": {"w": (32, 10), "b": (10,)},
    },
    "V2": {
        "res_net/~/initial_conv": {"w": (7, 7, 3, 64)},
        **_v2_block("res_net/~/res_block_v2", 64, 16, first=True),
        **_v2_block("res_net/~/res_block_v2_1", 16, 16, first=False),
        **_v2_block("res_net/~/res_block_v2_2", 16, 32, first=True),
        "res_net/~/final_batchnorm": _norm(32),
        "res_net/~/final_fc": {"w": (32, 10), "b": (10,)},
    },
}


@pytest.mark.parametrize(
    ("config", "final_out"), [(V1, [0.470115, 0.164236]), (V2, [0.999996, 0.0])]
)
def test_tree_and_features_of_the_specification(
    config: ResNetConfig, final_out: list[float]
) -> None:
    model = _model(config)
    params, state = jax.jit(model.init)(golden.keys(0), IMAGES)
    assert jax.tree.map(np.shape, params) == TREES[config.resnet_block_version]
    norms = {name for name, values in params.items() if "scale" in values}
    assert set(state) == {
        f"{name}/~/{ema}" for name in norms for ema in ("mean_ema", "var_ema")
    }
    out, _ = jax.jit(model.apply)(params, state, IMAGES)
    np.testing.assert_allclose(out.extra["final_out"][0, :2], final_out, atol=1e-5)
    # The last layer starts at zero.
    np.testing.assert_array_equal(out.preds, np.zeros((2, 10)))
    assert {name: np.shape(out.extra[name])[1:] for name in sorted(out.extra)} == {
        "final_out": (32,),
        "hidden_0": (8, 8, 16) if config is V1 else (2, 2, 16),
        "hidden_1": (8, 8, 16) if config is V1 else (2, 2, 16),
        "hidden_2": (4, 4, 32) if config is V1 else (1, 1, 32),
    }


def test_hidden_activations_can_be_left_out() -> None:
    model = _model(V1, expose_hidden=False)
    variables = jax.eval_shape(model.init, golden.keys(0), IMAGES)
    out, _ = jax.eval_shape(model.apply, *variables, IMAGES)
    assert list(out.extra) == ["final_out"]


def test_attributes() -> None:
    def forward(images: jax.Array) -> Any:
        net = ResNet(10, V1)
        assert (net.is_resnet_block_v1, net.is_resnet_block_v2) == (True, False)
        assert len(net.blocks) == 3
        assert net.initial_conv.module_name == "res_net/~/initial_conv"
        assert net.final_fc.module_name == "res_net/~/final_fc"
        return images

    hk.transform(forward).init(golden.keys(0), IMAGES)


def test_images_without_a_batch_axis_raise() -> None:
    with pytest.raises(ValueError, match=r"\[batch, height, width, channels\]"):
        jax.eval_shape(_model(V1).init, golden.keys(0), IMAGES[0])
