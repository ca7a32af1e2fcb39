"""Layers of all members of an ensemble at once.

The members are on the last axis of every parameter and of every activation.
"""

from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks
from enn.networks.flat_inputs import flat_inputs
from enn.networks.layer_sizes import layer_sizes

Activation = Callable[[chex.Array], chex.Array]


class EnsembleBranch(hk.Module):
    """First layer of an ensemble of MLPs: every member sees the same inputs.

    Args:
      num_ensemble: number of members.
      output_size: width of the layer.
      nonzero_bias: whether biases start random, so that members differ at x = 0, or
        at zero.
      w_init: initialiser of the weights `[num_features, output_size, num_ensemble]`.
      name: name of the module.

    Raises:
      ValueError: if a size is no integer >= 1; by a call with inputs of another rank.
    """

    def __init__(
        self,
        num_ensemble: int,
        output_size: int,
        nonzero_bias: bool,
        w_init: hk.initializers.Initializer | None = None,
        name: str = "ensemble_branch",
    ):
        super().__init__(name=name)
        self.num_ensemble = _checks.positive_int("num_ensemble", num_ensemble)
        self.output_size = _checks.positive_int("output_size", output_size)
        self.nonzero_bias = nonzero_bias
        self.w_init = w_init

    def __call__(self, inputs: chex.Array) -> chex.Array:
        """Returns `[batch, output_size, num_ensemble]` for `[batch, num_features]`."""
        inputs = jnp.asarray(inputs)
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        default = _default_init(inputs)
        w, b = _weights(
            inputs,
            (self.output_size, self.num_ensemble),
            self.w_init or default,
            default if self.nonzero_bias else jnp.zeros,
        )
        return jnp.einsum("bi,ijk->bjk", inputs, w) + b


class EnsembleLinear(hk.Module):
    """A further layer of an ensemble of MLPs: every member has inputs of its own.

    Args:
      output_size: width of the layer.
      w_init: initialiser of the weights `[num_features, output_size, num_ensemble]`.
      name: name of the module.

    Raises:
      ValueError: if a size is no integer >= 1; by a call with inputs of another rank.
    """

    def __init__(
        self,
        output_size: int,
        w_init: hk.initializers.Initializer | None = None,
        name: str = "linear",
    ):
        super().__init__(name=name)
        self.output_size = _checks.positive_int("output_size", output_size)
        self.w_init = w_init
        self.num_ensemble: int | None = None

    def __call__(self, inputs: chex.Array) -> chex.Array:
        """Returns `[batch, output_size, num_ensemble]`.

        Args:
          inputs: `[batch, num_features, num_ensemble]`.
        """
        inputs = jnp.asarray(inputs)
        axes = "[batch, num_features, num_ensemble]"
        _checks.shape("inputs", inputs, (None, None, None), axes)
        self.num_ensemble = inputs.shape[-1]
        w, b = _weights(
            inputs,
            (self.output_size, self.num_ensemble),
            self.w_init or _default_init(inputs),
            jnp.zeros,
        )
        return jnp.einsum("bik,ijk->bjk", inputs, w) + b


def _default_init(inputs: chex.Array) -> hk.initializers.Initializer:
    return hk.initializers.TruncatedNormal(1.0 / np.sqrt(inputs.shape[1]))


def _weights(
    inputs: chex.Array,
    out_shape: tuple[int, int],
    w_init: hk.initializers.Initializer,
    b_init: hk.initializers.Initializer,
) -> tuple[chex.Array, chex.Array]:
    w_shape = [inputs.shape[1], *out_shape]
    w = hk.get_parameter("w", w_shape, inputs.dtype, init=w_init)
    b = hk.get_parameter("b", out_shape, inputs.dtype, init=b_init)
    return w, b[None]


class EnsembleMLP(hk.Module):
    """The outputs of all members of an ensemble of MLPs; inputs are flattened.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      num_ensemble: number of members.
      nonzero_bias: whether the biases of the first layer start random or at zero.
      activation: what comes between layers.
      w_init: initialiser of the weights.
      name: name of the module.

    Raises:
      ValueError: if `output_sizes` is empty or a size is no integer >= 1; by a call
        with inputs that are not `[batch, ...]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        num_ensemble: int,
        nonzero_bias: bool = True,
        activation: Activation = jax.nn.relu,
        w_init: hk.initializers.Initializer | None = None,
        name: str = "ensemble_mlp",
    ):
        super().__init__(name=name)
        first, *others = layer_sizes("output_sizes", output_sizes)
        self.num_ensemble = num_ensemble
        self.activation = activation
        self.layers = [
            EnsembleBranch(num_ensemble, first, nonzero_bias, w_init),
            *(EnsembleLinear(size, w_init) for size in others),
        ]

    def __call__(self, inputs: chex.Array) -> chex.Array:
        """Returns `[batch, num_outputs, num_ensemble]` for `inputs` `[batch, ...]`."""
        branch, *others = self.layers
        out = branch(flat_inputs(inputs))
        for layer in others:
            out = layer(self.activation(out))
        return out
