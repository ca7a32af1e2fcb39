"""Compiled programs that experiments of the same network and loss share."""

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import chex
import jax

from enn import _sharding
from enn.networks import forwarders
from enn.networks.base import EnnArray, Output
from enn.networks.indexers import draw_indices

_MAX_KEPT = 32
_BY_VALUE = (
    int,
    jax.sharding.Mesh,
    jax.sharding.Sharding,
    jax.tree_util.PyTreeDef,
    types.MethodType,  # Equal if it is the same method of the same object.
)

Make = TypeVar("Make", bound=Callable[..., Any])


class _Argument:
    """Equal to another that holds the same objects, or equal numbers and meshes."""

    def __init__(self, value: Any):
        self.value, self._key = value, _key(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Argument) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    return value if isinstance(value, _BY_VALUE) else id(value)


def shared(make: Make) -> Make:
    """Memoises `make`: the same objects give the same program.

    Objects are compared by identity: equal losses may still differ in what they
    close over. The programs used last are kept, with the objects they were made of.
    """

    @functools.lru_cache(_MAX_KEPT)
    def kept(*args: _Argument) -> Any:
        return make(*[arg.value for arg in args])

    @functools.wraps(make)
    def get(*args: Any) -> Any:
        return kept(*map(_Argument, args))

    return cast(Make, get)


@shared
def predict(enn: EnnArray, mesh: jax.sharding.Mesh | None) -> Callable[..., Output]:
    """Returns the forward pass `(state, inputs, key)` at the index drawn with a key."""

    @functools.partial(jax.jit, out_shardings=_sharding.replicated(mesh))
    def predict(state: Any, inputs: Any, key: chex.PRNGKey) -> Output:
        index = enn.indexer(key)
        return enn.apply(state.params, state.network_state, inputs, index)[0]

    return predict


@shared
def predict_many(
    enn: EnnArray, num_samples: int, mesh: jax.sharding.Mesh | None
) -> Callable[..., chex.Array]:
    """Returns the forward pass `(state, inputs, key)` at many indices."""

    @functools.partial(jax.jit, out_shardings=_sharding.replicated(mesh))
    def predict_many(state: Any, inputs: Any, key: chex.PRNGKey) -> jax.Array:
        indices = draw_indices(enn.indexer, key, num_samples)
        return forwarders.predict_at_indices(
            enn, state.params, state.network_state, inputs, indices
        )

    return predict_many


@shared
def loss(
    pure_loss: Callable[..., Any], mesh: jax.sharding.Mesh | None
) -> Callable[..., Any]:
    """Returns the loss `(state, batch, key) -> (loss, metrics)`."""

    @functools.partial(jax.jit, out_shardings=_sharding.replicated(mesh))
    def loss(state: Any, batch: Any, key: chex.PRNGKey) -> Any:
        value, (_, metrics) = pure_loss(state.params, state.network_state, batch, key)
        return value, metrics

    return loss
