"""Epinets, and an epinet on a trained base network as one epistemic network."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _known_rows, base
from enn.networks.base import EnnArray, Output, OutputWithPrior
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.utils import merge_modules, parse_to_output_with_prior, select_modules

BaseHiddenParser = Callable[[Any], chex.Array]
"""Output of a base network -> hidden features, `[batch, num_hidden]`."""


@runtime_checkable
class EpinetApplyWithState(Protocol):
    """Forward pass of an epinet at one epistemic index."""

    def __call__(
        self,
        params: base.AnyTree,
        state: base.AnyTree,
        inputs: base.AnyArray,
        index: base.Index,
        hidden: base.AnyArray,
        /,
    ) -> tuple[OutputWithPrior, base.AnyTree]:
        """Returns the output at `inputs` and `hidden`, and the new state."""
        ...


@runtime_checkable
class EpinetInitWithState(Protocol):
    """Initialisation of an epinet."""

    def __call__(
        self,
        key: chex.PRNGKey,
        inputs: base.AnyArray,
        index: base.Index,
        hidden: base.AnyArray,
        /,
    ) -> tuple[base.AnyTree, base.AnyTree]:
        """Returns initial parameters and state."""
        ...


@dataclasses.dataclass(eq=False)
class EpinetWithState:
    """A network that adds uncertainty to a base network: σ(x, φ(x), z).

    Osband et al., 2021, Epistemic neural networks, https://arxiv.org/abs/2107.08924.
    Compares and hashes by identity.

    Attributes:
      apply: `(params, state, inputs, index, hidden) -> (output, new_state)`.
      init: `(key, inputs, index, hidden) -> (params, state)`.
      indexer: `key -> index`, one draw from the reference distribution.
    """

    apply: EpinetApplyWithState
    init: EpinetInitWithState
    indexer: base.EpistemicIndexer


def combine_base_epinet_as_enn(
    base_checkpoint: EnnCheckpoint,
    epinet: EpinetWithState,
    parse_hidden: BaseHiddenParser,
    base_index: base.Index | None = None,
    base_scale: float = 1,
    freeze_base: bool = True,
    stop_hidden_gradient: bool = False,
) -> EnnArray:
    """Returns base_scale · μ(x) + σ(x, φ(x), z) for a trained base network μ.

    The base network and its features φ do not depend on the index: under `jax.vmap`
    over indices they are computed once. The checkpoint is loaded at the first forward
    pass or initialisation.

    Osband et al., 2021, https://arxiv.org/abs/2107.08924, section 4.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> from enn.networks import checkpoints, epinet
    >>> base = networks.wrap_net_fn_as_enn(lambda x: networks.ExposedMLP([4, 1])(x))
    >>> x, z, key = np.ones([5, 2]), np.zeros(2), jax.random.key(0)
    >>> trained = base.init(key, x, None)
    >>> checkpoint = checkpoints.EnnCheckpoint("mine", lambda: trained, lambda: base)
    >>> net = epinet.MLPEpinetWithPrior(index_dim=2, num_classes=1, epinet_hiddens=[4])
    >>> def features(out):
    ...     return out.extra["exposed_features"]
    >>> enn = epinet.combine_base_epinet_as_enn(checkpoint, net, features)
    >>> out, _ = enn.apply(*enn.init(key, x, z), x, z)
    >>> np.allclose(out.preds, base.apply(*trained, x, None)[0].preds)  # σ(x, 0) = 0
    True

    Args:
      base_checkpoint: the base network and its parameters.
      epinet: the epinet σ.
      parse_hidden: base output, an `OutputWithPrior`, -> features φ(x).
      base_index: index of the base network, drawn with key 0 by default.
      base_scale: factor of the base network's output.
      freeze_base: whether the base network keeps the parameters and state of its
        checkpoint, and only those of the epinet are the network's own. Otherwise the
        tree holds both, and both train.
      stop_hidden_gradient: whether no gradient flows from the epinet into the base
        network, where that trains.

    Returns:
      Network of `OutputWithPrior` `[batch, num_outputs]` with empty `extra`, and the
      epinet's indexer.

    Raises:
      ValueError: without `freeze_base`, by `init` if base and epinet have a module of
        the same name, and by `apply` if `params` or `state` lack one of the base.
    """
    loaded = _LoadedBase(base_checkpoint, base_index)

    def run_base(
        params: Mapping[str, Any], state: Mapping[str, Any], inputs: chex.Array
    ) -> tuple[OutputWithPrior, chex.Array, hk.State]:
        net_out, state = loaded.enn.apply(params, state, inputs, loaded.index)
        out = parse_to_output_with_prior(net_out)
        hidden = parse_hidden(out)
        if stop_hidden_gradient:
            hidden = jax.lax.stop_gradient(hidden)
        return out, hidden, state

    def add(base_out: OutputWithPrior, out: OutputWithPrior) -> OutputWithPrior:
        return OutputWithPrior(
            train=base_out.train * base_scale + out.train,
            prior=base_out.prior * base_scale + out.prior,
        )

    def frozen(inputs: chex.Array) -> tuple[OutputWithPrior, chex.Array] | None:
        out, hidden, state = run_base(loaded.params, loaded.state, inputs)
        before, after = jax.tree.leaves(loaded.state), jax.tree.leaves(state)
        # A new state comes from the batch, on which then every row depends.
        if list(map(id, before)) != list(map(id, after)):
            return None
        return out._replace(extra={}), hidden

    # Two networks on one base: in the first, parameters and state are the epinet's
    # alone; in the second, the modules of both lie side by side in one tree.
    def apply_on_frozen(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        known = _known_rows.look_up(frozen, inputs)
        if known is None:
            known = run_base(loaded.params, loaded.state, inputs)[:2]
        base_out, hidden = known
        out, state = epinet.apply(params, state, inputs, index, hidden)
        return add(base_out, out), state

    def init_on_frozen(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        _, hidden, _ = run_base(loaded.params, loaded.state, inputs)
        return epinet.init(rng_key, inputs, index, hidden)

    if freeze_base:
        return EnnArray(apply_on_frozen, init_on_frozen, epinet.indexer)

    def apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        base_params = select_modules(params, loaded.params)
        base_state = select_modules(state, loaded.state)
        base_out, hidden, base_state = run_base(base_params, base_state, inputs)
        # The epinet returns the base's entries as it is given them.
        state = {**state, **base_state}
        out, epinet_state = epinet.apply(params, state, inputs, index, hidden)
        return add(base_out, out), {**state, **epinet_state}

    def init(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        params, state = init_on_frozen(rng_key, inputs, index)
        return merge_modules(loaded.params, params), merge_modules(loaded.state, state)

    return EnnArray(apply, init, epinet.indexer)


class _LoadedBase:
    """The network of a checkpoint, made and loaded once, when it is needed.

    Values are concrete even where the first use is inside `jax.jit`.
    """

    def __init__(self, checkpoint: EnnCheckpoint, index: base.Index | None):
        self._checkpoint = checkpoint
        self._index = index

    @functools.cached_property
    def enn(self) -> EnnArray:
        return self._checkpoint.enn_ctor()

    @functools.cached_property
    def index(self) -> base.Index:
        if self._index is not None:
            return self._index
        with jax.ensure_compile_time_eval():
            return self.enn.indexer(jax.random.PRNGKey(0))

    @property
    def params(self) -> Mapping[str, Any]:
        return self._params_and_state[0]

    @property
    def state(self) -> Mapping[str, Any]:
        return self._params_and_state[1]

    @functools.cached_property
    def _params_and_state(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        with jax.ensure_compile_time_eval():
            params, state = self._checkpoint.load_fn()
            return jax.tree.map(jnp.asarray, (params, state))
