"""Posterior samples as an epistemic network."""

from collections.abc import Callable
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import base
from enn.networks.indexers import EnsembleIndexer
from enn.networks.many_indices import members


def from_samples(
    apply: Callable[[Any, Any], Any], stacked_params: Any
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a network whose index picks one of several samples of parameters.

    The samples may be those of a Markov chain, snapshots of a training run, or any
    other set that stands for a posterior. Trees of single samples are stacked by
    `jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)`; several chains are
    reshaped to one axis first. Under `jax.vmap` over at least as many indices as
    there are samples, each sample runs once.

    Args:
      apply: forward pass `(params, inputs) -> output` of one sample.
      stacked_params: pytree of arrays `[num_samples, ...]`.

    Returns:
      Network with an integer index in [0, num_samples) and empty state. Its `init`
      returns a copy of `stacked_params`.

    Raises:
      ValueError: if there are no arrays, or leading axes differ; by `apply` for an
        index out of range, see `enn.networks.many_indices.members`.
    """
    num_samples = _num_samples(stacked_params)

    def enn_apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        del state
        return members.apply_member(apply, params, inputs, index, num_samples), {}

    def enn_init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del rng_key, inputs, index
        return jax.tree.map(jnp.array, stacked_params), {}

    return base.EpistemicNetwork(enn_apply, enn_init, EnsembleIndexer(num_samples))


def _num_samples(stacked_params: Any) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(stacked_params)
    shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
    sizes = {shape[:1] for shape in shapes.values()}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "stacked_params must hold arrays with one leading axis of samples, "
            f"of the same size >= 1 in all; got the shapes {shapes}."
        )
    return sizes.pop()[0]
