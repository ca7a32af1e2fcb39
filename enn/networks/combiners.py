"""A head network on top of a base network, such as an epinet on BERT."""

from collections.abc import Callable
from typing import Any, TypeVar

import chex
import haiku as hk
import jax

from enn import _checks, base
from enn.networks.forwarders import EnnBatchFwd, compile_forward
from enn.networks.indexers import as_key
from enn.networks.many_indices.index_map import map_indices
from enn.networks.utils import merge_modules, parse_net_output

HeadInput = TypeVar("HeadInput")
BaseOutput = TypeVar("BaseOutput")


def combine_naive_enn(
    head_enn: base.EpistemicNetwork[HeadInput, Any],
    base_enn: base.EpistemicNetwork[Any, BaseOutput],
    parse_base_network: Callable[[BaseOutput], HeadInput] = parse_net_output,  # pyrefly: ignore[bad-function-definition]
    independent_keys: bool = False,
) -> base.EpistemicNetwork[Any, Any]:
    """Returns the network `head_enn(base_enn(x))`.

    The index is a PRNG key: the base's index, from which the head's is drawn. If the
    base does not use its key, it runs once under `jax.vmap` over indices. Parameters
    and state of the two parts lie side by side, under the names of their modules.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> trunk = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1, name="trunk")(x))
    >>> head = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1, name="head")(x))
    >>> enn = networks.combine_naive_enn(head_enn=head, base_enn=trunk)
    >>> double = {"w": np.array([[2.0]]), "b": np.ones(1)}  # 2 h + 1
    >>> params = {"trunk": double, "head": double}
    >>> print(enn.apply(params, {}, np.array([[5.0]]), jax.random.key(0))[0])
    [[23.]]

    Args:
      head_enn: network on the parsed output of the base.
      base_enn: network whose index is a PRNG key.
      parse_base_network: base output -> input of the head; the predictions by default.
      independent_keys: whether base and head get different keys, split from the
        index. Numbers follow the original `enn` by default: both get the index
        itself, so that noise in the base and the head's index are correlated.

    Raises:
      ValueError: if the base's index is not a key; by `init`, if base and head have a
        module of the same name; by `apply` for an index that is not a PRNG key.
    """
    _check_index_is_key(base_enn.indexer)

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        base_key, head_key = _split(as_key(index), independent_keys)
        base_out, base_state = base_enn.apply(params, state, inputs, base_key)
        # Each part returns the entries of the other as it was given them.
        state = {**state, **base_state}
        head_inputs = parse_base_network(base_out)
        head_index = head_enn.indexer(head_key)
        out, head_state = head_enn.apply(params, state, head_inputs, head_index)
        return out, {**state, **head_state}

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        base_key, head_key = jax.random.split(rng_key)
        base_params, base_state = base_enn.init(base_key, inputs, index)
        base_out, _ = base_enn.apply(base_params, base_state, inputs, index)
        head_params, head_state = head_enn.init(
            head_key, parse_base_network(base_out), head_enn.indexer(head_key)
        )
        return (
            merge_modules(base_params, head_params),
            merge_modules(base_state, head_state),
        )

    return base.EpistemicNetwork(apply, init, base_enn.indexer)


def make_optimized_forward(
    head_enn: base.EpistemicNetwork[HeadInput, Any],
    base_enn: base.EpistemicNetwork[Any, BaseOutput],
    num_enn_samples: int,
    key: chex.PRNGKey,
    parse_base_network: Callable[[BaseOutput], HeadInput] = parse_net_output,  # pyrefly: ignore[bad-function-definition]
    independent_keys: bool = False,
    batch_z: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> EnnBatchFwd:
    """Returns a compiled forward pass that runs the base once for all indices.

    Sample i equals that of `combine_naive_enn` at the index `split(key)[i]`, if the
    base does not use its key. The new network state is discarded.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import base, networks
    >>> def apply(params, state, inputs, index):  # Member k adds k.
    ...     return inputs + index, state
    >>> head = base.EpistemicNetwork(apply, None, networks.EnsembleIndexer(3))
    >>> trunk = networks.wrap_net_fn_as_enn(lambda x: 10 * x)
    >>> forward = networks.make_optimized_forward(head, trunk, 100, jax.random.key(0))
    >>> set(forward({}, {}, np.array([[1.0]])).ravel().tolist())
    {10.0, 11.0, 12.0}

    Args:
      head_enn: network on the parsed output of the base.
      base_enn: network whose index is a PRNG key.
      num_enn_samples: how many indices of the head.
      key: key of the base, split for the head. The result takes another one as an
        optional fourth argument.
      parse_base_network: base output -> input of the head; the predictions by default.
      independent_keys: as given to `combine_naive_enn`.
      batch_z: how many indices to evaluate at once, see
        `enn.networks.many_indices.index_map.map_indices`.
      mesh: devices to share the work, see `enn.networks.forwarders.compile_forward`.

    Raises:
      ValueError: if the base's index is not a key, `num_enn_samples` is not
        an integer >= 1, or for a mesh with other axes.
    """
    _check_index_is_key(base_enn.indexer)
    num_samples = _checks.positive_int("num_enn_samples", num_enn_samples)
    fixed_key = key

    def forward(
        params: hk.Params, state: hk.State, inputs: Any, key: chex.PRNGKey | None = None
    ) -> jax.Array:
        key = fixed_key if key is None else key
        base_out, _ = base_enn.apply(params, state, inputs, key)
        head_inputs = parse_base_network(base_out)

        def predict(sample_key: chex.PRNGKey) -> jax.Array:
            _, head_key = _split(sample_key, independent_keys)
            head_index = head_enn.indexer(head_key)
            out, _ = head_enn.apply(params, state, head_inputs, head_index)
            return parse_net_output(out)

        return map_indices(predict, jax.random.split(key, num_samples), batch_z)

    return compile_forward(forward, head_enn.indexer, mesh)


def _split(
    key: chex.PRNGKey, independent_keys: bool
) -> tuple[chex.PRNGKey, chex.PRNGKey]:
    if not independent_keys:
        return key, key
    base_key, head_key = jax.random.split(key)
    return base_key, head_key


def _check_index_is_key(indexer: base.EpistemicIndexer) -> None:
    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    index = jax.eval_shape(indexer, key)
    if jax.tree.map(lambda a: (a.shape, a.dtype), index) != (key.shape, key.dtype):
        raise ValueError(
            "The index of base_enn must be a PRNG key, like that of PrngIndexer; its "
            f"indexer gives {index}."
        )
