"""Bootstrapping: random weights of the rows, drawn afresh for each epistemic index.

An ensemble whose members see differently weighted data spreads where data are few
(Osband & Van Roy, 2015, https://arxiv.org/abs/1507.00300; what it adds to prior
functions: Dwaracherla et al., 2022, https://arxiv.org/abs/2206.03633).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp

from enn import _checks
from enn import base as enn_base
from enn.data_noise import base
from enn.datasets import base as datasets
from enn.networks import indexers

_STREAM = 1

BatchWeights = chex.Array
"""One weight for each row, `[batch, 1]`."""

BootstrapFn = Callable[[enn_base.AnyArray | None, enn_base.Index], BatchWeights]
"""`(data_index [batch, 1], index) -> weights [batch, 1]`; no ids are an error."""

_RowWeight = Callable[[chex.PRNGKey, enn_base.Index], jax.Array]
_Draw = Callable[..., jax.Array]


@runtime_checkable
class WeightFn(Protocol):
    """Draws weights with a key."""

    def __call__(
        self, rng_key: chex.PRNGKey, indices: Sequence[int] | None = None
    ) -> chex.Array:
        """Returns the weights of the rows `indices`."""
        ...


DISTRIBUTIONS: dict[str, _Draw] = {
    "poisson": lambda key, shape=(): jax.random.poisson(key, 1, shape),
    "exponential": lambda key, shape=(): jax.random.exponential(key, shape),
    "bernoulli": lambda key, shape=(): 2 * jax.random.bernoulli(key, 0.5, shape),
    "uniform": lambda key, shape=(): 2 * jax.random.uniform(key, shape),
}
"""Distributions of mean one by name, each a function `(key, shape=())`."""


@dataclasses.dataclass(frozen=True)
class BootstrapNoise(base.DataNoise):
    """Replaces the weights of a batch by bootstrap weights.

    See `make_boot_fn` for the weights (Osband & Van Roy, 2015,
    https://arxiv.org/abs/1507.00300).

    >>> import numpy as np
    >>> from enn import data_noise, datasets, networks
    >>> enn = networks.MLPEnsembleMatchedPrior([1], num_ensemble=10)
    >>> noise = data_noise.BootstrapNoise(enn, "bernoulli")
    >>> x, rows = np.zeros([100, 1]), np.arange(100)[:, None]
    >>> batch = datasets.ArrayBatch(x=x, y=x, data_index=rows)
    >>> np.unique(noise(batch, np.int32(3)).weights).tolist()  # Half of the rows, twice
    [0, 2]

    Attributes:
      enn: network whose indexer decides how weights depend on the index.
      distribution: of the weights; see `make_boot_fn`, which raises the errors.
      seed: fixes the weights.
      independent_seeds: see `make_boot_fn`.
    """

    enn: enn_base.EpistemicNetwork[Any, Any]
    distribution: str | None
    seed: int = 0
    independent_seeds: bool = False
    _boot_fn: BootstrapFn = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        boot_fn = make_boot_fn(
            self.enn, self.distribution, self.seed, self.independent_seeds
        )
        object.__setattr__(self, "_boot_fn", boot_fn)

    def __call__(
        self, data: datasets.ArrayBatch, index: enn_base.Index
    ) -> datasets.ArrayBatch:
        """Returns `data` with new weights, `[batch, 1]`; needs `data.data_index`."""
        return dataclasses.replace(data, weights=self._boot_fn(data.data_index, index))


def null_bootstrap(
    data_index: datasets.DataIndex | None, index: enn_base.Index
) -> BatchWeights:
    """Returns weights of one, int32 `[batch, 1]`."""
    return jnp.ones_like(base.row_ids(data_index))[:, None]


def make_boot_fn(
    enn: enn_base.EpistemicNetwork[Any, Any],
    distribution: str | None,
    seed: int = 0,
    independent_seeds: bool = False,
) -> BootstrapFn:
    """Returns the weights of rows as a function of their ids and the index.

    With k a random key fixed by the seed and the row, a row of id i weighs at index z:

    - ensemble: a draw from the distribution with key fold_in(k, z);
    - Gaussian, sphere, cube or signed axis index, 'bernoulli': 1 + sign(b·z), with
      b ~ N(0, I) drawn with k;
    - the same, 'exponential': ½[(b·z)² + (c·z)²], with b, c ~ N(0, s²I) drawn
      with k; s² = 1 for `ScaledGaussianIndexer`, else 1/index_dim. The mean weight
      is one for an `index_scale` of one, and index_scale² in general;
    - `PrngIndexer`: a draw from the distribution with the index as key, by position
      in the batch: neither the id of the row nor the seed matters.

    Numbers follow the original `enn`: k depends on the sum of seed and row id alone,
    so that row 1 with seed 0 weighs as row 0 with seed 1, and target noise of the same
    seed starts from the same keys.

    After Osband & Van Roy, 2015, https://arxiv.org/abs/1507.00300.

    Args:
      enn: network whose indexer decides how weights depend on the index.
      distribution: one of `DISTRIBUTIONS`; for Gaussian indices 'bernoulli' or
        'exponential' ('bernoulli' only with a unit component); 'none' or None for
        weights of one.
      seed: fixes the weights.
      independent_seeds: whether seed and row id enter one after the other, so that
        weights of different seeds and rows are independent, and of the target noise
        too; also with a `PrngIndexer`, where a row then keeps its weight wherever in
        the batch it is.

    Returns:
      `(data_index [batch, 1], index) -> weights [batch, 1]`. The index is what the
      indexer returns; of an ensemble also `[batch]`, a member for each row.

    Raises:
      ValueError: if the indexer or its combination with the distribution is none of
        the above.
    """
    if distribution in (None, "none"):
        return null_bootstrap
    indexer = base.get_indexer(enn)
    row_weights = _row_weights(indexer)
    _checks.one_of(
        f"distribution for {type(indexer).__name__}",
        distribution,
        [*row_weights, "none"],
    )
    if isinstance(indexer, indexers.GaussianWithUnitIndexer):
        logging.getLogger(__name__).warning(
            "The unit component of a GaussianWithUnitIndexer biases bernoulli weights: "
            "over indices, a row is kept more or less often than half of the time."
        )
    if isinstance(indexer, indexers.PrngIndexer) and not independent_seeds:
        return functools.partial(_weights_by_position, DISTRIBUTIONS[distribution])
    stream = _STREAM if independent_seeds else None

    def boot_fn(
        data_index: datasets.DataIndex | None, index: enn_base.Index
    ) -> BatchWeights:
        keys = base.make_row_keys(indexer, data_index, index, seed, stream)
        row_weight = row_weights[distribution]
        return jax.vmap(row_weight, in_axes=(0, None))(keys, index)[:, None]

    return boot_fn


def _row_weights(indexer: Any) -> dict[str, _RowWeight]:
    """The weight of one row by distribution: a function of its key and the index."""
    match indexer:
        case indexers.EnsembleIndexer() | indexers.PrngIndexer():
            return {
                name: functools.partial(_drawn_weight, draw)
                for name, draw in DISTRIBUTIONS.items()
            }
        case indexers.GaussianWithUnitIndexer():
            return {"bernoulli": _sign_weight}
        case indexers.IsotropicIndexer(index_dim=index_dim):
            variance = 1 / index_dim
        case indexers.ScaledGaussianIndexer():
            variance = 1.0
        case _:
            raise ValueError(
                "bootstrap weights need a network with an ensemble, a Gaussian, a "
                f"PRNG, a sphere, a cube or a signed axis indexer, got {indexer!r}."
            )
    return {
        "bernoulli": _sign_weight,
        "exponential": functools.partial(_square_weight, variance),
    }


def _drawn_weight(draw: _Draw, key: chex.PRNGKey, index: enn_base.Index) -> jax.Array:
    return draw(key)


def _sign_weight(key: chex.PRNGKey, index: enn_base.Index) -> jax.Array:
    return 1 + jnp.sign(jax.random.normal(key, index.shape) @ index)


def _square_weight(
    variance: float, key: chex.PRNGKey, index: enn_base.Index
) -> jax.Array:
    # 666 is part of the numbers of the original.
    keys = [key, jax.random.fold_in(key, 666)]
    projections = [jax.random.normal(k, index.shape) @ index for k in keys]
    return 0.5 * variance * (projections[0] ** 2 + projections[1] ** 2)


def _weights_by_position(
    draw: _Draw,
    data_index: datasets.DataIndex | None,
    index: enn_base.Index,
) -> BatchWeights:
    key = indexers.as_threefry(index)
    return draw(key, [len(base.row_ids(data_index)), 1])
