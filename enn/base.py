"""The contract: an epistemic network, and the loss that trains it.

An epistemic neural network (ENN) is a function f_θ(x, z) of an input x and an
epistemic index z ~ P_Z. Averaging predictions over z gives marginal predictions;
holding z fixed across several inputs gives joint ones (Osband et al., 2021,
https://arxiv.org/abs/2107.08924, section 2).
"""

import dataclasses
import pickle
import sys
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import chex

Input = TypeVar("Input")
Output = TypeVar("Output")
Data = TypeVar("Data")

_InputContra = TypeVar("_InputContra", contravariant=True)
_OutputCo = TypeVar("_OutputCo", covariant=True)
_DataContra = TypeVar("_DataContra", contravariant=True)

Index = Any
"""An epistemic index: an int32 scalar, a float vector or a PRNG key."""

AnyArray = Any
"""An array, as own functions may annotate it: `jax.Array`, `np.ndarray`, `chex.Array`.

The library calls them with either kind. A type of its own for what they are given would
have checkers refuse those that say `jax.Array`, for they take no `np.ndarray`.
"""

AnyTree = Any
"""Parameters or state, as own functions may annotate them: `hk.Params`, `dict`, ..."""

LossMetrics = dict[str, AnyArray]
LossOutput = tuple[chex.Array, tuple[AnyTree, LossMetrics]]


@runtime_checkable
class EpistemicIndexer(Protocol):
    """Draws one epistemic index from the reference distribution P_Z.

    >>> import jax
    >>> from enn import base, utils
    >>> def coin(key):
    ...     return jax.random.bernoulli(key).astype(int)
    >>> isinstance(coin, base.EpistemicIndexer)
    True
    >>> round(float(utils.make_batch_indexer(coin, 1000)(jax.random.key(0)).mean()), 1)
    0.5
    """

    def __call__(self, key: chex.PRNGKey, /) -> Index:
        """Returns the index drawn with `key`; works under `jax.jit` and `jax.vmap`."""
        ...


@runtime_checkable
class ApplyFn(Protocol[_InputContra, _OutputCo]):
    """Forward pass of an ENN at one epistemic index."""

    def __call__(
        self, params: AnyTree, state: AnyTree, inputs: _InputContra, index: Index, /
    ) -> tuple[_OutputCo, AnyTree]:
        """Returns the output at `inputs` for one `index`, and the new state."""
        ...


@runtime_checkable
class InitFn(Protocol[_InputContra]):
    """Initialisation of an ENN."""

    def __call__(
        self, rng_key: chex.PRNGKey, inputs: _InputContra, index: Index, /
    ) -> tuple[AnyTree, AnyTree]:
        """Returns initial parameters and state for inputs shaped like `inputs`."""
        ...


@dataclasses.dataclass(eq=False)
class EpistemicNetwork(Generic[_InputContra, _OutputCo]):
    """An epistemic neural network as a triple of pure functions.

    f_θ(x, z) for z ~ P_Z (Osband et al., 2021, https://arxiv.org/abs/2107.08924,
    section 2).

    Call the three positionally: argument names differ between networks. Compares
    and hashes by identity, so that a network can be a static argument of
    `jax.jit`. For `isinstance`, use this class and not its subscripted aliases.

    >>> import jax, numpy as np
    >>> from enn import base, networks
    >>> def apply(params, state, inputs, index):  # f(x, z) = x·(w + z)
    ...     return inputs @ (params["w"] + index)[:, None], state
    >>> def init(key, inputs, index):
    ...     return {"w": np.ones(inputs.shape[1])}, {}
    >>> enn = base.EpistemicNetwork(apply, init, networks.GaussianIndexer(2))
    >>> x, z = np.array([[1.0, 10.0]]), np.array([0.5, 0.25])
    >>> params, state = enn.init(jax.random.key(0), x, z)
    >>> print(enn.apply(params, state, x, z)[0])
    [[14.]]

    Attributes:
      apply: `(params, state, inputs, index) -> (output, new_state)`. Takes no random
        key: a network with randomness of its own uses the index as its key.
      init: `(key, inputs, index) -> (params, state)`.
      indexer: `key -> index`, one draw from the reference distribution.
    """

    apply: ApplyFn[_InputContra, _OutputCo]
    init: InitFn[_InputContra]
    indexer: EpistemicIndexer

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Says what to do instead where `pickle` meets functions made by functions."""
        # `copy` and `cloudpickle`, which call this too, keep such functions.
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if "cloudpickle" not in caller and caller not in ("copy", "dill._dill"):
            try:
                pickle.dumps((self.apply, self.init, self.indexer))
            except Exception as error:
                raise TypeError(
                    "A network is made of functions, which cannot be pickled: save it "
                    "by enn.checkpoints.save_pretrained(..., config=...), or pickle "
                    "the function that makes it."
                ) from error
        return super().__reduce_ex__(protocol)


@runtime_checkable
class LossFn(Protocol[_InputContra, _OutputCo, _DataContra]):
    """Loss of an ENN on a batch, a function of one random key.

    >>> import jax, numpy as np
    >>> from enn import base, datasets, networks
    >>> def loss_fn(enn, params, state, batch, key):
    ...     out, state = enn.apply(params, state, batch.x, enn.indexer(key))
    ...     return ((out - batch.y) ** 2).mean(), (state, {"largest": out.max()})
    >>> def apply(params, state, x, z):
    ...     return params * x, state
    >>> enn = base.EpistemicNetwork(apply, None, networks.PrngIndexer())
    >>> batch = datasets.ArrayBatch(x=np.array([[1.0], [2.0]]), y=np.zeros([2, 1]))
    >>> loss, (state, metrics) = loss_fn(enn, 1.0, {}, batch, jax.random.key(0))
    >>> float(loss), float(metrics["largest"])
    (2.5, 2.0)
    """

    def __call__(
        self,
        enn: EpistemicNetwork[Any, Any],
        params: AnyTree,
        state: AnyTree,
        batch: _DataContra,
        key: chex.PRNGKey,
        /,
    ) -> LossOutput:
        """Returns `(loss, (new_state, metrics))` with scalar loss and metrics."""
        ...
