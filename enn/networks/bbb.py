"""Bayes by backprop: a Gaussian over every parameter of an MLP."""

from collections.abc import Sequence

import chex
import haiku as hk
import jax

from enn.networks.base import EnnArray
from enn.networks.hypermodels import hypermodel_module, tempered_mlp
from enn.networks.indexers import GaussianIndexer
from enn.networks.utils import epistemic_network_from_module


def make_bbb_enn(
    base_output_sizes: Sequence[int],
    dummy_input: chex.Array,
    temperature: float = 1.0,
    seed: int = 0,
) -> EnnArray:
    """Returns an MLP with parameters θ = μ + softplus(ρ) ⊙ z for z ~ N(0, I).

    Blundell et al., 2015, Weight uncertainty in neural networks,
    https://arxiv.org/abs/1505.05424. Inputs are flattened.

    The standard deviation softplus(ρ) starts at 0.01. The means μ start at an MLP's
    initial parameters, drawn from `seed`. Numbers follow the original `enn`: the key
    given to `init` plays no part.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> x = np.ones([3, 2])
    >>> enn = networks.make_bbb_enn([4, 1], dummy_input=x)
    >>> index = enn.indexer(jax.random.key(0))
    >>> len(index)  # 2 · 4 + 4 + 4 · 1 + 1 parameters
    17

    Args:
      base_output_sizes: width of every layer; the last is the number of outputs.
      dummy_input: array shaped like an input batch.
      temperature: divides the outputs.
      seed: seed of the initial means.

    Returns:
      Network with an index of one entry for every parameter of the MLP. Its
      `OutputWithPrior` has the generated parameters in `extra`, as trees
      (`base_net_params`, `hyper_net_out`) and as a vector (`hyper_index`).

    Raises:
      ValueError: if `base_output_sizes` is empty or a size is not an integer >= 1; by
        `init` and `apply` for an index of the wrong shape.
    """
    base_net = tempered_mlp(base_output_sizes, temperature)
    module = hypermodel_module(
        base_net,
        dummy_input,
        diagonal_linear_hyper=True,
        return_generated_params=True,
        scale=False,
        seed=seed,
    )
    shapes = jax.eval_shape(base_net.init, jax.random.PRNGKey(0), dummy_input)
    indexer = GaussianIndexer(hk.data_structures.tree_size(shapes))
    return epistemic_network_from_module(module, indexer)
