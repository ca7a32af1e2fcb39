from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

from enn.networks.resnet.base import EnsembleResNetENN
from enn.networks.resnet.lib import (
    CanonicalResNets,
    ResBlockV1,
    ResBlockV2,
    ResNet,
    ResNetConfig,
)
from tests.support import fast, golden
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


@pytest.mark.slow
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


INPUTS = np.random.default_rng(0).normal(size=(2, 7, 7, 16)).astype(np.float32)


def _run(make_block: Any, inputs: Any = INPUTS) -> Any:
    model = hk.without_apply_rng(
        hk.transform_with_state(lambda x: make_block()(x, is_training=True))
    )
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(model.init, jax.random.PRNGKey(0), inputs),
    )
    return jax.jit(model.apply)(*zeros, inputs)[0]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("channels", "padding"), [(16, (0, 0)), (21, (2, 3))])
def test_v1_shortcut_takes_every_stride_th_pixel_and_pads_channels(
    stride: int, channels: int, padding: tuple[int, int]
) -> None:
    # With zero parameters the shortcut alone is left.
    out = _run(lambda: ResBlockV1(channels, stride))
    expected = np.pad(INPUTS[:, ::stride, ::stride], [(0, 0)] * 3 + [padding])
    np.testing.assert_allclose(out, np.maximum(expected, 0), atol=1e-6)


def test_v2_without_projection_adds_to_its_inputs() -> None:
    np.testing.assert_array_equal(_run(lambda: ResBlockV2(16, 1, False)), INPUTS)


def test_v2_with_projection_has_no_other_shortcut() -> None:
    out = _run(lambda: ResBlockV2(8, 2, True))
    np.testing.assert_array_equal(out, np.zeros((2, 4, 4, 8)))


def test_v1_with_fewer_channels_than_its_inputs_raises() -> None:
    with pytest.raises(ValueError, match="output_channels is 8, got inputs with 16"):
        _run(lambda: ResBlockV1(8, 1))


@pytest.mark.parametrize(("channels", "stride"), [(32, 1), (16, 2)])
def test_v2_raises_where_it_needs_a_projection(channels: int, stride: int) -> None:
    with pytest.raises(ValueError, match="use_projection=True"):
        _run(lambda: ResBlockV2(channels, stride, use_projection=False))


def test_v2_needs_four_channels() -> None:
    with pytest.raises(ValueError, match="output_channels must be >= 4, got 3"):
        _run(lambda: ResBlockV2(3, 1, True))
    with pytest.raises(ValueError, match=r"must be an integer >= 1, got 4\.5"):
        _run(lambda: ResBlockV2(4.5, 1, True))  # pyrefly: ignore[bad-argument-type]


CIFAR = ((16, 32, 64), (1, 2, 2), "V1")
IMAGENET = ((256, 512, 1024, 2048), (1, 2, 2, 2), "V2")
CANONICAL = {
    "RESNET_18": ((2, 2, 2), CIFAR),
    "RESNET_32": ((5, 5, 5), CIFAR),
    "RESNET_44": ((7, 7, 7), CIFAR),
    "RESNET_56": ((9, 9, 9), CIFAR),
    "RESNET_110": ((18, 18, 18), CIFAR),
    "RESNET_50": ((3, 4, 6, 3), IMAGENET),
    "RESNET_101": ((3, 4, 23, 3), IMAGENET),
    "RESNET_152": ((3, 8, 36, 3), IMAGENET),
    "RESNET_200": ((3, 24, 36, 3), IMAGENET),
}


def test_canonical_networks_have_the_groups_of_the_papers() -> None:
    configs = {net.name: net.value for net in CanonicalResNets}
    assert configs == {
        name: ResNetConfig(channels, blocks, strides, version)
        for name, (blocks, (channels, strides, version)) in CANONICAL.items()
    }
    assert list(configs) == list(CANONICAL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_params"),
    [("RESNET_18", 172_506), ("RESNET_32", 464_154), ("RESNET_50", 23_520_842)],
)
def test_number_of_parameters(name: str, num_params: int) -> None:
    enn = EnsembleResNetENN(10, config=CanonicalResNets[name].value)
    shapes, _ = fast.shapes(enn, np.zeros((1, 8, 8, 3), np.float32))
    leaves = jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, tuple))
    assert sum(np.prod(shape) for shape in leaves) == num_params


def test_configs_from_lists_are_hashable_and_count_their_groups() -> None:
    config = ResNetConfig([16, 32], [2, 1], [1, 2], "V1")
    assert config.num_groups == 2
    assert hash(config) == hash(ResNetConfig((16, 32), (2, 1), (1, 2), "V1"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([16, 32], [2], [1, 2], "V1"), "blocks_per_group has 1"),
        (([], [], [], "V1"), "channels_per_group has 0"),
        (([16, 0], [2, 1], [1, 2], "V1"), "channels_per_group.*0"),
        (([16, 32], [2, 1], [1, 2.5], "V1"), "strides_per_group.*2.5"),
        (([16, 32], [2, 1], [1, 2], "V3"), "resnet_block_version.*'V1', 'V2'.*'V3'"),
    ],
)
def test_wrong_configs_raise(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetConfig(*args)
