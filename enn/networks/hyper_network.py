"""A network at parameters that the epistemic index generates."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks import mlp_priors
from enn.networks.base import EpistemicModule, Output, OutputWithPrior
from enn.networks.hyper_layers import DiagonalLinear
from enn.networks.init_once import init_once


def tempered_mlp(
    output_sizes: Sequence[int], temperature: float = 1.0
) -> hk.Transformed:
    """Returns an MLP on flattened inputs, its outputs divided by `temperature`."""
    mlp = mlp_priors.transformed_mlp(output_sizes)

    def apply(params: hk.Params, inputs: chex.Array) -> chex.Array:
        return mlp.apply(params, inputs) / temperature

    return hk.Transformed(mlp.init, apply)


def _identity(index: jax.Array) -> jax.Array:
    return index


def hypermodel_module(
    transformed_base: hk.Transformed,
    dummy_input: chex.Array,
    hyper_torso: Callable[[jax.Array], jax.Array] = _identity,
    diagonal_linear_hyper: bool = False,
    return_generated_params: bool = False,
    scale: bool = True,
    seed: int = 0,
) -> type[EpistemicModule]:
    """Returns a module class whose instances generate the base network's parameters.

    Instances take `(inputs, index)` and apply the base network at parameters θ(z).
    Linear: every leaf of θ(z) is a linear layer on torso(z). Diagonal:
    θ(z) = softplus(w) ⊙ z + b, with an index of one entry for every base parameter.

    Args:
      transformed_base: the base network, a pair without apply-rng.
      dummy_input: array shaped like an input batch.
      hyper_torso: function or constructor of modules that the linear layers share;
        called inside a Haiku transform. The diagonal mode does not use it.
      diagonal_linear_hyper: whether to use the diagonal mode.
      return_generated_params: whether to return an `OutputWithPrior` with the
        parameters in `extra`: as generated (`hyper_net_out`), as used
        (`base_net_params`), and what generated them (`hyper_index`): torso(z), or
        θ(z) as a vector in the diagonal mode.
      scale: whether generated leaves named `w` are divided by √shape[0]. That is the
        fan-in of a dense layer; for a convolution, numbers follow the original `enn`.
      seed: seed of the base parameters that b starts at in the diagonal mode.

    Raises:
      ValueError: by a call with an index that is no vector, or in the diagonal mode
        not of the size of the base parameters.
    """
    base_key = jax.random.PRNGKey(seed)
    shapes, treedef = jax.tree.flatten(
        jax.eval_shape(transformed_base.init, base_key, dummy_input)
    )
    sizes = [int(np.prod(leaf.shape)) for leaf in shapes]
    if diagonal_linear_hyper:
        base_params = init_once(transformed_base.init, base_key, dummy_input)
        b_init_value = jnp.concatenate(
            [jnp.ravel(leaf) for leaf in jax.tree.leaves(base_params)]
        )

    def generate(index: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        if diagonal_linear_hyper:
            _checks.shape("index", index, (sum(sizes),), f"[{sum(sizes)}]")
            theta = DiagonalLinear(b_init_value=b_init_value)(index)
            return theta, jnp.split(theta, np.cumsum(sizes)[:-1])
        _checks.shape("index", index, (None,), "[index_dim]")
        hidden = hyper_torso(index)
        init = hk.initializers.VarianceScaling(1.0, "fan_avg", "truncated_normal")
        layers = [hk.Linear(size, w_init=init, b_init=init) for size in sizes]
        return hidden, [layer(hidden) for layer in layers]

    class HyperNetwork(EpistemicModule):
        """A base network at parameters that an index generates."""

        def __init__(self) -> None:
            super().__init__(name="hyper_fn")

        def __call__(self, inputs: chex.Array, index: base.Index) -> Output:
            hyper_index, flat_leaves = generate(index)
            leaves = [
                jnp.reshape(flat, leaf.shape)
                for flat, leaf in zip(flat_leaves, shapes, strict=True)
            ]
            generated = jax.tree.unflatten(treedef, leaves)
            base_params = _scale_weights(generated) if scale else generated
            out = transformed_base.apply(base_params, inputs)
            if not return_generated_params:
                return out
            extra: dict[str, Any] = {
                "hyper_net_out": generated,
                "base_net_params": base_params,
                "hyper_index": hyper_index,
            }
            return OutputWithPrior(out, jnp.zeros_like(out), extra)

    return HyperNetwork


def _scale_weights(params: hk.Params) -> hk.Params:
    def scale(path: tuple[Any, ...], leaf: chex.Array) -> chex.Array:
        return leaf / np.sqrt(leaf.shape[0]).item() if path[-1].key == "w" else leaf

    return jax.tree_util.tree_map_with_path(scale, params)
