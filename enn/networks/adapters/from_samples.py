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

_NEEDS_STATES = (
    "each sample needs its own: give `states`, as enn.posteriors.recompute_state "
    "returns them."
)


def from_samples(
    apply: Callable[[Any, Any], Any], stacked_params: Any
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a network whose index picks one of several samples of parameters.

    The samples may be those of a Markov chain, snapshots of a training run, or any
    other set that stands for a posterior. Trees of single samples are stacked by
    `jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)`; several chains are
    reshaped to one axis first. Under `jax.vmap` over at least as many indices as
    there are samples, each sample runs once.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> samples = {"slope": np.array([1.0, 2.0, 3.0])}  # Of a Markov chain
    >>> enn = networks.from_samples(lambda params, x: params["slope"] * x, samples)
    >>> x = np.array([[10.0]])
    >>> params, state = enn.init(jax.random.key(0), x, 0)
    >>> print(networks.make_batch_fwd(enn, 100)(params, state, x).max())
    30.0

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


def from_network_samples(
    enn: base.EpistemicNetwork[Any, Any],
    samples: Any,
    states: Any = None,
    index: base.Index | None = None,
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a network whose index picks one of several parameters of `enn`.

    As `from_samples`, for a network of this library, with or without network state.

    >>> import haiku as hk, jax, jax.numpy as jnp
    >>> from enn import networks
    >>> net = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1, with_bias=False)(x))
    >>> samples = {"linear": {"w": jnp.array([1.0, 2.0, 3.0])[:, None, None]}}
    >>> posterior = networks.from_network_samples(net, samples)
    >>> params, state = posterior.init(jax.random.key(0), jnp.ones([1, 1]), 0)
    >>> posterior.apply(params, state, jnp.ones([1, 1]), 2)[0].tolist()
    [[3.0]]

    Args:
      enn: the network that was trained, built for evaluation.
      samples: pytree of parameters `[num_samples, ...]`, such as
        `enn.posteriors.get_samples` returns.
      states: pytree of network states `[num_samples, ...]`, such as
        `enn.posteriors.recompute_state` returns; None for a network without state.
      index: the epistemic index of `enn`, the same for all samples; drawn with key 0 if
        it is None.

    Returns:
      Network with an integer index in [0, num_samples). Its `init` returns copies of
      `samples` and `states`.

    Raises:
      ValueError: if there are no arrays, or leading axes differ; by `init` and `apply`
        for a network with state if `states` is None; by `apply` for an index out of
        range, see `enn.networks.many_indices.members`.
    """
    num_samples = _num_samples((samples, states))
    own_index = enn.indexer(jax.random.PRNGKey(0)) if index is None else index

    def enn_apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        def run(sample: Any, inputs: Any) -> tuple[Any, hk.State]:
            own_params, own_state = sample
            return enn.apply(own_params, own_state, inputs, own_index)

        out, own_state = members.apply_member(
            run, (params, state), inputs, index, num_samples
        )
        _check_has_states(state, own_state)
        return out, members.update_member(state, own_state, index, num_samples)

    def enn_init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del index
        if states is None:
            try:
                _, own_state = jax.eval_shape(enn.init, rng_key, inputs, own_index)
            except ValueError as error:  # Batch normalisation for evaluation.
                error.add_note(f"If the network has state, {_NEEDS_STATES}")
                raise
            _check_has_states({}, own_state)
        return jax.tree.map(jnp.array, (samples, states or {}))

    return base.EpistemicNetwork(enn_apply, enn_init, EnsembleIndexer(num_samples))


def _check_has_states(states: hk.State, own_state: hk.State) -> None:
    if jax.tree.leaves(own_state) and not jax.tree.leaves(states):
        raise ValueError(f"The network has state, and {_NEEDS_STATES}")


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
