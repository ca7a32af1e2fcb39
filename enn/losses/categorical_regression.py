"""Regression as classification over a fixed set of values."""

import dataclasses

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.datasets.base import ArrayBatch
from enn.losses.single_index import soft_cross_entropy, weighted_mean
from enn.metrics.base import at_least_float32
from enn.networks.base import OutputWithPrior, extra_output


def transform_to_2hot(target: chex.Array, support: chex.Array) -> jax.Array:
    """Returns the distribution over `support` on two neighbours, with mean `target`.

    Between values a < b: (b - y) / (b - a) at a, and the rest at b. A target outside
    the support is moved to the nearer end. Differentiable in the target (Bellemare et
    al., 2017, https://arxiv.org/abs/1707.06887, equation 7, for bins of any width). NaN
    gives NaN.

    >>> import numpy as np
    >>> from enn import losses
    >>> support = np.array([0.0, 1.0, 3.0])
    >>> print(losses.transform_to_2hot(np.float32(1.5), support))  # ¾ · 1 + ¼ · 3
    [0.   0.75 0.25]
    >>> print(losses.transform_to_2hot(np.float32(99.0), support))
    [0. 0. 1.]

    Args:
      target: a scalar; use `jax.vmap` for more.
      support: values of the bins in ascending order, `[num_bins]`.

    Returns:
      Probability of each bin, `[num_bins]`.

    Raises:
      ValueError: for wrong shapes; outside `jax.jit` also for an unsorted support.
    """
    _checks.shape("target", target, (), "of a scalar")
    _checks.shape("support", support, (None,), "[num_bins]")
    if _checks.is_concrete(support) and np.any(np.diff(np.asarray(support)) < 0):
        raise ValueError(f"support must be in ascending order, got {support}.")
    return _two_hot(target, support)


@jax.jit
def _two_hot(target: chex.Array, support: chex.Array) -> jax.Array:
    support, target = at_least_float32(support), at_least_float32(target)
    target = jnp.clip(target, support[0], support[-1])
    above = jnp.sum(support < target)
    below = jnp.maximum(above - 1, 0)
    # A target at the lower end lies on a bin: there is no gap to divide by.
    gap = jnp.where(above > 0, support[above] - support[below], 1)
    probability_below = (support[above] - target) / gap
    # 1 - probability_below would be 0 where the target is close to the bin below.
    probability_above = jnp.where(
        above > 0, (target - support[below]) / gap, 1 - probability_below
    )
    bins = jnp.arange(len(support))
    return jnp.where(bins == below, probability_below, 0) + jnp.where(
        bins == above, probability_above, 0
    )


@dataclasses.dataclass(frozen=True)
class Cat2HotRegression:
    """Weighted cross-entropy between 2-hot targets and a categorical output.

    -Σᵦ wᵦ Σ_k tᵦₖ log softmax(f(xᵦ))_k / B, for t = `transform_to_2hot` of the target
    less the prior (after Bellemare et al., 2017, https://arxiv.org/abs/1707.06887).

    For networks that return a `CatOutputWithPrior`: logits `train`,
    `[batch, 1, num_bins]`, on the values `extra["atoms"]`, `[num_bins]`, plus a prior
    `[batch, 1]`. The logits are fitted to `y - prior`.
    `batch.y` is `[batch, 1]` or `[batch]`, and `batch.weights` `[batch, 1]`, or None
    for ones.

    >>> import numpy as np
    >>> from enn import datasets, losses, networks
    >>> def apply(params, state, x, index):  # The values 0 and 1, with equal logits.
    ...     logits, atoms = np.zeros([1, 1, 2]), {"atoms": np.array([0.0, 1.0])}
    ...     return networks.CatOutputWithPrior(logits, prior=0 * x, extra=atoms), state
    >>> batch = datasets.ArrayBatch(x=np.zeros([1, 1]), y=np.array([[0.3]]))
    >>> loss, _ = losses.Cat2HotRegression()(apply, {}, {}, batch, index=0)
    >>> round(float(loss), 3)  # log 2
    0.693

    Raises:
      ValueError: from the loss, for another kind of output or other shapes.
    """

    def __call__(
        self,
        apply: base.ApplyFn[chex.Array, OutputWithPrior],
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        targets = at_least_float32(_checks.as_column("batch.y", batch.y))
        out, state = apply(params, state, batch.x, index)
        atoms = extra_output(out, "atoms")
        logits, prior = jnp.asarray(out.train), jnp.asarray(out.prior)
        shape = [len(targets), 1, len(atoms)]
        _checks.shape("train", logits, tuple(shape), f"[batch, 1, num_bins] = {shape}")
        _checks.shape("prior", prior, tuple(shape[:2]), f"[batch, 1] = {shape[:2]}")
        prior = at_least_float32(jax.lax.stop_gradient(prior))
        targets = (targets - prior)[:, 0]
        probabilities = jax.vmap(transform_to_2hot, (0, None))(targets, atoms)
        row_losses = soft_cross_entropy(logits[:, 0], probabilities)
        return weighted_mean(row_losses[:, None], batch), (state, {})
