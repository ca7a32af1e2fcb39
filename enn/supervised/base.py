"""What every experiment offers, and its predictions at many epistemic indices."""

import abc
import dataclasses
import functools
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks
from enn.datasets.base import ArrayBatchIterator
from enn.networks import forwarders, utils
from enn.networks.base import EnnNoState, Output


@dataclasses.dataclass(eq=False)
class BaseExperiment(abc.ABC):
    """A network in training. Compares and hashes by identity.

    Attributes:
      dataset: iterator of training batches.
    """

    dataset: ArrayBatchIterator

    @abc.abstractmethod
    def train(self, num_batches: int) -> None:
        """Trains for `num_batches` steps."""

    @abc.abstractmethod
    def predict(self, inputs: chex.Array, key: chex.PRNGKey) -> Output:
        """Returns the network's output at `inputs`, at the index drawn with `key`."""

    @abc.abstractmethod
    def loss(self, batch: Any, key: chex.PRNGKey) -> jax.Array:
        """Returns the loss on `batch`."""


def check_network(enn: Any) -> None:
    """Raises TypeError unless `enn` is an epistemic network with state."""
    if isinstance(enn, EnnNoState):
        raise TypeError(
            "enn is a network without state: pass "
            "enn.networks.wrap_enn_no_state_as_enn(enn)."
        )
    is_network = all(
        callable(getattr(enn, name, None)) for name in ("apply", "init", "indexer")
    )
    if isinstance(enn, type) or not is_network:
        got = (
            f"the class {enn.__name__}" if isinstance(enn, type) else type(enn).__name__
        )
        raise TypeError(
            "enn must be an enn.base.EpistemicNetwork, with functions apply, init and "
            f"indexer; got {got}. Modules of Flax, NNX and Equinox become one by "
            "enn.networks.from_flax, from_nnx and from_equinox, functions in Haiku by "
            "enn.networks.wrap_net_fn_as_enn."
        )


# Compiled once for a network, however often it is plotted.
_predict_at_indices = functools.partial(jax.jit, static_argnums=0)(
    forwarders.predict_at_indices
)


def sample_predictions(
    experiment: BaseExperiment, inputs: Any, num_sample: int
) -> jax.Array:
    """Returns what `experiment.predict` gives for a fixed sequence of keys.

    An experiment with attributes `enn` and `state` predicts at all indices at once.

    >>> from enn import networks, supervised
    >>> test = supervised.make_test_experiment(regression=False)
    >>> enn = networks.make_einsum_ensemble_mlp_enn([test.num_outputs], num_ensemble=3)
    >>> experiment = test.experiment_ctor(enn)
    >>> supervised.sample_predictions(experiment, test.dummy_input, num_sample=10).shape
    (10, 20, 2)

    Args:
      experiment: the trained network.
      inputs: `[batch, ...]`, or several such arrays, as a `BertInput`.
      num_sample: number of indices; the first ones do not depend on it.

    Returns:
      Predictions, `[num_sample, batch, num_outputs]`.

    Raises:
      ValueError: unless `num_sample` is an integer >= 1.
    """
    _checks.positive_int("num_sample", num_sample)
    rng = hk.PRNGSequence(0)
    keys = jnp.stack([next(rng) for _ in range(num_sample)])
    enn, state = (getattr(experiment, name, None) for name in ("enn", "state"))
    if enn is None or state is None:
        out = [utils.parse_net_output(experiment.predict(inputs, k)) for k in keys]
        return jnp.stack(out)
    indices = jax.vmap(enn.indexer)(keys)
    return _predict_at_indices(enn, state.params, state.network_state, inputs, indices)
