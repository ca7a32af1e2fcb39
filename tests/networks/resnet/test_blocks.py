from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

from enn.networks.resnet.lib import ResBlockV1, ResBlockV2

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
