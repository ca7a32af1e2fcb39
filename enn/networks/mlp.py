"""MLPs for epinets: one that exposes its layers, one that takes an index."""

from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.base import EpistemicModule, OutputWithPrior
from enn.networks.layer_sizes import layer_sizes
from enn.networks.linear import ConcatMLP


class ExposedMLP(hk.Module):
    """An MLP that hands out its input and the layers asked for as features.

    Args:
      output_sizes: width of every layer.
      expose_layers: which layers to expose, one bool a layer; all by default, the
        output included.
      stop_gradient: whether no gradient flows back through the features.
      w_init: initialiser of the weights.
      name: name of the module.
      b_init: initialiser of the biases; zeros by default.

    Raises:
      ValueError: if `expose_layers` has another length than `output_sizes`, or a
        size is no integer >= 1; by a call with inputs that are not
        `[batch, num_features]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        expose_layers: Sequence[bool] | None = None,
        stop_gradient: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        name: str | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        super().__init__(name=name)
        sizes = layer_sizes("output_sizes", output_sizes)
        if expose_layers is None:
            expose_layers = [True] * len(sizes)
        if len(expose_layers) != len(sizes):
            raise ValueError(
                f"expose_layers needs one entry for each of the {len(sizes)} layers, "
                f"got {len(expose_layers)}."
            )
        self.layers = [
            hk.Linear(size, w_init=w_init, b_init=b_init, name=f"linear_{i}")
            for i, size in enumerate(sizes)
        ]
        self.num_layers = len(sizes)
        self.output_size = sizes[-1]
        self.stop_gradient = stop_gradient
        self.expose_layers = expose_layers

    def __call__(self, inputs: chex.Array) -> OutputWithPrior:
        """Returns logits `[batch, num_outputs]`, and `extra['exposed_features']`.

        The features are the inputs followed by the exposed layers (after relu, the
        last one as it is), `[batch, num_features]`.
        """
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        features = [inputs]
        out = inputs
        for i, (layer, expose) in enumerate(
            zip(self.layers, self.expose_layers, strict=True)
        ):
            out = layer(out)
            if i < self.num_layers - 1:
                out = jax.nn.relu(out)
            if expose:
                features.append(out)
        exposed = jnp.concatenate(features, axis=1)
        if self.stop_gradient:
            exposed = jax.lax.stop_gradient(exposed)
        return OutputWithPrior(train=out, extra={"exposed_features": exposed})


class ProjectedMLP(EpistemicModule):
    """An MLP whose matrix of outputs is projected on the index: g(x, z)ᵀ z.

    The epinet's building block (Osband et al., 2021, Epistemic neural networks,
    https://arxiv.org/abs/2107.08924, equation 6). The part of the first layer that
    sees only the inputs is kept apart from the index, and the last layer is
    contracted with the index before it meets the hidden units: over many indices,
    both save most of the work.

    Args:
      hidden_sizes: widths of the hidden layers; may be empty.
      final_out: number of outputs.
      index_dim: size of the index.
      concat_index: whether the first layer sees the index beside the inputs.
      w_init: initialiser of the weights.
      name: name of the module.
      b_init: initialiser of the biases; zeros by default.

    Raises:
      ValueError: if a size is no integer >= 1; by a call with an index that is not
        `[index_dim]` or inputs that are not `[batch, num_features]`.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        final_out: int,
        index_dim: int,
        concat_index: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        name: str | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        super().__init__(name=name)
        self.hidden_sizes = [
            _checks.positive_int("hidden_sizes", size) for size in hidden_sizes
        ]
        self.final_out = _checks.positive_int("final_out", final_out)
        self.index_dim = _checks.positive_int("index_dim", index_dim)
        self.concat_index = concat_index
        sizes = [*self.hidden_sizes, final_out * index_dim]
        self.mlp = ConcatMLP(sizes, w_init, b_init)

    def __call__(self, inputs: chex.Array, index: base.Index) -> chex.Array:
        """Returns `[batch, final_out]` for `inputs` `[batch, num_features]`."""
        dim = self.index_dim
        _checks.shape("index", index, (dim,), f"[{dim}]")
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        parts = [index, inputs.T] if self.concat_index else [inputs.T]
        return self.mlp.projected(*parts, projection=index)
