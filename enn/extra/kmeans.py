"""K-means clustering by Lloyd's algorithm."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from enn import _checks


class KMeansOutput(NamedTuple):
    """Clusters of data.

    Attributes:
      centroids: `[num_centroids, dim]`.
      counts_per_centroid: number of rows of each cluster, `[num_centroids]`.
      std_distance: mean *squared* distance of the rows of each cluster from its
        centroid, `[num_centroids]`. Numbers follow the original `enn`; for what the
        name says, see `rms_distance`.
      classes: cluster of each row, int32 `[num_data]`.
    """

    centroids: jax.Array
    counts_per_centroid: jax.Array
    std_distance: jax.Array
    classes: jax.Array

    @property
    def rms_distance(self) -> jax.Array:
        """Root mean square distance of the rows of each cluster, `[num_centroids]`."""
        return jnp.sqrt(self.std_distance)


class KMeansState(NamedTuple):
    """The state of Lloyd's algorithm.

    Attributes:
      centroids: `[num_centroids, dim]`.
      iter: number of iterations done.
    """

    centroids: jax.Array
    iter: chex.Numeric


@dataclasses.dataclass(frozen=True, eq=False)
class KMeansCluster:
    """Clusters rows by their nearest centroid (Lloyd, 1982).

    https://doi.org/10.1109/TIT.1982.1056489. Each iteration moves every centroid to
    the mean of the rows nearest to it; one that is nearest to none stays.

    >>> import jax, numpy as np
    >>> from enn import extra
    >>> x = np.array([[0.0], [1.0], [10.0], [11.0]])
    >>> out = extra.KMeansCluster(2, num_iterations=10, key=jax.random.key(0)).fit(x)
    >>> sorted(out.centroids.ravel().tolist())
    [0.5, 10.5]

    Attributes:
      num_centroids: number of clusters.
      num_iterations: number of iterations; those after the centroids have come to
        rest change nothing and cost nothing.
      key: random key of the first centroids.
      init: how the first centroids are drawn. `"random"`: rows without replacement.
        `"k-means++"`: one row after the other, with probability in proportion to the
        squared distance from those drawn before (Arthur & Vassilvitskii, 2007,
        https://dl.acm.org/doi/10.5555/1283383.1283494).

    Raises:
      ValueError: if a number is out of range or `init` is unknown; by `fit`, if
        there are fewer rows than centroids.
    """

    num_centroids: int
    num_iterations: int
    key: chex.PRNGKey
    init: Literal["random", "k-means++"] = "random"

    def __post_init__(self) -> None:
        _checks.positive_int("num_centroids", self.num_centroids)
        _checks.non_negative_int("num_iterations", self.num_iterations)
        _checks.one_of("init", self.init, ("random", "k-means++"))

    def fit(self, x: chex.Array) -> KMeansOutput:
        """Returns the clusters of `x`, `[num_data, dim]`."""
        x = _checks.float_rows("x", x)
        if len(x) < self.num_centroids:
            raise ValueError(
                f"x must have at least num_centroids={self.num_centroids} rows, "
                f"got {len(x)}."
            )
        draw = _spread_rows if self.init == "k-means++" else _random_rows
        return _fit(self.key, x, draw, self.num_centroids, self.num_iterations)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fit(
    key: chex.PRNGKey,
    x: jax.Array,
    draw: Callable[[chex.PRNGKey, jax.Array, int], jax.Array],
    num_centroids: int,
    num_iterations: int,
) -> KMeansOutput:
    def iterate(carry: tuple[KMeansState, Any]) -> tuple[KMeansState, Any]:
        old, _ = carry
        new = kmeans_iteration(x, old)
        return new, jnp.any(new.centroids != old.centroids)

    def step(_: Any, carry: tuple[KMeansState, Any]) -> tuple[KMeansState, Any]:
        return jax.lax.cond(carry[1], iterate, lambda at_rest: at_rest, carry)

    # A loop of fixed length, unlike one that ends at rest, has gradients.
    start = (KMeansState(draw(key, x, num_centroids), jnp.array(0)), jnp.array(True))
    state, _ = jax.lax.fori_loop(0, num_iterations, step, start)
    return compute_output(x, state)


@jax.jit
def get_classes_and_distances(
    x: chex.Array, centroids: chex.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns each row's nearest centroid, and its distances from all of them.

    Args:
      x: `[num_data, dim]`.
      centroids: `[num_centroids, dim]`.

    Returns:
      Classes, int32 `[num_data]`, the lowest of equally near ones; and Euclidean
      distances `[num_data, num_centroids]`.
    """
    squares = jnp.square(jnp.expand_dims(x, 1) - jnp.expand_dims(centroids, 0))
    distances = jnp.sqrt(jnp.sum(squares, axis=-1))
    return jnp.argmin(distances, axis=1).astype(jnp.int32), distances


def kmeans_iteration(x: chex.Array, state: Any) -> KMeansState:
    """Moves every centroid to the mean of the rows nearest to it, if any.

    μ_k ← mean of x over {x : k = argmin_j ‖x - μ_j‖} (Lloyd, 1982,
    https://doi.org/10.1109/TIT.1982.1056489).

    Args:
      x: `[num_data, dim]`.
      state: a `KMeansState`, or anything with its attributes.
    """
    return KMeansState(_moved(jnp.asarray(x), state.centroids), state.iter + 1)


@jax.jit
def _moved(x: jax.Array, centroids: jax.Array) -> jax.Array:
    classes, _ = get_classes_and_distances(x, centroids)
    sums, counts = _cluster_sums(x, classes, len(centroids))
    means = sums / jnp.maximum(counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, means, centroids)


def compute_output(x: chex.Array, state: Any) -> KMeansOutput:
    """Assigns the rows to clusters and describes these.

    Args:
      x: `[num_data, dim]`.
      state: a `KMeansState`, or anything with its attributes.
    """
    return _output(jnp.asarray(x), state.centroids)


@jax.jit
def _output(x: jax.Array, centroids: jax.Array) -> KMeansOutput:
    classes, _ = get_classes_and_distances(x, centroids)
    squares = jnp.sum(jnp.square(x - centroids[classes]), axis=1, keepdims=True)
    sums, counts = _cluster_sums(squares, classes, len(centroids))
    mean_squares = sums[:, 0] / jnp.maximum(counts, 1)
    return KMeansOutput(centroids, counts, mean_squares, classes)


def _cluster_sums(
    values: jax.Array, classes: jax.Array, num_centroids: int
) -> tuple[jax.Array, jax.Array]:
    """Sums of `values` over each cluster, and numbers of rows."""
    members = jax.nn.one_hot(classes, num_centroids, dtype=values.dtype)
    # Sums in a fixed order, and not in the low precision that matrix products default
    # to on some devices.
    sums = jnp.matmul(members.T, values, precision=jax.lax.Precision.HIGHEST)
    return sums, jnp.sum(members, axis=0)


def _random_rows(key: chex.PRNGKey, x: jax.Array, num_rows: int) -> jax.Array:
    """Rows without replacement, `[num_rows, dim]`."""
    return x[jax.random.choice(key, len(x), [num_rows], replace=False)]


def _spread_rows(key: chex.PRNGKey, x: jax.Array, num_rows: int) -> jax.Array:
    """The first centroids of k-means++, `[num_rows, dim]`."""
    keys = jax.random.split(key, num_rows)

    def squared_distances(centroid: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x - centroid[None]), axis=1)

    def draw(nearest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = x[jax.random.categorical(key, jnp.log(nearest))]
        return jnp.minimum(nearest, squared_distances(row)), row

    first = x[jax.random.randint(keys[0], [], 0, len(x))]
    _, others = jax.lax.scan(draw, squared_distances(first), keys[1:])
    return jnp.concatenate([first[None], others])
