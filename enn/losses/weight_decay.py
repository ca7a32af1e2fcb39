"""L2 weight decay added to a loss."""

from collections.abc import Callable
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.base import Data, Input, Output

PredicateFn = Callable[[str, str, Any], bool]
"""`(module_name, name, value) -> bool`: whether a parameter is meant."""


def l2_weights_with_predicate(
    params: hk.Params, predicate: PredicateFn | None = None
) -> chex.Array | int:
    """Returns Σ p² over the parameters that `predicate` picks, all if None.

    Returns:
      A scalar; the integer 0 if no parameter is picked.
    """
    if predicate is not None:
        params = hk.data_structures.filter(predicate, params)
    return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))


def add_l2_weight_decay(
    loss_fn: base.LossFn[Input, Output, Data],
    scale: float | Callable[[hk.Params], hk.Params],
    predicate: PredicateFn | None = None,
) -> base.LossFn[Input, Output, Data]:
    """Returns `loss_fn` plus `scale` · Σ p², without a factor of one half.

    Adds the metrics `decay`, the second term, and `raw_loss`, the first.

    Args:
      loss_fn: the loss to add to.
      scale: a number >= 0; or a function of the whole parameter tree, whose result
        has its squares summed as they are (so a factor s in it counts as s²).
      predicate: picks the parameters that decay, all if None; called with names
        and, as the value, the parameter times √scale.

    Raises:
      ValueError: for a negative scale.
    """
    if not callable(scale) and _checks.is_concrete(scale) and not scale >= 0:
        raise ValueError(f"scale must be a number >= 0 or a function, got {scale}.")

    def scaled(params: hk.Params) -> hk.Params:
        if callable(scale):
            return scale(params)
        return jax.tree.map(lambda p: jnp.sqrt(scale) * p, params)

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
