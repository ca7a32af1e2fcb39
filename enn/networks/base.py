"""Types of networks on arrays: their output, and the shapes of their functions."""

import abc
import dataclasses
from typing import Any, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import base

_NO_PRIOR = np.zeros(1)
_NO_EXTRA: dict[str, base.AnyArray] = {}


class _OutputFields(NamedTuple):
    train: chex.Array
    prior: chex.Array
    extra: dict[str, base.AnyArray]


class OutputWithPrior(_OutputFields):
    """Output of a network with an additive prior function.

    preds = train + stop_gradient(prior) (Osband et al., 2018,
    https://arxiv.org/abs/1806.03335).

    A pytree that keeps its type through `jax.vmap`, `jax.tree.map` and `_replace`.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> def prediction(train, prior):
    ...     return networks.OutputWithPrior(train, prior).preds[0, 0]
    >>> train, prior = np.array([[1.0]]), np.array([[0.5]])
    >>> float(prediction(train, prior))
    1.5
    >>> jax.grad(prediction, argnums=(0, 1))(train, prior)  # The prior never trains.
    (Array([[1.]], dtype=float32), Array([[0.]], dtype=float32))

    Attributes:
      train: trainable part, `[batch, num_outputs]`.
      prior: fixed part, of the shape of the predictions; zeros if left out.
      extra: further outputs by name, such as hidden activations.
    """

    __slots__ = ()

    def __new__(
        cls,
        train: chex.Array,
        prior: chex.Array = _NO_PRIOR,
        extra: dict[str, base.AnyArray] = _NO_EXTRA,
    ) -> "OutputWithPrior":
        if prior is _NO_PRIOR:
            prior = cls._zero_prior(train)
        return super().__new__(cls, train, prior, {} if extra is _NO_EXTRA else extra)

    @staticmethod
    def _zero_prior(train: chex.Array) -> jax.Array:
        return jnp.zeros_like(train)

    @property
    def preds(self) -> jax.Array:
        """Predictions: `train + stop_gradient(prior)`, so the prior never trains."""
        return jnp.add(self.train, jax.lax.stop_gradient(self.prior))


Output: TypeAlias = chex.Array | OutputWithPrior


def parse_net_output(net_out: Output) -> jax.Array:
    """Returns the predictions of an `OutputWithPrior`, or the plain array itself.

    >>> import numpy as np
    >>> from enn import networks
    >>> train, prior = np.array([[1.0]]), np.array([[0.5]])
    >>> print(networks.parse_net_output(networks.OutputWithPrior(train, prior)))
    [[1.5]]
    >>> print(networks.parse_net_output(train))
    [[1.]]

    Raises:
      TypeError: for a plain tuple.
    """
    _check_not_tuple(net_out)
    if isinstance(net_out, OutputWithPrior):
        return net_out.preds
    return cast(jax.Array, net_out)  # JAX's, where the network ran under JAX.


def _check_not_tuple(net_out: Any) -> None:
    if type(net_out) is tuple:
        raise TypeError(
            "The network must return an array [batch, num_outputs] or an "
            f"OutputWithPrior, got a tuple of {len(net_out)}: put further outputs into "
            "OutputWithPrior(train=..., extra={name: ...})."
        )


def parse_to_output_with_prior(net_out: Output) -> OutputWithPrior:
    """Returns an `OutputWithPrior` as it is, and a plain array with a zero prior.

    >>> import numpy as np
    >>> from enn import networks
    >>> out = networks.parse_to_output_with_prior(np.array([[1.0]]))
    >>> print(out.train, out.prior)
    [[1.]] [[0.]]

    Raises:
      TypeError: for a plain tuple.
    """
    _check_not_tuple(net_out)
    if isinstance(net_out, OutputWithPrior):
        return net_out
    return OutputWithPrior(train=net_out, prior=jnp.zeros_like(net_out))


def extra_output(net_out: Any, name: str) -> Any:
    """Returns `net_out.extra[name]`.

    Raises:
      ValueError: if the network output has no extra output of that name.
    """
    if not isinstance(net_out, OutputWithPrior):
        raise ValueError(
            f"The network must return an OutputWithPrior with extra[{name!r}], "
            f"got a {type(net_out).__name__}."
        )
    if name not in net_out.extra:
        raise ValueError(
            f"The network output must have extra[{name!r}], "
            f"got extra outputs {sorted(net_out.extra)}."
        )
    return net_out.extra[name]


ApplyArray = base.ApplyFn[base.AnyArray, Output]
InitArray = base.InitFn[base.AnyArray]
EnnArray = base.EpistemicNetwork[base.AnyArray, Output]


@runtime_checkable
class ApplyNoState(Protocol):
    """Forward pass of an ENN without network state."""

    def __call__(
        self, params: base.AnyTree, inputs: base.AnyArray, index: base.Index, /
    ) -> Output:
        """Returns the output at `inputs` for one `index`."""
        ...


@runtime_checkable
class InitNoState(Protocol):
    """Initialisation of an ENN without network state."""

    def __call__(
        self, rng_key: chex.PRNGKey, inputs: base.AnyArray, index: base.Index, /
    ) -> base.AnyTree:
        """Returns initial parameters for inputs shaped like `inputs`."""
        ...


@dataclasses.dataclass(eq=False)
class EnnNoState:
    """An epistemic network without network state; see `enn.base.EpistemicNetwork`.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> def apply(params, inputs, index):
    ...     return params * inputs + index
    >>> members = networks.EnsembleIndexer(3)
    >>> enn = networks.EnnNoState(apply, lambda key, inputs, index: 2.0, members)
    >>> params = enn.init(jax.random.key(0), np.ones([1, 1]), 0)
    >>> print(enn.apply(params, np.ones([1, 1]), 2))
    [[4.]]
    """

    apply: ApplyNoState
    init: InitNoState
    indexer: base.EpistemicIndexer


class EpistemicModule(abc.ABC, hk.Module):
    """A Haiku module that takes an epistemic index beside its inputs."""

    @abc.abstractmethod
    def __call__(self, inputs: chex.Array, index: base.Index) -> Any:
        """Returns the output at `inputs` for one `index`."""
