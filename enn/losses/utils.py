"""Losses made of losses: sums, others as metrics, data noise and weight decay."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.base import Data, Input, Output
from enn.data_noise.base import DataNoiseBase
from enn.losses.base import (
    LossFnNoState,
    SingleLossFn,
    SingleLossFnNoState,
    wrap_loss_as_loss_no_state,
    wrap_loss_no_state_as_loss,
    wrap_single_loss_as_single_loss_no_state,
    wrap_single_loss_no_state_as_single_loss,
)
from enn.metrics.base import at_least_float32

__all__ = [
    "CombineLossConfig",
    "CombineLossConfigNoState",
    "PredicateFn",
    "add_data_noise",
    "add_data_noise_no_state",
    "add_l2_weight_decay",
    "add_l2_weight_decay_no_state",
    "combine_losses",
    "combine_losses_as_metric",
    "combine_losses_no_state",
    "combine_losses_no_state_as_metric",
    "combine_single_index_losses_as_metric",
    "combine_single_index_losses_no_state_as_metric",
    "l2_weights_with_predicate",
    "wrap_loss_no_state_as_loss",
    "wrap_single_loss_no_state_as_single_loss",
]

PredicateFn = Callable[[str, str, Any], bool]
"""`(module_name, name, value) -> bool`: whether to select a parameter."""


def l2_weights_with_predicate(
    params: hk.Params, predicate: PredicateFn | None = None
) -> jax.Array | int:
    """Returns Σ p² over the parameters that `predicate` selects, all if None.

    >>> import numpy as np
    >>> from enn import losses
    >>> params = {"linear": {"w": np.array([3.0, 4.0]), "b": np.array([10.0])}}
    >>> def is_weight(module_name, name, value):
    ...     return name == "w"
    >>> float(losses.l2_weights_with_predicate(params, is_weight))
    25.0

    Returns:
      A scalar; the integer 0 if no parameter is selected.
    """
    if predicate is not None:
        params = hk.data_structures.filter(predicate, params)
    leaves = map(at_least_float32, jax.tree.leaves(params))
    return sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)


def add_l2_weight_decay(
    loss_fn: base.LossFn[Input, Output, Data],
    scale: float | Callable[[hk.Params], hk.Params],
    predicate: PredicateFn | None = None,
) -> base.LossFn[Input, Output, Data]:
    """Returns `loss_fn` plus `scale` · Σ p², without a factor of one half.

    Adds the metrics `decay`, the second term, and `raw_loss`, the first.

    >>> import numpy as np
    >>> from enn import losses
    >>> def loss_fn(enn, params, state, batch, key):
    ...     return np.float32(1.0), (state, {})
    >>> params = {"linear": {"w": np.array([3.0, 4.0])}}
    >>> decayed = losses.add_l2_weight_decay(loss_fn, scale=0.01)
    >>> loss, (_, metrics) = decayed(None, params, {}, None, None)
    >>> round(float(loss), 3), round(float(metrics["decay"]), 3)
    (1.25, 0.25)

    Args:
      loss_fn: the loss to add to.
      scale: a number >= 0; or a function of the whole parameter tree, the squares of
        whose result is summed as it is (so a factor s in it counts as s²).
      predicate: selects the parameters that decay, all if None; called with names
        and, as the value, the parameter times √scale.

    Raises:
      ValueError: for a negative scale.
    """
    if not callable(scale) and _checks.is_concrete(scale) and not scale >= 0:
        raise ValueError(f"scale must be a number >= 0 or a function, got {scale}.")

    def scaled(params: hk.Params) -> hk.Params:
        if callable(scale):
            return scale(params)
        return jax.tree.map(lambda p: jnp.sqrt(scale) * at_least_float32(p), params)

    def loss_with_decay(
        enn: base.EpistemicNetwork[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        raw_loss, (state, metrics) = loss_fn(enn, params, state, batch, key)
        decay = l2_weights_with_predicate(scaled(params), predicate)
        decay = jnp.asarray(decay, jnp.result_type(raw_loss))
        metrics = {**metrics, "decay": decay, "raw_loss": raw_loss}
        return raw_loss + decay, (state, metrics)

    return loss_with_decay


def add_data_noise(
    single_loss: SingleLossFn[Input, Output, Data], noise_fn: DataNoiseBase[Data]
) -> SingleLossFn[Input, Output, Data]:
    """Returns `single_loss` on `noise_fn(batch, index)`, the data that an index sees.

    >>> import numpy as np
    >>> from enn import data_noise, datasets, losses, networks
    >>> def apply(params, state, x, index):
    ...     return 0 * x, state
    >>> x = np.zeros([1000, 1])
    >>> batch = datasets.ArrayBatch(x=x, y=x, data_index=np.arange(1000)[:, None])
    >>> enn = networks.MLPEnsembleMatchedPrior([1], num_ensemble=10)
    >>> noise = data_noise.GaussianTargetNoise(enn, noise_std=2.0)
    >>> loss_fn = losses.add_data_noise(losses.L2Loss(), noise)
    >>> loss, _ = loss_fn(apply, {}, {}, batch, index=np.int32(3))
    >>> round(float(loss))  # 2²
    4

    Args:
      single_loss: the loss to evaluate.
      noise_fn: such as `enn.data_noise.BootstrapNoise`.
    """

    def noisy_loss(
        apply: base.ApplyFn[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        index: base.Index,
    ) -> base.LossOutput:
        return single_loss(apply, params, state, noise_fn(batch, index), index)

    return noisy_loss


def combine_single_index_losses_as_metric(
    train_loss: SingleLossFn[Input, Output, Data],
    extra_losses: Mapping[str, SingleLossFn[Input, Output, Data]],
) -> SingleLossFn[Input, Output, Data]:
    """Returns `train_loss` with other losses at the same index among its metrics.

    All losses see the state that the combined loss is given; the new state is the
    one that `train_loss` returns.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> extra, xent = {"error": losses.AccuracyErrorLoss(2)}, losses.XentLoss(2)
    >>> loss_fn = losses.combine_single_index_losses_as_metric(xent, extra)
    >>> def apply(params, state, x, index):
    ...     return x, state
    >>> batch = datasets.ArrayBatch(x=np.array([[1.0, 0.0]]), y=np.array([[1]]))
    >>> loss, (_, metrics) = loss_fn(apply, {}, {}, batch, index=0)
    >>> round(float(loss), 3), float(metrics["error:loss"])  # log(1 + e), all wrong
    (1.313, 1.0)

    Args:
      train_loss: gives loss, new state and metrics.
      extra_losses: for each name, adds the metrics `name:loss` and, for its own
        metrics, `name:metric`.
    """

    def combined_loss(
        apply: base.ApplyFn[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        index: base.Index,
    ) -> base.LossOutput:
        args = (apply, params, state, batch, index)
        return _with_metrics(train_loss(*args), extra_losses, args)

    return combined_loss


def combine_losses_as_metric(
    train_loss: base.LossFn[Input, Output, Data],
    extra_losses: Mapping[str, base.LossFn[Input, Output, Data]],
) -> base.LossFn[Input, Output, Data]:
    """Returns `train_loss` with other losses among its metrics.

    All losses see the same state and the same key, hence the same indices if they
    average over equally many. The new state is the one that
    `train_loss` returns.

    >>> from enn import losses
    >>> def train(enn, params, state, batch, key):
    ...     return 1.0, (state, {})
    >>> def test(enn, params, state, batch, key):
    ...     return 2.0, (state, {"accuracy": 0.5})
    >>> loss_fn = losses.combine_losses_as_metric(train, {"test": test})
    >>> loss_fn(enn=None, params={}, state={}, batch=None, key=None)
    (1.0, ({}, {'test:loss': 2.0, 'test:accuracy': 0.5}))

    Args:
      train_loss: gives loss, new state and metrics.
      extra_losses: for each name, adds the metrics `name:loss` and, for its own
        metrics, `name:metric`.
    """

    def combined_loss(
        enn: base.EpistemicNetwork[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        args = (enn, params, state, batch, key)
        return _with_metrics(train_loss(*args), extra_losses, args)

    return combined_loss


def _with_metrics(
    trained: base.LossOutput, extra_losses: Mapping[str, Any], args: tuple[Any, ...]
) -> base.LossOutput:
    loss, (state, metrics) = trained
    for name, extra_loss in extra_losses.items():
        value, (_, extra_metrics) = extra_loss(*args)
        metrics = {**metrics, **_named_metrics(name, value, extra_metrics)}
    return loss, (state, metrics)


def _named_metrics(
    name: str, loss: chex.Array, metrics: base.LossMetrics
) -> base.LossMetrics:
    named = {f"{name}:{key}": value for key, value in metrics.items()}
    return {f"{name}:loss": loss, **named}


@dataclasses.dataclass
class CombineLossConfig(Generic[Input, Output, Data]):
    """One term of a sum of losses.

    >>> from enn import losses
    >>> def prior_loss(enn, params, state, batch, key):
    ...     return 2.0, (state, {})
    >>> term = losses.CombineLossConfig(prior_loss, name="prior", weight=0.1)
    >>> loss, (_, metrics) = losses.combine_losses([term])(None, {}, {}, None, None)
    >>> float(loss), metrics
    (0.2, {'prior:loss': 2.0})

    Attributes:
      loss_fn: the loss.
      name: prefix of its metrics, unique among the terms.
      weight: factor of the loss in the sum.
    """

    loss_fn: base.LossFn[Input, Output, Data]
    name: str = "unnamed"
    weight: float = 1.0


def combine_losses(
    losses: Sequence[
        CombineLossConfig[Input, Output, Data] | base.LossFn[Input, Output, Data]
    ],
) -> base.LossFn[Input, Output, Data]:
    """Returns the weighted sum of losses, Σᵢ weightᵢ lossᵢ.

    The network state is passed through the losses in order: each sees the state that
    the one before it returned, and the last one's is the new state, so that no update
    is lost. All losses get the same key, hence the same indices if they average over
    equally many. Metrics of a term are `name:loss`, without the weight, and
    `name:metric` for each of its own.

    >>> from enn import losses
    >>> def fit(enn, params, state, batch, key):
    ...     return 1.0, (state, {})
    >>> prior = losses.CombineLossConfig(fit, "prior", weight=0.1)
    >>> loss_fn = losses.combine_losses([fit, prior])
    >>> loss, (_, metrics) = loss_fn(None, {}, {}, None, None)
    >>> float(loss), metrics
    (1.1, {'loss_0:loss': 1.0, 'prior:loss': 1.0})

    Args:
      losses: terms of the sum; a bare loss at position i gets the name `loss_i` and
        weight 1.

    Raises:
      ValueError: if there are no losses, or two of the same name.
    """
    terms = [
        loss
        if isinstance(loss, CombineLossConfig)
        else CombineLossConfig(loss, f"loss_{i}")
        for i, loss in enumerate(losses)
    ]
    counts = collections.Counter(term.name for term in terms)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated or not terms:
        raise ValueError(
            f"losses must be one or more of different names, got {list(counts)} "
            f"with {repeated} repeated."
        )

    def combined_loss(
        enn: base.EpistemicNetwork[Input, Output],
        params: hk.Params,
        state: hk.State,
        batch: Data,
        key: chex.PRNGKey,
    ) -> base.LossOutput:
        total: Any = 0
        metrics: base.LossMetrics = {}
        for term in terms:
            loss, (state, own_metrics) = term.loss_fn(enn, params, state, batch, key)
            # As between training steps, no gradient flows through the state.
            state = jax.lax.stop_gradient(state)
            total = total + term.weight * loss
            metrics |= _named_metrics(term.name, loss, own_metrics)
        return total, (state, metrics)

    return combined_loss


def add_data_noise_no_state(
    single_loss: SingleLossFnNoState, noise_fn: DataNoiseBase[Any]
) -> SingleLossFnNoState:
    """`add_data_noise` for networks without state."""
    with_state = wrap_single_loss_no_state_as_single_loss(single_loss)
    noisy = add_data_noise(with_state, noise_fn)
    return wrap_single_loss_as_single_loss_no_state(noisy)


def add_l2_weight_decay_no_state(
    loss_fn: LossFnNoState,
    scale: float | Callable[[hk.Params], hk.Params],
    predicate: PredicateFn | None = None,
) -> LossFnNoState:
    """`add_l2_weight_decay` for networks without state."""
    with_state = wrap_loss_no_state_as_loss(loss_fn)
    decayed = add_l2_weight_decay(with_state, scale, predicate)
    return wrap_loss_as_loss_no_state(decayed)


def combine_single_index_losses_no_state_as_metric(
    train_loss: SingleLossFnNoState, extra_losses: Mapping[str, SingleLossFnNoState]
) -> SingleLossFnNoState:
    """`combine_single_index_losses_as_metric` for networks without state."""
    wrap = wrap_single_loss_no_state_as_single_loss
    combined = combine_single_index_losses_as_metric(
        wrap(train_loss), {name: wrap(loss) for name, loss in extra_losses.items()}
    )
    return wrap_single_loss_as_single_loss_no_state(combined)


def combine_losses_no_state_as_metric(
    train_loss: LossFnNoState, extra_losses: Mapping[str, LossFnNoState]
) -> LossFnNoState:
    """`combine_losses_as_metric` for networks without state."""
    wrap = wrap_loss_no_state_as_loss
    combined = combine_losses_as_metric(
        wrap(train_loss), {name: wrap(loss) for name, loss in extra_losses.items()}
    )
    return wrap_loss_as_loss_no_state(combined)


@dataclasses.dataclass
class CombineLossConfigNoState:
    """`CombineLossConfig` for networks without state."""

    loss_fn: LossFnNoState
    name: str = "unnamed"
    weight: float = 1.0


def combine_losses_no_state(
    losses: Sequence[CombineLossConfigNoState | LossFnNoState],
) -> LossFnNoState:
    """`combine_losses` for networks without state."""
    wrap = wrap_loss_no_state_as_loss
    combined = combine_losses(
        [
            CombineLossConfig(wrap(loss.loss_fn), loss.name, loss.weight)
            if isinstance(loss, CombineLossConfigNoState)
            else wrap(loss)
            for loss in losses
        ]
    )
    return wrap_loss_as_loss_no_state(combined)
