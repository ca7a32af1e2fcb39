"""SWAG: a Gaussian from the moments of the late iterates of SGD.

Half of its covariance is diagonal, half of low rank (Maddox et al., 2019,
https://arxiv.org/abs/1902.02476). Snapshots are taken once an epoch, at a constant and
rather large learning rate; the paper's settings are rank 20, 30 samples, and a rate of
0.02 with momentum 0.9 from epoch 161 on.

    optimizer = track_moments(optax.sgd(0.02, 0.9), every=steps_per_epoch)
    experiment = supervised.Experiment(train_enn, loss, optimizer, dataset)
    experiment.train(20 * steps_per_epoch)
    moments = get_moments(experiment.state.opt_state)
    samples = draw_swag_samples(moments, jax.random.key(0))
    states = recompute_state(train_enn, samples, experiment.state.network_state, data)
    posterior = networks.from_network_samples(eval_enn, samples, states)

MultiSWAG (Wilson & Izmailov, 2020, https://arxiv.org/abs/2002.08791): the samples of
several runs, and their states, concatenated along the first axis of every leaf.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from enn import _checks
from enn.metrics.base import at_least_float32
from enn.posteriors import tracking


class Moments(NamedTuple):
    """Moments of snapshots of parameters, trees like these.

    Attributes:
      count: number of snapshots, n.
      mean: their mean.
      variance: their variance, divided by n.
      deviations: the last snapshots, each less the mean so far, itself included: the
        leading axis is min(n, rank), oldest first.
    """

    count: Any
    mean: Any
    variance: Any
    deviations: Any


def track_moments(
    optimizer: optax.GradientTransformation,
    every: int,
    burn_in: int = 0,
    rank: int = 20,
) -> optax.GradientTransformationExtraArgs:
    """Returns `optimizer` with a record of the moments of the parameters.

    A snapshot is taken after update t, counted from 1, if t >= burn_in and t - burn_in
    is a multiple of `every`; `get_moments` returns the moments. With deviations from
    the old and the new mean (Welford, 1962) they keep their digits where the variance
    is small beside the mean:

        mean' = mean + (θ - mean) / n
        variance' = variance + ((θ - mean) (θ - mean') - variance) / n

    The optimiser state grows by (2 + rank) times the parameters, in at least float32.

    For SWAG (Maddox et al., 2019, https://arxiv.org/abs/1902.02476).

    >>> import jax.numpy as jnp, optax
    >>> from enn import posteriors
    >>> optimizer = posteriors.track_moments(optax.sgd(1.0), every=1)
    >>> params, state = jnp.array(0.0), optimizer.init(jnp.array(0.0))
    >>> for gradient in (-1.0, -2.0):  # Parameters 1 and 3
    ...     updates, state = optimizer.update(jnp.array(gradient), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> posteriors.get_moments(state)[:3]  # Count, mean and variance
    (2, Array(2., dtype=float32), Array(1., dtype=float32))

    Args:
      optimizer: any optax transformation, such as `optax.sgd(0.02, 0.9)`.
      every: number of updates from one snapshot to the next; the paper's is an epoch.
      burn_in: number of updates before the first snapshot.
      rank: number of deviations kept.

    Raises:
      ValueError: unless `every` is an integer >= 1, `burn_in` one >= 0 and `rank` one
        >= 2.
    """
    if _checks.positive_int("rank", rank) < 2:
        raise ValueError(f"rank must be at least 2, got {rank}.")

    def init(params: optax.Params) -> Moments:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(at_least_float32(p)), params)
        slots = jax.tree.map(lambda p: jnp.zeros([rank, *p.shape], p.dtype), zeros)
        return Moments(jnp.zeros([], jnp.int32), zeros, zeros, slots)

    def add(moments: Moments, params: optax.Params) -> Moments:
        n = moments.count + 1
        mean: Any = jax.tree.map(lambda m, p: m + (p - m) / n, moments.mean, params)
        variance = jax.tree.map(
            lambda v, p, old, new: v + ((p - old) * (p - new) - v) / n,
            moments.variance,
            params,
            moments.mean,
            mean,
        )
        deviation = jax.tree.map(lambda p, m: p - m, params, mean)
        slots = tracking.put(moments.deviations, moments.count, deviation)
        return Moments(n, mean, variance, slots)

    return tracking.record(optimizer, every, burn_in, init, add)


def get_moments(opt_state: optax.OptState) -> Moments:
    """Returns the moments that were recorded.

    Args:
      opt_state: state of an optimiser with `track_moments` somewhere in it.

    Raises:
      ValueError: without such a recorder, or with fewer than two snapshots.
    """
    moments = tracking.find_record(opt_state, Moments, "posteriors.track_moments")
    count = int(moments.count)
    _check_count(count)
    deviations = tracking.in_order(moments.deviations, count)
    return Moments(count, moments.mean, moments.variance, deviations)


def draw_swag_samples(
    moments: Moments, key: chex.PRNGKey, num_samples: int = 30, scale: float = 0.5
) -> Any:
    """Returns samples of the Gaussian with these moments.

    θ = mean + √scale (√variance ∘ z + Σⱼ dⱼ wⱼ / √(k-1)), with z and w standard normal
    and d the k deviations: equation 1 of Maddox et al., 2019,
    https://arxiv.org/abs/1902.02476, at scale ½. Sample i has the i-th of
    `jax.random.split(key, num_samples)`, whose first half draws w, and whose second is
    split over the leaves of z.

    >>> import jax, jax.numpy as jnp
    >>> from enn import posteriors
    >>> still = posteriors.Moments(
    ...     2, jnp.array([3.0]), jnp.zeros([1]), jnp.zeros([2, 1])
    ... )
    >>> posteriors.draw_swag_samples(still, jax.random.key(0), num_samples=2).tolist()
    [[3.0], [3.0]]

    Args:
      moments: as `get_moments` returns them.
      key: PRNG key.
      num_samples: S, how many samples.
      scale: factor of the covariance; ½ is the paper's, 0 gives the mean: SWA.

    Returns:
      A tree like the mean, of arrays `[num_samples, ...]`, for
      `networks.from_network_samples`; before that, for `recompute_state` if the network
      has state.

    Raises:
      ValueError: for fewer than two snapshots, `num_samples` < 1 or `scale` < 0.
    """
    _check_count(moments.count)
    _checks.positive_int("num_samples", num_samples)
    if _checks.is_concrete(scale) and not scale >= 0:
        raise ValueError(f"scale must be >= 0, got {scale}.")
    keys = jax.random.split(key, num_samples)
    return _draw(moments.mean, moments.variance, moments.deviations, keys, scale)


@jax.jit
def _draw(mean: Any, variance: Any, deviations: Any, keys: Any, scale: Any) -> Any:
    means, structure = jax.tree.flatten(mean)
    num_deviations = len(jax.tree.leaves(deviations)[0])

    def draw_one(key: chex.PRNGKey) -> Any:
        low_rank_key, diagonal_key = jax.random.split(key)
        dtype = jnp.result_type(*means)
        w = jax.random.normal(low_rank_key, [num_deviations], dtype)

        def draw_leaf(m: Any, v: Any, d: Any, key: chex.PRNGKey) -> jax.Array:
            z = jax.random.normal(key, m.shape, m.dtype)
            low_rank = jnp.tensordot(w, d, 1) / jnp.sqrt(num_deviations - 1)
            sample = m + jnp.sqrt(scale) * (jnp.sqrt(v) * z + low_rank)
            return sample.astype(m.dtype)

        leaf_keys = jax.random.split(diagonal_key, len(means))
        leaf_keys = jax.tree.unflatten(structure, leaf_keys)
        return jax.tree.map(draw_leaf, mean, variance, deviations, leaf_keys)

    return jax.vmap(draw_one)(keys)


def _check_count(count: Any) -> None:
    if count < 2:
        raise ValueError(f"SWAG needs at least 2 snapshots, got {int(count)}.")
