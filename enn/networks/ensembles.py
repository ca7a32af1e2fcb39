"""Ensembles: the index picks one of several networks, each with its own parameters.

Parameters and state of all members are stacked along the first axis of every leaf.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, _known_rows, _sharding, base
from enn.networks.base import EnnArray, EnnNoState, Output
from enn.networks.indexers import EnsembleIndexer, as_key
from enn.networks.inputs import check_transformed, flat_inputs, init_once
from enn.networks.many_indices import members
from enn.networks.many_indices.hoisting import depends_on_first
from enn.networks.mlp import transformed_mlp
from enn.networks.priors import (
    EnnWithAdditivePrior,
    GpGamma,
    PriorFn,
    make_random_feat_gp,
)


class EnsembleWithState(EnnArray):
    """Independent copies of a model with network state.

    f(x, k) = f_{θ_k}(x), as a deep ensemble (Lakshminarayanan et al., 2017,
    https://arxiv.org/abs/1612.01474).

    A forward pass runs the member that `index` selects and writes that member's new
    state back. Under `jax.vmap` over at least `num_ensemble` indices every member
    runs once, whatever the number of indices; the returned state then has a leading
    axis of indices, each copy with only its own member updated.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> model = hk.without_apply_rng(hk.transform_with_state(lambda x: hk.Linear(1)(x)))
    >>> enn = networks.EnsembleWithState(model, num_ensemble=3)
    >>> w = np.array([1.0, 2.0, 3.0])[:, None, None]
    >>> params = {"linear": {"w": w, "b": np.zeros([3, 1])}}
    >>> print(enn.apply(params, {}, np.array([[10.0]]), 2)[0])  # The last member, 3 x
    [[30.]]

    Args:
      model: transformed function of inputs alone, without apply-rng.
      num_ensemble: number of members.

    Raises:
      TypeError: unless `model` is such a pair of functions.
      ValueError: if `num_ensemble` is not an integer >= 1; by `apply` for an index out
        of range, see `enn.networks.many_indices.members`, and for parameters of
        a different number of members.
    """

    def __init__(self, model: hk.TransformedWithState, num_ensemble: int):
        check_transformed(model)
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

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> model = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)))
    >>> enn, x = networks.Ensemble(model, num_ensemble=3), np.ones([1, 2])
    >>> params = enn.init(jax.random.key(0), x, 0)
    >>> len({float(enn.apply(params, x, member)[0, 0]) for member in range(3)})
    3

    Args:
      model: transformed function of inputs alone, without apply-rng.
      num_ensemble: number of members.
    """

    def __init__(self, model: hk.Transformed, num_ensemble: int):
        check_transformed(model)
        self.model = model
        self.num_ensemble = num_ensemble
        enn = EnsembleWithState(hk.with_empty_state(model), num_ensemble)

        def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
            return enn.apply(params, {}, inputs, index)[0]

        def init(
            rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
        ) -> hk.Params:
            return init_once(enn.init, rng_key, inputs, index)[0]

        super().__init__(apply, init, enn.indexer)


class MemberIndex(NamedTuple):
    """Index of `make_ensemble`: the member, and the index that this member gets."""

    member: chex.Array
    own_index: base.Index


@dataclasses.dataclass(frozen=True)
class MemberIndexer(base.EpistemicIndexer):
    """Draws a `MemberIndex`: uniform over members, and from their own distribution."""

    indexer: base.EpistemicIndexer
    num_ensemble: int

    def __call__(self, key: chex.PRNGKey) -> MemberIndex:
        member_key, index_key = jax.random.split(key)
        member = EnsembleIndexer(self.num_ensemble)(member_key)
        return MemberIndex(member, self.indexer(index_key))


def make_ensemble(
    enn: base.EpistemicNetwork[Any, Any], num_ensemble: int
) -> base.EpistemicNetwork[Any, Any]:
    """Returns an ensemble of independent copies of any network, with network state.

    The members keep the randomness that they have, such as dropout: member and member's
    index are one index, (k, z) -> f_{θ_k}(x, z). If `enn` does not depend on its index,
    as BERT in evaluation, each member runs once under `jax.vmap` over at least
    `num_ensemble` indices.

    Lakshminarayanan et al., 2017, https://arxiv.org/abs/1612.01474.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([4, 2])(x))
    >>> ensemble = networks.make_ensemble(enn, num_ensemble=3)
    >>> x, index = np.ones([5, 3]), ensemble.indexer(jax.random.key(1))
    >>> params, state = ensemble.init(jax.random.key(0), x, index)
    >>> params["mlp/~/linear_0"]["w"].shape  # [num_ensemble, ...]
    (3, 3, 4)
    >>> out, _ = ensemble.apply(params, state, x, index)
    >>> own = jax.tree.map(lambda leaf: leaf[index.member], params)
    >>> np.allclose(out, enn.apply(own, state, x, index.own_index)[0])
    True

    Args:
      enn: the network; of Haiku, of another library or made by hand.
      num_ensemble: number of members.

    Returns:
      Network of the output of `enn`, whose index is a `MemberIndex`. The new state is
      that of all members, of which the one that ran is updated.

    Raises:
      ValueError: if `num_ensemble` is not an integer >= 1; by `apply` for a member out
        of range, see `enn.networks.many_indices.members`.
    """
    _checks.positive_int("num_ensemble", num_ensemble)

    def run(variables: Any, inputs_and_index: Any) -> tuple[Any, hk.State]:
        return enn.apply(*variables, *inputs_and_index)

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: MemberIndex
    ) -> tuple[Any, hk.State]:
        stacked = (params, state)
        first = jax.eval_shape(
            lambda x: members.select_member(x, 0, num_ensemble), stacked
        )
        member, own = index
        if not depends_on_first(lambda z, x: run(x, (inputs, z)), own, first):
            own = enn.indexer(jax.random.PRNGKey(0))
        out, member_state = members.apply_member(
            run, stacked, (inputs, own), member, num_ensemble
        )
        return out, members.update_member(state, member_state, member, num_ensemble)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: MemberIndex
    ) -> tuple[hk.Params, hk.State]:
        keys = jax.random.split(rng_key, num_ensemble)
        init_all = jax.vmap(enn.init, in_axes=(0, None, None))
        _, own = index
        return init_once(init_all, keys, inputs, own)

    return base.EpistemicNetwork(apply, init, MemberIndexer(enn.indexer, num_ensemble))


