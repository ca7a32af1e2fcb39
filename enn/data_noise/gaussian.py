"""Gaussian noise on targets, drawn afresh for each epistemic index.

With it the members of an ensemble fit differently perturbed targets, which makes their
spread that of a posterior (Osband et al., 2018, https://arxiv.org/abs/1806.03335; for
index vectors Dwaracherla et al., 2020, https://arxiv.org/abs/2006.07464).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from enn import _checks
from enn import base as enn_base
from enn.data_noise import base
from enn.datasets import base as datasets
from enn.networks import indexers

_STREAM = 2

NoiseFn = Callable[[enn_base.AnyArray | None, enn_base.Index], chex.Array]
"""`(data_index [batch, 1], index) -> noise [batch, 1]`; no ids are an error."""

_RowNoise = Callable[[chex.PRNGKey, enn_base.Index], jax.Array]


@dataclasses.dataclass(frozen=True)
class GaussianTargetNoise(base.DataNoise):
    """Adds Gaussian noise to the targets of a batch.

    y + noise(row, z); see `make_noise_fn` for the noise (Osband et al., 2018,
    https://arxiv.org/abs/1806.03335; Dwaracherla et al., 2020,
    https://arxiv.org/abs/2006.07464).

    >>> import numpy as np
    >>> from enn import data_noise, datasets, networks
    >>> enn = networks.MLPEnsembleMatchedPrior([1], num_ensemble=10)
    >>> noise = data_noise.GaussianTargetNoise(enn, noise_std=2.0)
    >>> x, rows = np.zeros([1000, 1]), np.arange(1000)[:, None]
    >>> batch = datasets.ArrayBatch(x=x, y=x, data_index=rows)
    >>> round(float(noise(batch, np.int32(3)).y.std()))  # What member 3 trains on
    2

    Attributes:
      enn: network whose indexer decides how the noise depends on the index.
      noise_std: standard deviation of the noise, in units of the targets.
      seed: fixes the noise.
      independent_seeds: see `make_noise_fn`.
    """

    enn: enn_base.EpistemicNetwork[Any, Any]
    noise_std: float
    seed: int = 0
    independent_seeds: bool = False
    _noise_fn: NoiseFn = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        noise_fn = make_noise_fn(
            self.enn, self.noise_std, self.seed, self.independent_seeds
        )
        object.__setattr__(self, "_noise_fn", noise_fn)

    def __call__(
        self, data: datasets.ArrayBatch, index: enn_base.Index
    ) -> datasets.ArrayBatch:
        """Returns `data` with new `y`; needs `data.data_index` and `y` `[batch, 1]`."""
        _checks.shape("y", data.y, (None, 1), "[batch, 1]")
        return dataclasses.replace(
            data, y=data.y + self._noise_fn(data.data_index, index)
        )


def make_noise_fn(
    enn: enn_base.EpistemicNetwork[Any, Any],
    noise_std: float,
    seed: int = 0,
    independent_seeds: bool = False,
) -> NoiseFn:
    """Returns the noise of rows as a function of their ids and the index.

    With k a random key fixed by the seed and the row, a row has at index z the noise
    noise_std times

    - ensemble: n ~ N(0, 1) drawn with key fold_in(k, z);
    - `GaussianIndexer`, `SphereIndexer`, `SignedAxisIndexer`, `CubeIndexer`: g·z / ‖g‖,
      with g ~ N(0, I) drawn with k;
    - `ScaledGaussianIndexer`: g·z, of standard deviation `index_scale`;
    - `GaussianWithUnitIndexer`: g·z without the unit component;
    - `PrngIndexer`: n ~ N(0, 1) drawn with key fold_in(z, seed + row id).

    Numbers follow the original `enn`: k depends on the sum of seed and row id alone,
    so that row 1 with seed 0 has the noise of row 0 with seed 1, and bootstrap weights
    of the same seed start from the same keys.

    After Osband et al., 2018, https://arxiv.org/abs/1806.03335, and for vectors
    Dwaracherla et al., 2020, https://arxiv.org/abs/2006.07464.

    Args:
      enn: network whose indexer decides how the noise depends on the index.
      noise_std: standard deviation of the noise over indices.
      seed: fixes the noise.
      independent_seeds: whether seed and row id enter one after the other, so that
        the noise of different seeds and rows is independent, and of bootstrap weights
        too.

    Returns:
      `(data_index [batch, 1], index) -> noise [batch, 1]`. The index is what the
      indexer returns; of an ensemble also `[batch]`, a member for each row.

    Raises:
      ValueError: if the indexer is none of the above, or `noise_std` is negative.
    """
    if _checks.is_concrete(noise_std) and not noise_std >= 0:
        raise ValueError(f"noise_std must be >= 0, got {noise_std}.")
    indexer = base.get_indexer(enn)
    row_noise = _row_noise(indexer)
    stream = _STREAM if independent_seeds else None

    def noise_fn(
        data_index: datasets.DataIndex | None, index: enn_base.Index
    ) -> jax.Array:
        keys = base.make_row_keys(indexer, data_index, index, seed, stream)
        return noise_std * jax.vmap(row_noise, in_axes=(0, None))(keys, index)[:, None]

    return noise_fn


def _row_noise(indexer: Any) -> _RowNoise:
    """The noise of one row: a function of its key and the index."""
    match indexer:
        case indexers.EnsembleIndexer() | indexers.PrngIndexer():
            return _member_noise
        case indexers.IsotropicIndexer():
            return _unit_projection
        case indexers.ScaledGaussianIndexer():
            return _projection
        case indexers.GaussianWithUnitIndexer():
            return lambda key, index: _projection(key, index[1:])
        case _:
            raise ValueError(
                "target noise needs a network with an ensemble, a Gaussian, a PRNG, "
                f"a sphere, a cube or a signed axis indexer, got {indexer!r}."
            )


def _member_noise(key: chex.PRNGKey, index: enn_base.Index) -> jax.Array:
    return jax.random.normal(key)


def _projection(key: chex.PRNGKey, index: enn_base.Index) -> jax.Array:
    return jax.random.normal(key, index.shape) @ index


def _unit_projection(key: chex.PRNGKey, index: enn_base.Index) -> jax.Array:
    direction = jax.random.normal(key, index.shape)
    return direction @ index / jnp.linalg.norm(direction)
