"""Ensembles: the index picks one of several networks, each with its own parameters.

Parameters and state of all members are stacked along the first axis of every leaf.
"""

import functools
from collections.abc import Sequence

import chex
import haiku as hk
import jax

from enn import _checks, base
from enn.networks import members, mlp_priors, no_state
from enn.networks.additive_priors import EnnWithAdditivePrior
from enn.networks.base import EnnArray, EnnNoState, Output
from enn.networks.gp_priors import make_random_gp_ensemble_prior_fns
from enn.networks.indexers import EnsembleIndexer
from enn.networks.init_once import init_once
from enn.networks.mlp_priors import make_mlp_ensemble_prior_fns
from enn.networks.prior_choice import (
    combine_functions_choice_via_index,
    combine_functions_linear_in_index,
)

__all__ = [
    "Ensemble",
    "EnsembleWithState",
    "MLPEnsembleMatchedPrior",
    "combine_functions_choice_via_index",
    "combine_functions_linear_in_index",
    "make_mlp_ensemble_prior_fns",
    "make_random_gp_ensemble_prior_fns",
]


class EnsembleWithState(EnnArray):
    """Independent copies of a model with network state.

    A forward pass runs the member that `index` selects and writes that member's new
    state back. Under `jax.vmap` over at least `num_ensemble` indices every member
    runs once, whatever the number of indices; the returned state then has a leading
    axis of indices, each copy with only its own member updated.

    Args:
      model: transformed function of inputs alone, without apply-rng.
      num_ensemble: number of members.

    Raises:
      ValueError: if `num_ensemble` is no integer >= 1; by `apply` for an index out
        of range, see `enn.networks.members`, and for parameters of another number of
        members.
    """

    def __init__(self, model: hk.TransformedWithState, num_ensemble: int):
        self.model = model
        self.num_ensemble = _checks.positive_int("num_ensemble", num_ensemble)
        super().__init__(self._apply, self._init, EnsembleIndexer(num_ensemble))

    def _init(
        self, rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del index
        # Eagerly, as the original `enn`: batch norm may amplify another rounding.
        keys = jax.random.split(rng_key, self.num_ensemble)
        return jax.vmap(self.model.init, in_axes=(0, None))(keys, inputs)

    def _apply(
        self, params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        def run(
            member: tuple[hk.Params, hk.State], inputs: chex.Array
        ) -> tuple[Output, hk.State]:
            return self.model.apply(*member, inputs)

        out, member_state = members.apply_member(
            run, (params, state), inputs, index, self.num_ensemble
        )
        return out, members.update_member(state, member_state, index, self.num_ensemble)


class Ensemble(EnnNoState):
    """Independent copies of a model without network state; see `EnsembleWithState`.

    Args:
      model: transformed function of inputs alone, without apply-rng.
      num_ensemble: number of members.
    """

    def __init__(self, model: hk.Transformed, num_ensemble: int):
        self.model = model
        self.num_ensemble = num_ensemble
        with_state = hk.with_empty_state(model)
        enn = no_state.wrap_enn_as_enn_no_state(
            EnsembleWithState(with_state, num_ensemble)
        )
        init = functools.partial(init_once, enn.init)
        super().__init__(enn.apply, init, enn.indexer)


class MLPEnsembleMatchedPrior(EnnWithAdditivePrior):
    """An ensemble of MLPs, each with a fixed random MLP of its own as prior function.

    Member k predicts f_k(x) + prior_scale · p_k(x), where p_k is an MLP of the same
    sizes that never trains (Osband et al., 2018, Randomized prior functions for deep
    reinforcement learning, https://arxiv.org/abs/1806.03335). Inputs are flattened.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      dummy_input: array shaped like an input batch `[batch, ...]`, which gives the
        priors their input size. If left out, the first input that `init` or `apply`
        sees does, with the same numbers.
      num_ensemble: number of members.
      prior_scale: factor of the prior functions.
      seed: seed of the prior functions. Numbers follow the original `enn`: its keys
        are those of `init`, so that with `jax.random.PRNGKey(seed)` there member 1
        starts equal to the prior of member 0.
      w_init: initialiser of the trainable weights; the priors keep the default one.
      b_init: initialiser of the trainable biases, likewise.

    Raises:
      ValueError: if `num_ensemble` or an entry of `output_sizes` is no integer >= 1;
        by `init` and `apply` for inputs of another size than the priors were made
        for.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        dummy_input: chex.Array | None = None,
        num_ensemble: int | None = None,
        prior_scale: float = 1.0,
        seed: int = 0,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        num_members = _checks.positive_int("num_ensemble", num_ensemble)
        model = mlp_priors.transformed_mlp(output_sizes, w_init, b_init)
        ensemble = EnsembleWithState(hk.with_empty_state(model), num_members)
        priors = mlp_priors.MLPPriors(output_sizes, num_members, seed)
        if dummy_input is not None:
            priors.params_for(dummy_input)

        def init(
            rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
        ) -> tuple[hk.Params, hk.State]:
            # Parameters and priors are made for the same inputs.
            priors.params_for(inputs)
            return init_once(ensemble.init, rng_key, inputs, index)

        sized = EnnArray(ensemble.apply, init, ensemble.indexer)
        super().__init__(sized, priors, prior_scale)
