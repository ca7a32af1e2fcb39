"""Ensembles of MLPs, and priors, with members on the last axis of the parameters."""

from collections.abc import Sequence

import chex
import haiku as hk
import jax

from enn import _checks, base
from enn.networks import members
from enn.networks.additive_priors import EnnWithAdditivePrior
from enn.networks.base import EnnArray, EnnNoState, PriorFn
from enn.networks.einsum_layers import (
    Activation,
    EnsembleBranch,
    EnsembleLinear,
    EnsembleMLP,
)
from enn.networks.indexers import EnsembleIndexer
from enn.networks.init_once import init_once
from enn.networks.layer_sizes import layer_sizes
from enn.networks.no_state import wrap_enn_no_state_as_enn
from enn.networks.outputs import parse_net_output

__all__ = [
    "EnsembleBranch",
    "EnsembleLinear",
    "EnsembleMLP",
    "make_einsum_ensemble_mlp_enn",
    "make_ensemble_mlp_with_prior_enn",
    "make_ensemble_prior",
]


def _transformed(
    output_sizes: Sequence[int],
    num_ensemble: int,
    nonzero_bias: bool,
    activation: Activation,
    w_init: hk.initializers.Initializer | None,
) -> hk.Transformed:
    def forward(inputs: chex.Array) -> chex.Array:
        net = EnsembleMLP(output_sizes, num_ensemble, nonzero_bias, activation, w_init)
        return net(inputs)

    return hk.without_apply_rng(hk.transform(forward))


def make_einsum_ensemble_mlp_enn(
    output_sizes: Sequence[int],
    num_ensemble: int,
    nonzero_bias: bool = True,
    activation: Activation = jax.nn.relu,
    w_init: hk.initializers.Initializer | None = None,
) -> EnnArray:
    """Returns an ensemble of MLPs with members on the last axis of the parameters.

    A single index, or fewer indices under `jax.vmap` than members, run only the
    members they select; more indices run all members once.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      num_ensemble: number of members.
      nonzero_bias: whether the biases of the first layer start random or at zero.
      activation: what comes between layers.
      w_init: initialiser of the weights.

    Returns:
      Network on inputs `[batch, ...]` with outputs `[batch, num_outputs]`.

    Raises:
      ValueError: if `output_sizes` is empty or a size is no integer >= 1; by `apply`
        for an index out of range, see `enn.networks.members`.
    """
    sizes = layer_sizes("output_sizes", output_sizes)
    indexer = EnsembleIndexer(num_ensemble)
    options = (nonzero_bias, activation, w_init)
    ensemble = _transformed(sizes, num_ensemble, *options)
    ensemble_of_one = _transformed(sizes, 1, *options)

    def run_member(member: hk.Params, inputs: chex.Array) -> chex.Array:
        params = jax.tree.map(lambda p: p[..., None], member)
        return ensemble_of_one.apply(params, inputs)[..., 0]

    def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> chex.Array:
        return members.apply_member(
            run_member, params, inputs, index, num_ensemble, axis=-1
        )

    def init(rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index) -> hk.Params:
        del index
        return ensemble.init(rng_key, inputs)

    return wrap_enn_no_state_as_enn(EnnNoState(apply, init, indexer))


def make_ensemble_mlp_with_prior_enn(
    output_sizes: Sequence[int],
    dummy_input: chex.Array,
    num_ensemble: int,
    prior_scale: float = 1.0,
    nonzero_bias: bool = True,
    seed: int = 999,
    activation: Activation = jax.nn.relu,
    w_init: hk.initializers.Initializer | None = None,
) -> EnnArray:
    """Returns an ensemble of MLPs, each with a fixed MLP as its prior function.

    Osband et al., 2018, Randomized prior functions for deep reinforcement learning,
    https://arxiv.org/abs/1806.03335.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      dummy_input: array shaped like an input batch.
      num_ensemble: number of members.
      prior_scale: factor of the prior functions.
      nonzero_bias: whether the biases of the first layer start random or at zero.
      seed: seed of the prior functions.
      activation: what comes between layers, of the priors as well.
      w_init: initialiser of the weights, of the priors as well.

    Returns:
      Network as of `make_einsum_ensemble_mlp_enn`, with `OutputWithPrior`.
    """
    enn = make_einsum_ensemble_mlp_enn(
        output_sizes, num_ensemble, nonzero_bias, activation, w_init
    )
    prior_key, _ = jax.random.split(jax.random.PRNGKey(seed))
    prior_params, _ = init_once(enn.init, prior_key, dummy_input, 0)

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        return parse_net_output(enn.apply(prior_params, {}, inputs, index)[0])

    return EnnWithAdditivePrior(enn, prior_fn, prior_scale)


def make_ensemble_prior(
    output_sizes: Sequence[int],
    num_ensemble: int,
    dummy_input: chex.Array,
    seed: int = 999,
    activation: Activation = jax.nn.relu,
    w_init: hk.initializers.Initializer | None = None,
) -> PriorFn:
    """Returns `(x, z) -> Σ_k z_k f_k(x)` for fixed random MLPs f_k.

    The MLPs do not depend on z: under `jax.vmap` over z they run once.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      num_ensemble: number of MLPs and size of the index.
      dummy_input: array shaped like an input batch.
      seed: seed of the MLPs.
      activation: what comes between layers.
      w_init: initialiser of the weights.

    Returns:
      Function of inputs `[batch, ...]` and index `[num_ensemble]`, with values
      `[batch, num_outputs]`.

    Raises:
      ValueError: if `output_sizes` is empty or a size is no integer >= 1; by the
        result for an index of another shape.
    """
    ensemble = _transformed(output_sizes, num_ensemble, True, activation, w_init)
    params = init_once(ensemble.init, next(hk.PRNGSequence(seed)), dummy_input)

    @jax.jit
    def combine(params: hk.Params, inputs: chex.Array, index: base.Index) -> chex.Array:
        return ensemble.apply(params, inputs) @ index

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        _checks.shape("index", index, (num_ensemble,), f"[{num_ensemble}]")
        return combine(params, inputs, index)

    return prior_fn
