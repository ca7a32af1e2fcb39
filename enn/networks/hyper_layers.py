"""Layers whose weights depend on the epistemic index."""

from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EpistemicModule
from enn.networks.flat_inputs import flat_inputs
from enn.networks.layer_sizes import layer_sizes


class HyperLinear(EpistemicModule):
    """A linear layer whose weights and biases are linear in the index.

    W_oh(z) = c_w · w_oh·z and b_o(z) = (c_b · b_o + b_0)·z, where the vectors w_oh
    and b_o have unit norm, c_w² = weight_scaling / num_features (without the
    division in a first layer) and c_b² = bias_scaling. Numbers follow the original
    `enn`: the fixed bias b_0 adds b_0 · Σ_i z_i to the output.

    Args:
      output_size: width of the layer.
      index_dim_per_layer: size of the index.
      weight_scaling: scale of the variance of the weights.
      bias_scaling: scale of the variance of the biases.
      fixed_bias_val: the number b_0.
      first_layer: whether this is the first layer of a network.
      name: name of the module.

    Raises:
      ValueError: if a size is no integer >= 1; by a call with an index that is not
        `[index_dim_per_layer]` or inputs that are not `[batch, num_features]`.
    """

    def __init__(
        self,
        output_size: int,
        index_dim_per_layer: int,
        weight_scaling: float = 1.0,
        bias_scaling: float = 1.0,
        fixed_bias_val: float = 0.0,
        first_layer: bool = False,
        name: str = "hyper_linear",
    ):
        super().__init__(name=name)
        self.output_size = _checks.positive_int("output_size", output_size)
        self.index_dim_per_layer = _checks.positive_int(
            "index_dim_per_layer", index_dim_per_layer
        )
        self.weight_scaling = weight_scaling
        self.bias_scaling = bias_scaling
        self.fixed_bias_val = fixed_bias_val
        self.first_layer = first_layer

    def __call__(self, inputs: chex.Array, index: base.Index) -> chex.Array:
        """Returns `[batch, output_size]`."""
        inputs = jnp.asarray(inputs)
        dim = self.index_dim_per_layer
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        _checks.shape("index", index, (dim,), f"[{dim}]")
        num_features = inputs.shape[1]
        normal = hk.initializers.RandomNormal()
        w_shape = [self.output_size, num_features, dim]
        b_shape = [self.output_size, dim]
        w = _unit_norm(hk.get_parameter("w", w_shape, inputs.dtype, init=normal))
        b = _unit_norm(hk.get_parameter("b", b_shape, inputs.dtype, init=normal))
        w_scale = np.sqrt(
            self.weight_scaling / (1 if self.first_layer else num_features)
        )
        b = b * float(np.sqrt(self.bias_scaling)) + self.fixed_bias_val
        return inputs @ (float(w_scale) * w @ index).T + (b @ index)[None]


def _unit_norm(vectors: chex.Array) -> chex.Array:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


class PriorMLPIndependentLayers(EpistemicModule):
    """An MLP of `HyperLinear` layers, each with a part of the index of its own.

    Layers are independent of each other over the index, unless the index has fewer
    entries than there are layers: then every layer sees all of it. Inputs are
    flattened.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      index_dim: size of the index; earlier layers get the larger parts.
      weight_scaling: see `HyperLinear`.
      bias_scaling: see `HyperLinear`.
      fixed_bias_val: see `HyperLinear`.
      name: name of the module.

    Raises:
      ValueError: if `output_sizes` is empty or a size is no integer >= 1; by a call
        with an index that is not `[index_dim]` or inputs that are not `[batch, ...]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        index_dim: int,
        weight_scaling: float = 1.0,
        bias_scaling: float = 1.0,
        fixed_bias_val: float = 0.0,
        name: str = "prior_independent_layers",
    ):
        super().__init__(name=name)
        self.output_sizes = layer_sizes("output_sizes", output_sizes)
        self.index_dim = _checks.positive_int("index_dim", index_dim)
        num_layers = len(self.output_sizes)
        positions = np.arange(index_dim)
        self.index_parts = (
            np.array_split(positions, num_layers)
            if index_dim >= num_layers
            else [positions] * num_layers
        )
        self.layers = [
            HyperLinear(
                size,
                len(part),
                weight_scaling,
                bias_scaling,
                fixed_bias_val,
                first_layer=i == 0,
            )
            for i, (size, part) in enumerate(
                zip(self.output_sizes, self.index_parts, strict=True)
            )
        ]

    def __call__(self, inputs: chex.Array, index: base.Index) -> chex.Array:
        """Returns `[batch, num_outputs]` for `inputs` `[batch, ...]`."""
        _checks.shape("index", index, (self.index_dim,), f"[{self.index_dim}]")
        index = jnp.asarray(index)
        first, *others = (
            (layer, index[part])
            for layer, part in zip(self.layers, self.index_parts, strict=True)
        )
        layer, part = first
        out = layer(flat_inputs(inputs), part)
        for layer, part in others:
            out = layer(jax.nn.relu(out), part)
        return out


class DiagonalLinear(hk.Module):
    """Scale and shift of every entry: x · softplus(w) + b.

    Args:
      with_bias: whether there is a shift b.
      w_init: initialiser of w; softplus(w) starts at 0.01 by default.
      b_init_value: initial value of b; normal of standard deviation 0.1 by default.
      name: name of the module.

    Raises:
      ValueError: by a call with a scalar.
    """

    def __init__(
        self,
        with_bias: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        b_init_value: jax.Array | np.ndarray | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.input_size: int | None = None
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init_value = b_init_value

    def __call__(self, inputs: chex.Array) -> chex.Array:
        """Returns an array of the shape of `inputs`, `[..., num_features]`."""
        if not jnp.ndim(inputs):
            raise ValueError("inputs must have shape [..., num_features], got [].")
        inputs = jnp.asarray(inputs)
        self.input_size = inputs.shape[-1]
        shape = [self.input_size]
        w_init = self.w_init or hk.initializers.Constant(np.log(np.expm1(0.01)))
        w = hk.get_parameter("w", shape, inputs.dtype, init=w_init)
        # softplus is stable where log(1 + exp(w)) overflows or underflows.
        out = inputs * jnp.broadcast_to(jax.nn.softplus(w), inputs.shape)
        if not self.with_bias:
            return out
        b_init = hk.initializers.RandomNormal(0.1)
        if self.b_init_value is not None:
            b_init = hk.initializers.Constant(self.b_init_value)
        b = hk.get_parameter("b", shape, inputs.dtype, init=b_init)
        return out + jnp.broadcast_to(b, inputs.shape)