class MLPEnsembleMatchedPrior(EnnWithAdditivePrior):
    """An ensemble of MLPs, each with a fixed random MLP of its own as prior function.

    Member k predicts f_k(x) + prior_scale · p_k(x), where p_k is an MLP of the same
    sizes that never trains (Osband et al., 2018, Randomized prior functions for deep
    reinforcement learning, https://arxiv.org/abs/1806.03335). Inputs are flattened.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.MLPEnsembleMatchedPrior([4, 1], num_ensemble=3, prior_scale=2.0)
    >>> x = np.zeros([1, 2])
    >>> params, state = enn.init(jax.random.key(0), x, 0)
    >>> params["mlp/~/linear_0"]["w"].shape  # [num_ensemble, num_features, size]
    (3, 2, 4)
    >>> outs = [enn.apply(params, state, x + 1, member)[0] for member in range(3)]
    >>> len({float(out.prior[0, 0]) for out in outs})  # Each member has its own prior.
    3

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      dummy_input: array shaped like an input batch `[batch, ...]`, which gives the
        priors their input size. By default the first input that `init` or `apply`
        sees does so, with the same numbers.
      num_ensemble: number of members.
      prior_scale: factor of the prior functions.
      seed: seed of the prior functions. Numbers follow the original `enn`: its keys
        are those of `init`, so that with `jax.random.PRNGKey(seed)` there member 1
        starts equal to the prior of member 0.
      w_init: initialiser of the trainable weights; the priors keep the default one.
      b_init: initialiser of the trainable biases, likewise.

    Raises:
      ValueError: if `num_ensemble` or an entry of `output_sizes` is not an
        integer >= 1; by `init` and `apply` for inputs of another size than the priors
        were made for.
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
        model = transformed_mlp(output_sizes, w_init, b_init)
        ensemble = EnsembleWithState(hk.with_empty_state(model), num_members)
        priors = MLPPriors(output_sizes, num_members, seed)
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


def combine_functions_choice_via_index(
    prior_fns: Sequence[Callable[[base.AnyArray], chex.Array]],
) -> PriorFn:
    """Returns `(x, z) -> prior_fns[z](x)` for an integer index z.

    Under `jax.vmap` over z every function is evaluated once, not once for every
    index.

    >>> import numpy as np
    >>> from enn import networks
    >>> prior_fn = networks.combine_functions_choice_via_index([np.sin, np.square])
    >>> print(prior_fn(np.array([[3.0]]), np.int32(1)))
    [[9.]]

    Args:
      prior_fns: functions `[batch, ...] -> [batch, num_outputs]` of equal outputs.

    Raises:
      ValueError: if `prior_fns` is empty; by the result for an index out of range,
        see `enn.networks.many_indices.members`.
    """
    fns = _non_empty(prior_fns)

    def all_outputs(inputs: chex.Array) -> jax.Array:
        return jnp.stack([fn(inputs) for fn in fns], axis=1)

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        known = _known_rows.look_up(all_outputs, inputs)
        if known is not None:
            return members.select_member(known, index, len(fns), axis=1)
        return members.apply_choice(fns, inputs, index)

    return prior_fn


def combine_functions_linear_in_index(
    prior_fns: Sequence[Callable[[base.AnyArray], chex.Array]],
) -> PriorFn:
    """Returns `(x, z) -> Σ_n z_n prior_fns[n](x)` for an index `[len(prior_fns)]`.

    The functions do not depend on z: under `jax.vmap` over z each is evaluated once.

    >>> import jax.numpy as jnp, numpy as np
    >>> from enn import networks
    >>> prior_fn = networks.combine_functions_linear_in_index([jnp.abs, jnp.square])
    >>> print(prior_fn(np.array([[3.0]]), np.array([10.0, 1.0])))  # 10 · 3 + 3²
    [[39.]]

    Args:
      prior_fns: functions `[batch, ...] -> [batch, num_outputs]` of equal outputs.

    Raises:
      ValueError: if `prior_fns` is empty; by the result for an index of the
        wrong shape.
    """
    fns = _non_empty(prior_fns)

    def all_outputs(inputs: chex.Array) -> jax.Array:
        return jnp.stack([fn(inputs) for fn in fns], axis=-1)

    @_sharding.allow_explicit_axes
    @jax.jit
    def combine(inputs: chex.Array, index: base.Index) -> jax.Array:
        return all_outputs(inputs) @ jnp.asarray(index)

    def prior_fn(inputs: chex.Array, index: base.Index) -> jax.Array:
        _checks.shape("index", index, (len(fns),), f"[{len(fns)}]")
        known = _known_rows.look_up(all_outputs, inputs)
        return combine(inputs, index) if known is None else known @ index

    return prior_fn


def _non_empty(
    prior_fns: Sequence[Callable[[base.AnyArray], chex.Array]],
) -> tuple[Callable[[base.AnyArray], chex.Array], ...]:
    if not prior_fns:
        raise ValueError("prior_fns must hold at least one function.")
    return tuple(prior_fns)


@functools.lru_cache(maxsize=16)
def _init_members(
    output_sizes: tuple[int, ...],
    w_init: hk.initializers.Initializer | None,
    b_init: hk.initializers.Initializer | None,
) -> Callable[[chex.Array, chex.Array], hk.Params]:
    """Returns `(keys, inputs) -> parameters`, the same function for the same settings.

    So JAX compiles it once for all priors of an architecture.
    """
    init = transformed_mlp(output_sizes, w_init, b_init).init
    return jax.vmap(init, in_axes=(0, None))


class MLPPriors:
    """Fixed MLPs with stacked parameters, drawn when the input shape is known.

    Prior k has the parameters that an MLP gets from the k-th key of the sequence of
    `seed`. They depend on the number of features, not on the values of the inputs.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        num_ensemble: int,
        seed: int,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        self.num_ensemble = _checks.positive_int("num_ensemble", num_ensemble)
        self._model = transformed_mlp(output_sizes, w_init, b_init)
        self._init = _init_members(tuple(output_sizes), w_init, b_init)
        self._seed = seed
        self._num_features: int | None = None
        self._params: hk.Params = {}

    def params_for(self, inputs: chex.Array) -> hk.Params:
        """Returns the stacked parameters, drawing them at the first call."""
        flat = flat_inputs(inputs)
        num_features = flat.shape[-1]
        if self._num_features is None:
            # Concrete values even where the first input seen is inside jax.jit.
            with jax.ensure_compile_time_eval():
                rng = hk.PRNGSequence(self._seed)
                keys = [as_key(next(rng)) for _ in range(self.num_ensemble)]
                keys = jnp.stack(keys)
                dummy = jnp.zeros((1, num_features), flat.dtype)
                self._params = init_once(self._init, keys, dummy)
            self._num_features = num_features
        elif num_features != self._num_features:
            raise ValueError(
                "The prior functions were made for inputs of "
                f"{self._num_features} features, got shape {list(jnp.shape(inputs))}."
            )
        return self._params

    def __call__(self, inputs: chex.Array, index: base.Index) -> jax.Array:
        """Returns the prior `index` at `inputs`, `[batch, num_outputs]`."""
        params = self.params_for(inputs)
        known = _known_rows.look_up(self.all_outputs, inputs)
        if known is not None:
            return members.select_member(known, index, self.num_ensemble, axis=1)
        return members.apply_member(
            self._model.apply, params, inputs, index, self.num_ensemble
        )

    def all_outputs(self, inputs: chex.Array) -> jax.Array:
        """Returns all priors at `inputs`, `[batch, num_ensemble, num_outputs]`."""
        outputs = members.run_members(
            self._model.apply, self.params_for(inputs), inputs, self.num_ensemble
        )
        return jnp.moveaxis(outputs, 0, 1)


