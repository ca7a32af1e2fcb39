"""Log-likelihood and curvature of a data set, summed in one pass over its rows.

For the Hessian of -log p(y | f) in the outputs f, the curvature in the weights is the
sum over rows of JᵀΛJ, the generalised Gauss–Newton matrix (GGN); J is the Jacobian of
the outputs. On a last layer it is the Hessian itself. Λ is diag(d) - p pᵀ: with d = p =
softmax(f) of a categorical likelihood, and d = 1 / noise_std², p = 0 of a Gaussian one.
No array here has classes by classes for every row.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _sharding
from enn.datasets.base import ArrayBatch
from enn.losses.single_index import label_cross_entropy, regression_errors
from enn.metrics.base import at_least_float32
from enn.networks.last_layer.gaussian_last_layer import Structure

Likelihood = Literal["categorical", "gaussian"]
"""Of labels given logits, or of targets given means."""

Data = ArrayBatch | Iterable[ArrayBatch]
"""Finite data, each row once: all of it, or in batches."""

Sums = dict[str, jax.Array]
"""Sums over rows by name; those of two parts of the data add up."""

_MAX_ROWS = 1024
BLOCK_SIZE = 2**22
"""Most entries of a block of inputs, or of its Jacobian."""
_MAX_BYTES = 2**30
"""Most bytes of one matrix: a fit holds about four of its size."""


class Rows(NamedTuple):
    """A block of rows.

    Attributes:
      x: inputs, `[batch, ...]`.
      y: labels or targets.
      weights: of the rows, `[batch]`.
    """

    x: Any
    y: Any
    weights: Any


class OutputCurvature(NamedTuple):
    """The Hessian diag(d) - p pᵀ of the negative log-likelihood in the outputs.

    Attributes:
      diagonal: d, `[batch, num_outputs]`.
      probs: p, `[batch, num_outputs]`, or None for zero.
    """

    diagonal: jax.Array
    probs: jax.Array | None


def check_size(structure: Structure, num_features: int, num_outputs: int) -> None:
    """Raises ValueError where a matrix of `structure` would not fit into memory."""
    sizes = {
        "joint": (num_features * num_outputs) ** 2,
        "per_output": num_outputs * num_features**2,
        "shared": num_features**2,
        "kronecker": num_features**2 + num_outputs**2,
        "diagonal": num_features * num_outputs,
    }
    itemsize = jnp.dtype(float).itemsize
    if sizes[structure] * itemsize > _MAX_BYTES:
        fitting = [
            name
            for name in ("per_output", "kronecker", "diagonal")
            if sizes[name] * itemsize <= _MAX_BYTES
        ]
        raise ValueError(
            f"The structure {structure!r} of {num_features} features and {num_outputs} "
            f"outputs needs a matrix of {sizes[structure] * itemsize / 2**30:.3g} GiB. "
            f"Structures that need less than 1 GiB: {fitting}."
        )


def as_batches(data: Data | Iterable[Rows]) -> Iterator[ArrayBatch | Rows]:
    """Yields the batches of `data` as they are.

    Raises:
      TypeError: for an endless iterator, or anything that is not a batch.
    """
    if getattr(data, "is_endless", False):
        raise TypeError(
            f"data must be finite, each row once, and a {type(data).__name__} is "
            "endless: give what it reads, its `.data`, or one pass of "
            "`eval_datasets()`."
        )
    for batch in [data] if isinstance(data, ArrayBatch) else data:
        if not isinstance(batch, ArrayBatch | Rows):
            raise TypeError(
                "data must be an ArrayBatch or an iterable of them, got "
                f"{type(batch).__name__}."
            )
        yield batch


def batches(
    data: Data | Iterable[Rows], mesh: Any = None, num_rows: int = _MAX_ROWS
) -> Iterator[Rows]:
    """Yields `data` in blocks of at most `num_rows` rows, each with weights `[batch]`.

    Args:
      data: batches, which are cut further.
      mesh: shards the rows of each block, which are filled up with rows of weight zero.
      num_rows: most rows of a block; fewer where the inputs are large.

    Raises:
      TypeError: for an endless iterator, or anything that is not a batch.
      ValueError: for a weight < 0.
    """
    mesh = _sharding.check_mesh(mesh)
    for batch in as_batches(data):
        total = len(batch.y)
        weights = np.ones(total) if batch.weights is None else batch.weights
        weights = np.reshape(weights, total).astype(jnp.result_type(float))
        if (weights < 0).any():
            raise ValueError(f"weights must be >= 0, got {weights.min()}.")
        entries = max(np.size(leaf) for leaf in jax.tree.leaves(batch.x))
        step = max(1, min(num_rows, BLOCK_SIZE * total // max(entries, 1)))
        for start in range(0, total, step):
            rows = Rows(batch.x, batch.y, weights)
            rows = jax.tree.map(lambda leaf: leaf[start : start + step], rows)  # noqa: B023
            yield _sharding.put_rows(mesh, _fill(rows, mesh))


def _fill(rows: Rows, mesh: Any) -> Rows:
    """Repeats the last row, at weight zero, until rows divide over the devices."""
    devices = 1 if mesh is None else mesh.local_mesh.shape.get(_sharding.DATA, 1)
    missing = -len(rows.y) % devices
    if not missing:
        return rows

    def fill(leaf: Any) -> Any:
        return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)])

    filled = jax.tree.map(fill, rows)
    filled.weights[-missing:] = 0
    return filled


def first_batch(data: Data) -> tuple[Rows, Iterator[Rows]]:
    """Returns the first block of `data`, and an iterator over all of its blocks.

    Raises:
      ValueError: if there are no rows.
    """
    blocks = batches(data)
    first = next(blocks, None)
    if first is None:
        raise ValueError("data must have rows, got none.")
    return first, itertools.chain([first], blocks)


def with_checked_labels(
    blocks: Iterable[Rows], likelihood: Likelihood, num_outputs: int
) -> Iterator[Rows]:
    """Yields `blocks`, or raises ValueError for labels out of range."""
    for block in blocks:
        if likelihood == "categorical":
            _checks.class_labels(block.y, num_outputs)
        yield block


def fold_rows(
    update: Callable[[Sums, Any, Rows], Sums],
    start: Sums,
    variables: Any,
    blocks: Iterable[Rows],
    mesh: Any = None,
) -> Sums:
    """Returns `start`, updated with every block in turn.

    Args:
      update: `(sums, variables, batch) -> sums`, compiled.
      start: sums of no rows.
      variables: what `update` needs of the network.
      blocks: see `batches`.
      mesh: where they are.

    Raises:
      ValueError: if a sum is not finite, or the weights of the rows are all zero.
    """
    mesh = _sharding.check_mesh(mesh)
    sums, variables = _sharding.put_everywhere(mesh, (start, variables))
    update = jax.jit(update)
    for block in blocks:
        sums = update(sums, variables, block)
    for name, value in sums.items():
        if not jnp.isfinite(value).all():
            raise ValueError(
                f"The {name} of the data is not finite: look for NaN in the data and "
                "the parameters."
            )
    if not sums["num_data"] > 0:
        raise ValueError("data must have rows of weight > 0.")
    return _sharding.fetch(mesh, sums)


def totals(log_likelihood: jax.Array, weights: jax.Array) -> Sums:
    """Returns the sums that every fit has, of rows `[batch]`."""
    return {"log_likelihood": weights @ log_likelihood, "num_data": jnp.sum(weights)}


def output_curvature(
    likelihood: Likelihood, noise_std: float, outputs: chex.Array, targets: chex.Array
) -> tuple[jax.Array, OutputCurvature]:
    """Returns the log-likelihood of each row, `[batch]`, and its curvature.

    Args:
      likelihood: categorical or Gaussian.
      noise_std: standard deviation of Gaussian noise.
      outputs: logits or means, `[batch, num_outputs]`.
      targets: labels `[batch, 1]`, or targets shaped like the outputs.
    """
    outputs = at_least_float32(outputs)
    if likelihood == "categorical":
        num_classes = outputs.shape[1]
        log_likelihood = -label_cross_entropy(outputs, targets, num_classes)[:, 0]
        probs = jax.nn.softmax(outputs, axis=1)
        return log_likelihood, OutputCurvature(probs, probs)
    errors = regression_errors(outputs, targets) / noise_std
    constant = math.log(noise_std) + 0.5 * math.log(2 * math.pi)
    log_likelihood = jnp.sum(-0.5 * jnp.square(errors) - constant, axis=1)
    return log_likelihood, OutputCurvature(jnp.full_like(errors, noise_std**-2.0), None)


def last_layer_sums(
    structure: Structure,
    features: jax.Array,
    weights: jax.Array,
    curvature: OutputCurvature,
) -> Sums:
    """Returns Σ_n w_n φ̃φ̃ᵀ ⊗ Λ_n, as far as `structure` holds it.

    Args:
      structure: which entries are held: `diagonal` `[F1, C]`, `shared` `[F1, F1]` of
        any one output, `per_output` `[C, F1, F1]`, `joint` `[F1, C, F1, C]`; for
        `kronecker` the two factors apart, summed over rows.
      features: φ̃, `[batch, F1]`.
      weights: w, `[batch]`.
      curvature: Λ, of the outputs.
    """
    diagonal, probs = curvature
    weighted = features * weights[:, None]

    def grams(diagonals: jax.Array) -> jax.Array:
        """Σ_n w_n d_nc φ̃φ̃ᵀ for each output c, `[C, F1, F1]`."""
        return jax.lax.map(lambda d: (weighted * d[:, None]).T @ features, diagonals.T)

    if structure == "kronecker":
        if probs is None:
            right = jnp.diag(weights @ diagonal)
        else:  # Rows sum to 0: as differences of large sums, they would not.
            shared = (probs * weights[:, None]).T @ probs
            shared = shared - jnp.diag(jnp.diag(shared))
            right = jnp.diag(jnp.sum(shared, axis=1)) - shared
        return {"left": weighted.T @ features, "right": right}
    if structure == "shared":
        return {"curvature": (weighted * diagonal[:, :1]).T @ features}
    if structure == "joint":
        return {"curvature": _joint(features, weights, grams(diagonal), probs)}
    own = diagonal if probs is None else diagonal - jnp.square(probs)
    if structure == "per_output":
        return {"curvature": grams(own)}
    return {"curvature": (jnp.square(features) * weights[:, None]).T @ own}


def _joint(
    features: jax.Array, weights: jax.Array, grams: jax.Array, probs: jax.Array | None
) -> jax.Array:
    """Returns the Gram matrices of outputs, less what they share, `[F1, C, F1, C]`."""
    outputs, size, _ = grams.shape
    own = jnp.zeros([size, outputs, size, outputs], grams.dtype)
    own = own.at[:, np.arange(outputs), :, np.arange(outputs)].set(grams)
    if probs is None:
        return own
    scaled = features * jnp.sqrt(weights)[:, None]
    product = scaled[:, :, None] * probs[:, None, :]
    flat = product.reshape(len(features), -1)
    return own - (flat.T @ flat).reshape(own.shape)


def square_root_rows(
    jacobian: jax.Array, weights: jax.Array, curvature: OutputCurvature
) -> jax.Array:
    """Returns X with XᵀX = Σ_n w_n J_nᵀ Λ_n J_n.

    diag(p) - p pᵀ is the covariance of a draw of the class: with p̄ = Σ_c p_c J_c, the
    rows of X are √p_c (J_c - p̄), which loses no digits.

    Args:
      jacobian: J, `[batch, num_outputs, num_params]`.
      weights: w, `[batch]`.
      curvature: Λ, of the outputs.

    Returns:
      `[batch * num_outputs, num_params]`.
    """
    diagonal, probs = curvature
    if probs is not None:
        jacobian = jacobian - jnp.einsum("bc,bcp->bp", probs, jacobian)[:, None]
    scale = jnp.sqrt(diagonal * weights[:, None])
    return (scale[:, :, None] * jacobian).reshape(-1, jacobian.shape[-1])
