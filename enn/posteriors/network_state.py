"""Network state of posterior samples, such as the statistics of batch normalisation."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from enn import base
from enn.metrics.base import at_least_float32
from enn.posteriors.base import base_index
from enn.posteriors.curvature import Data, as_batches


def recompute_state(
    train_enn: base.EpistemicNetwork[Any, Any],
    samples: Any,
    init_state: hk.State,
    data: Data,
    index: base.Index | None = None,
) -> Any:
    """Returns the network state of each sample, from one pass over the data.

    Statistics of batch normalisation belong to the weights that they were collected
    with: those of the last iterate are wrong for a sample. Each sample runs on every
    batch, always from `init_state`. Floating-point entries are averaged over rows, and
    others are those of the first batch. For Haiku's averages, which correct for their
    start, this is exact: the mean over batches, whatever the decay. Averages without
    such a correction, as in Flax, need a network with a momentum of zero here.

    As for averaged weights (Izmailov et al., 2018, https://arxiv.org/abs/1803.05407).

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import datasets, networks, posteriors
    >>> def forward(x):  # In training
    ...     return hk.BatchNorm(False, False, 0.9)(hk.Linear(1)(x), is_training=True)
    >>> enn, x = networks.wrap_net_fn_as_enn(forward), np.arange(4.0)[:, None]
    >>> _, state = enn.init(jax.random.key(0), x, jax.random.key(0))
    >>> samples = {"linear": {"w": np.array([[[1.0]], [[2.0]]]), "b": np.zeros([2, 1])}}
    >>> data = datasets.ArrayBatch(x=x, y=x)
    >>> states = posteriors.recompute_state(enn, samples, state, data)
    >>> means = states["batch_norm/~/mean_ema"]["average"].ravel()  # One a sample
    >>> [round(float(mean), 3) for mean in means]
    [1.5, 3.0]

    Args:
      train_enn: the network as in training, which updates its state.
      samples: pytree of parameters `[num_samples, ...]`.
      init_state: the state of `train_enn.init`.
      data: all of the training data as one batch, or an iterable of batches of the size
        that was trained on; finite.
      index: the epistemic index of `train_enn`; drawn with key 0 if it is None.

    Returns:
      Pytree of states `[num_samples, ...]`, for `networks.from_network_samples`, beside
      the same network for evaluation.

    Raises:
      TypeError: for an endless iterator, or anything that is not a batch.
      ValueError: if there are no rows.
    """
    own_index = base_index(train_enn, index)

    @jax.jit
    def states_on(samples: Any, inputs: Any) -> Any:
        # One sample at a time: memory is that of one forward pass.
        return jax.lax.map(
            lambda sample: train_enn.apply(sample, init_state, inputs, own_index)[1],
            samples,
        )

    states, num_rows = None, 0
    for batch in as_batches(data):
        rows = len(jax.tree.leaves(batch.x)[0])
        if not rows:
            continue
        num_rows += rows
        new = states_on(samples, batch.x)
        states = new if states is None else _average(states, new, rows / num_rows)
    if states is None:
        raise ValueError("data must have at least one row, got none.")
    return states


@jax.jit
def _average(states: Any, new: Any, weight: float) -> Any:
    def average(old: jax.Array, leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return old
        old = at_least_float32(old)
        return old + (leaf - old) * weight

    return jax.tree.map(average, states, new)
