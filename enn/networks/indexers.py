"""Reference distributions of the epistemic index.

Every indexer maps one PRNG key, typed or raw, to one index, and works under
`jax.jit` and `jax.vmap`. Vectors are of JAX's default float type: as in the original
`enn`, float64 under `jax_enable_x64`.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _sharding, base

THREEFRY = "threefry2x32"


class PrngIndexer(base.EpistemicIndexer):
    """The index is the key itself, for networks that draw their own randomness.

    >>> import jax
    >>> from enn import networks
    >>> key = jax.random.key(0)
    >>> networks.PrngIndexer()(key) is key
    True
    """

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        return key


def as_key(index: base.Index) -> chex.PRNGKey:
    """Returns an index that is one PRNG key, typed or raw, as one to draw with.

    What is drawn depends on the index alone, whatever the generator of its key.

    Raises:
      ValueError: unless `index` is one PRNG key.
    """
    shape, dtype = getattr(index, "shape", ()), getattr(index, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = jax.eval_shape(lambda: jax.random.PRNGKey(0))  # The default may change.
    if (shape, dtype) != (((), dtype) if is_typed else (raw.shape, raw.dtype)):
        got = repr(index) if dtype is None else f"{dtype} of shape {list(shape)}"
        raise ValueError(f"index must be one PRNG key, got {got}.")
    impl = jax.random.key_impl(index)
    return index if impl == THREEFRY else as_threefry(index)


def as_threefry(key: chex.PRNGKey) -> chex.PRNGKey:
    """Returns a typed or raw key as a typed one of the generator threefry.

    Draws with a key of `rbg`, mapped over many keys, depend on all of them; draws with
    the result depend on the key alone. A threefry key draws what it always drew.
    """
    words = jax.random.key_data(key)
    key = jax.random.wrap_key_data(words[..., :2], impl=THREEFRY)
    for word in range(2, words.shape[-1]):
        key = jax.random.fold_in(key, words[word])
    return key


@dataclasses.dataclass(frozen=True)
class EnsembleIndexer(base.EpistemicIndexer):
    """Uniform over the members of an ensemble: an int32 scalar in [0, num_ensemble).

    >>> import jax
    >>> from enn import networks, utils
    >>> draw = utils.make_batch_indexer(networks.EnsembleIndexer(3), 100)
    >>> set(draw(jax.random.key(0)).tolist())
    {0, 1, 2}
    >>> networks.EnsembleIndexer(0)
    Traceback (most recent call last):
        ...
    ValueError: num_ensemble must be an integer >= 1, got 0.

    Raises:
      ValueError: if `num_ensemble` is not an integer >= 1.
    """

    num_ensemble: int

    def __post_init__(self) -> None:
        _checks.positive_int("num_ensemble", self.num_ensemble)

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        return jax.random.randint(key, [], 0, self.num_ensemble)


@dataclasses.dataclass(frozen=True)
class _VectorIndexer(base.EpistemicIndexer):
    index_dim: int

    def __post_init__(self) -> None:
        _checks.positive_int("index_dim", self.index_dim)


class IsotropicIndexer(_VectorIndexer):
    """Vectors with E zzᵀ = I, `[index_dim]`."""


@dataclasses.dataclass(frozen=True)
class GaussianIndexer(IsotropicIndexer):
    """Standard normal, z ~ N(0, I), `[index_dim]`.

    >>> import jax
    >>> from enn import networks, utils
    >>> draw = utils.make_batch_indexer(networks.GaussianIndexer(4), 1000)
    >>> z = draw(jax.random.key(0))  # [1000, 4]
    >>> round(float((z**2).sum(axis=1).mean()))  # E‖z‖² = 4
    4

    Raises:
      ValueError: if `index_dim` is not an integer >= 1.
    """

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        return jax.random.normal(key, [self.index_dim])


@dataclasses.dataclass(frozen=True)
class ScaledGaussianIndexer(_VectorIndexer):
    """Normal with E‖z‖² = index_scale², `[index_dim]`.

    >>> import jax
    >>> from enn import networks, utils
    >>> indexer = networks.ScaledGaussianIndexer(4, index_scale=3.0)
    >>> z = utils.make_batch_indexer(indexer, 1000)(jax.random.key(0))  # [1000, 4]
    >>> round(float((z**2).sum(axis=1).mean()))  # E‖z‖² = 3²
    9

    Raises:
      ValueError: if `index_dim` is not an integer >= 1.
    """

    index_scale: float = 1.0

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        scale = self.index_scale / jnp.sqrt(self.index_dim)
        return scale * jax.random.normal(key, [self.index_dim])


@dataclasses.dataclass(frozen=True)
class GaussianWithUnitIndexer(_VectorIndexer):
    """z = [1, ε] with ε ~ N(0, I / (index_dim - 1)), so that E‖ε‖² = 1: `[index_dim]`.

    >>> import jax
    >>> from enn import networks
    >>> indexer = networks.GaussianWithUnitIndexer(3)
    >>> print(indexer.mean_index)
    [1. 0. 0.]
    >>> float(indexer(jax.random.key(0))[0])
    1.0

    Raises:
      ValueError: if `index_dim` is not an integer >= 1.
    """

    @property
    def mean_index(self) -> jax.Array:
        """The mean of the distribution: `[1, 0, ..., 0]`."""
        return jnp.append(1.0, jnp.zeros(self.index_dim - 1))

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        if self.index_dim == 1:
            return self.mean_index
        gaussian = ScaledGaussianIndexer(self.index_dim - 1)
        return jnp.append(1.0, gaussian(key))


@dataclasses.dataclass(frozen=True)
class SphereIndexer(IsotropicIndexer):
    """Uniform on the sphere of radius √index_dim, so that E zzᵀ = I: `[index_dim]`.

    >>> import jax
    >>> from enn import networks
    >>> z = networks.SphereIndexer(4)(jax.random.key(0))
    >>> round(float(z @ z), 4)
    4.0

    Raises:
      ValueError: if `index_dim` is not an integer >= 1.
    """

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        gaussian = jax.random.normal(key, [self.index_dim])
        return jnp.sqrt(self.index_dim) * gaussian / jnp.linalg.norm(gaussian)


@dataclasses.dataclass(frozen=True)
class SignedAxisIndexer(IsotropicIndexer):
    """Uniform over ±√index_dim · eᵢ, so that E zzᵀ = I: `[index_dim]`.

    >>> from enn import networks
    >>> networks.SignedAxisIndexer(1).all_indices()
    Array([[ 1.],
           [-1.]], dtype=float32)

    Raises:
      ValueError: if `index_dim` is not an integer >= 1.
    """

    def all_indices(self) -> jax.Array:
        """Returns all indices, positive ones first: `[2 * index_dim, index_dim]`."""
        axes = jnp.sqrt(self.index_dim) * jnp.eye(self.index_dim)
        return jnp.concatenate([axes, -axes])

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        return self.all_indices()[jax.random.randint(key, [], 0, 2 * self.index_dim)]


@dataclasses.dataclass(frozen=True)
class CubeIndexer(IsotropicIndexer):
    """Uniform over the corners {-1, 1}^index_dim of a cube: E zzᵀ = I, `[index_dim]`.

    >>> import jax, numpy as np
    >>> from enn import networks, utils
    >>> draw = utils.make_batch_indexer(networks.CubeIndexer(2), 100)
    >>> print(np.unique(draw(jax.random.key(0)), axis=0))
    [[-1. -1.]
     [-1.  1.]
     [ 1. -1.]
     [ 1.  1.]]

    Raises:
      ValueError: if `index_dim` is not an integer >= 1.
    """

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        return jax.random.rademacher(key, [self.index_dim], float)


@dataclasses.dataclass(frozen=True, eq=False)
class DirichletIndexer(base.EpistemicIndexer):
    """Dirichlet with concentration `alpha`: points of the simplex, shaped like it.

    p(z) ∝ Πᵢ zᵢ^(αᵢ - 1) for z ≥ 0 with Σᵢ zᵢ = 1.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> z = networks.DirichletIndexer(np.array([1.0, 2.0, 3.0]))(jax.random.key(0))
    >>> round(float(z.sum()), 3), bool((z > 0).all())
    (1.0, True)

    Raises:
      ValueError: if `alpha` is not a vector, or an array of vectors, of positive
        numbers.
    """

    alpha: chex.Array

    def __post_init__(self) -> None:
        alpha = jnp.asarray(self.alpha, float)
        known = _checks.is_concrete(self.alpha)
        positive = not known or np.all(np.asarray(self.alpha) > 0)
        if alpha.ndim == 0 or alpha.size == 0 or not positive:
            raise ValueError(
                f"alpha must be a vector of positive numbers, got {self.alpha}."
            )
        object.__setattr__(self, "alpha", alpha)

    def __call__(self, key: chex.PRNGKey) -> base.Index:
        return jax.random.dirichlet(key, self.alpha)


def draw_indices(
    indexer: base.EpistemicIndexer, key: chex.PRNGKey, num_indices: int
) -> base.Index:
    """Returns indices stacked on a new leading axis; index i has `split(key)[i]`."""
    return jax.vmap(indexer)(jax.random.split(key, num_indices))


def make_batch_indexer(
    indexer: base.EpistemicIndexer, batch_size: int
) -> Callable[[chex.PRNGKey], base.Index]:
    """Returns `key -> batch_size indices`, stacked on a new leading axis.

    Index i is drawn with `fold_in(key, i)`: the first indices do not depend on how
    many are drawn. On a mesh they are sharded over its axis `index`.

    >>> import jax
    >>> from enn import networks, utils
    >>> key, indexer = jax.random.key(0), networks.GaussianIndexer(2)
    >>> few, many = (utils.make_batch_indexer(indexer, n)(key) for n in (3, 5))
    >>> bool((few == many[:3]).all())
    True

    Raises:
      ValueError: if `batch_size` is not an integer >= 1.
    """
    positions = jnp.arange(_checks.positive_int("batch_size", batch_size))

    def batch_indexer(key: chex.PRNGKey) -> base.Index:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)
        return _sharding.over_index(jax.vmap(indexer)(keys))

    return batch_indexer