def make_mlp_ensemble_prior_fns(
    output_sizes: Sequence[int],
    dummy_input: chex.Array,
    num_ensemble: int,
    seed: int = 0,
    w_init: hk.initializers.Initializer | None = None,
    b_init: hk.initializers.Initializer | None = None,
) -> Sequence[Callable[[chex.Array], jax.Array]]:
    """Returns `num_ensemble` fixed random MLPs `[batch, ...] -> [batch, num_outputs]`.

    For `combine_functions_choice_via_index` (Osband et al., 2018,
    https://arxiv.org/abs/1806.03335).

    >>> import numpy as np
    >>> from enn import networks
    >>> x = np.ones([3, 2])
    >>> fns = networks.make_mlp_ensemble_prior_fns([4, 1], x, num_ensemble=3, seed=1)
    >>> len({float(fn(x)[0, 0]) for fn in fns})  # Three functions, each its own
    3

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      dummy_input: array shaped like an input batch.
      num_ensemble: how many functions.
      seed: seed of the parameters.
      w_init: initialiser of the weights.
      b_init: initialiser of the biases.
    """
    priors = MLPPriors(output_sizes, num_ensemble, seed, w_init, b_init)
    priors.params_for(dummy_input)
    return [functools.partial(priors, index=index) for index in range(num_ensemble)]


def make_random_gp_ensemble_prior_fns(
    input_dim: int,
    output_dim: int,
    num_feat: int,
    gamma: GpGamma,
    num_ensemble: int,
    seed: int = 0,
) -> Sequence[Callable[[chex.Array], jax.Array]]:
    """Returns `num_ensemble` independent samples of `make_random_feat_gp`."""
    rng = hk.PRNGSequence(seed)
    return [
        make_random_feat_gp(input_dim, output_dim, num_feat, next(rng), gamma)
        for _ in range(_checks.positive_int("num_ensemble", num_ensemble))
    ]
