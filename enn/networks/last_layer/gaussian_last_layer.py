"""A last layer with Gaussian weights, of which the index picks one draw.

With features φ̃(x), `[num_features + 1]` (the last entry is one, for the bias), and
index z ~ N(0, I), the layer is

    φ̃(x)ᵀ Λ(z), with Λ(z) ~ N(0, Σ) linear in z.

Held fixed, z is one matrix of weights, and so one function: predictions at several
inputs are joint. Base network and features do not depend on z and are computed once for
any number of indices. Laplace approximations, variational last layers, deep kernels and
SNGP differ in how they come by Σ, and sample through this module.

Σ is held as a factor of its structure. F1 is the number of features with the bias, C of
outputs, R the rank; z is flat, and read row by row as the array of the third column:

| structure    | factor            | z as    | Λ(z)                   |
|--------------|-------------------|---------|------------------------|
| `diagonal`   | s [F1, C]         | [F1, C] | s ∘ z                  |
| `shared`     | L [F1, R]         | [R, C]  | L z                    |
| `per_output` | L [C, F1, R]      | [R, C]  | column c is L_c z_c    |
| `joint`      | L [F1, C, R]      | [R]     | Σ_r L_r z_r            |
| `kronecker`  | left U [F1, F1],  | [F1, C] | U (s ∘ z) Vᵀ           |
|              | right V [C, C],   |         |                        |
|              | scale s [F1, C]   |         |                        |
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import OutputWithPrior
from enn.networks.epinet.base import EpinetWithState
from enn.networks.indexers import GaussianIndexer

Structure = Literal["diagonal", "shared", "per_output", "joint", "kronecker"]
"""How the covariance of a last layer's weights is held, see above."""

Factor = chex.Array | Mapping[str, chex.Array]
"""An array, or for `kronecker` the arrays `left`, `right` and `scale`."""

MODULE = "gaussian_last_layer"

# Axes by letter: features F, outputs C, rank R; the order of index and factor.
_INDEX_AXES = {
    "diagonal": "FC",
    "shared": "RC",
    "per_output": "RC",
    "joint": "R",
    "kronecker": "FC",
}
_FACTOR_AXES = {
    "diagonal": {"factor": "FC"},
    "shared": {"factor": "FR"},
    "per_output": {"factor": "CFR"},
    "joint": {"factor": "FCR"},
    "kronecker": {"left": "FF", "right": "CC", "scale": "FC"},
}
_PRECISION_AXES = {
    "diagonal": {"precision": "FC"},
    "shared": {"precision": "FF"},
    "per_output": {"precision": "CFF"},
    "joint": {"precision": "FCFC"},
    "kronecker": {"left": "FF", "right": "CC", "prior_precision": ""},
}


class GaussianLastLayer(EpinetWithState):
    """A Gaussian last layer of mean zero, as an epinet on a base network's features.

    φ̃(x)ᵀ Λ(z) with Λ(z) ~ N(0, Σ), for Σ as `fit_laplace` finds it.

    `combine_base_epinet_as_enn` adds it to any base network, whose own last layer is
    the mean. Its parameters, the module `gaussian_last_layer`, hold the factor, at
    first that of the prior N(0, I / prior_precision). The hidden features that it is
    applied to are `[batch, num_features]`.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> layer = networks.GaussianLastLayer(
    ...     2, 1, "shared", bias=False, prior_precision=4.0
    ... )
    >>> x, features = np.ones([1, 2]), np.array([[1.0, 2.0]])
    >>> params, _ = layer.init(jax.random.key(0), x, np.ones(2), features)
    >>> factor = params["gaussian_last_layer"]["factor"]
    >>> print(networks.marginal_variance("shared", factor, features))  # (1² + 2²) / 4
    [[1.25]]

    Args:
      num_features: number of features, without the bias.
      num_outputs: number of outputs.
      structure: how the covariance is held, a `Structure`.
      rank: number of columns of a factor that is `shared`, `per_output` or `joint`; as
        many as rows by default. With fewer, the first factor is that of the prior in
        as many directions.
      bias: whether a bias is among the weights.
      prior_precision: of all weights.

    Raises:
      ValueError: for an unknown structure, a size that is not an integer >= 1, a
        precision that is not > 0, or a rank where the structure fixes it; by `apply`
        for features or an index of another shape.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        structure: Structure,
        rank: int | None = None,
        bias: bool = True,
        prior_precision: float = 1.0,
    ):
        check_structure(structure)
        _checks.positive_int("num_features", num_features)
        _checks.positive(prior_precision=prior_precision)
        sizes = {
            "F": num_features + bias,
            "C": _checks.positive_int("num_outputs", num_outputs),
        }
        if "R" in _INDEX_AXES[structure]:
            most = sizes["F"] * (sizes["C"] if structure == "joint" else 1)
            sizes["R"] = most if rank is None else _checks.positive_int("rank", rank)
        elif rank is not None:
            raise ValueError(
                f"rank must be None for the structure {structure!r}, got {rank}."
            )
        index_dim = math.prod(sizes[axis] for axis in _INDEX_AXES[structure])

        def init(
            key: chex.PRNGKey,
            inputs: chex.Array,
            index: base.Index,
            hidden: chex.Array,
        ) -> tuple[hk.Params, hk.State]:
            del key, inputs, index
            factor = _prior_factor(structure, sizes, jnp.result_type(hidden, 0.0))
            scale = prior_precision**-0.5
            name = list(factor)[-1]
            return {MODULE: {**factor, name: scale * factor[name]}}, {}

        def apply(
            params: hk.Params,
            state: hk.State,
            inputs: chex.Array,
            index: base.Index,
            hidden: chex.Array,
        ) -> tuple[OutputWithPrior, hk.State]:
            del inputs
            axes = f"[batch, {num_features}]"
            _checks.shape("hidden", hidden, (None, num_features), axes)
            _checks.shape("index", index, (index_dim,), f"[{index_dim}]")
            features = append_one(hidden) if bias else hidden
            factor = params[MODULE]
            factor = factor if structure == "kronecker" else factor["factor"]
            return OutputWithPrior(
                apply_factor(structure, factor, features, index)
            ), state

        super().__init__(apply, init, GaussianIndexer(index_dim))


def check_structure(structure: str) -> None:
    """Raises ValueError unless `structure` is a `Structure`."""
    _checks.one_of("structure", structure, get_args(Structure))


def append_one(features: chex.Array) -> jax.Array:
    """Returns features `[batch, F]` with a last entry of one, `[batch, F + 1]`."""
    features = jnp.asarray(features)
    return jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)


def apply_factor(
    structure: Structure, factor: Factor, features: chex.Array, index: base.Index
) -> jax.Array:
    """Returns φ̃ᵀ Λ(z), `[batch, num_outputs]`.

    The order of the products saves work over many indices: features meet the factor
    once, and then each index; a joint factor of high rank meets the index first.

    >>> import numpy as np
    >>> from enn import networks
    >>> factor = np.array([[1.0, 2.0], [0.0, 3.0]])
    >>> features, index = np.array([[0.5, 1.0]]), np.array([1.0, 2.0, 3.0, 4.0])
    >>> networks.apply_factor("shared", factor, features, index)
    Array([[12.5, 17. ]], dtype=float32)

    Args:
      structure: of the factor.
      factor: see `enn.networks.last_layer.gaussian_last_layer`.
      features: `[batch, F1]`, with the one for the bias if there is one.
      index: flat, `[index_dim]`.

    Raises:
      ValueError: for an unknown structure or a wrong shape.
    """
    arrays, sizes = _read(structure, factor, _FACTOR_AXES, features)
    features, index = jnp.asarray(features), jnp.asarray(index)
    if structure == "shared":  # Its factor does not know the number of outputs.
        sizes["C"] = max(1, index.size // sizes["R"])
    shape = [sizes[axis] for axis in _INDEX_AXES[structure]]
    dim = math.prod(shape)
    _checks.shape("index", index, (dim,), f"[{dim}]")
    z = index.reshape(shape)
    *_, factor = arrays
    match structure:
        case "diagonal":
            return features @ (factor * z)
        case "shared":
            return features @ factor @ z
        case "per_output":
            projected = jnp.einsum("bf,cfr->cbr", features, factor)
            return jnp.einsum("cbr,rc->bc", projected, z)
        case "joint" if sizes["R"] <= sizes["F"]:
            projected = jnp.einsum("bf,fcr->bcr", features, factor)
            return jnp.einsum("bcr,r->bc", projected, z)
        case "joint":
            return features @ jnp.einsum("fcr,r->fc", factor, z)
        case _:
            left, right, scale = arrays
            return features @ left @ (scale * z) @ right.T


def marginal_variance(
    structure: Structure, factor: Factor, features: chex.Array
) -> jax.Array:
    """Returns the variance of each output over indices z ~ N(0, I).

    Var_z φ̃ᵀ Λ(z)_c = φ̃ᵀ Σ_cc φ̃ for output c.

    >>> import numpy as np
    >>> from enn import networks
    >>> factor = np.array([[1.0, 2.0], [0.0, 3.0]])
    >>> networks.marginal_variance("shared", factor, np.array([[0.5, 1.0]]))
    Array([[16.25]], dtype=float32)

    Args:
      structure: of the factor.
      factor: see `enn.networks.last_layer.gaussian_last_layer`.
      features: `[batch, F1]`, with the one for the bias if there is one.

    Returns:
      `[batch, num_outputs]`; of a shared factor `[batch, 1]`, for all outputs.

    Raises:
      ValueError: for an unknown structure or a wrong shape.
    """
    arrays, _ = _read(structure, factor, _FACTOR_AXES, features)
    features = jnp.asarray(features)
    *_, factor = arrays
    match structure:
        case "diagonal":
            return jnp.square(features) @ jnp.square(factor)
        case "shared":
            return jnp.sum(jnp.square(features @ factor), axis=1, keepdims=True)
        case "per_output":
            projected = jnp.einsum("bf,cfr->bcr", features, factor)
            return jnp.sum(jnp.square(projected), axis=2)
        case "joint":
            projected = jnp.einsum("bf,fcr->bcr", features, factor)
            return jnp.sum(jnp.square(projected), axis=2)
        case _:
            left, right, scale = arrays
            variances = jnp.square(features @ left) @ jnp.square(scale)
            return variances @ jnp.square(right).T


def factor_from_precision(structure: Structure, precision: Factor) -> Factor:
    """Returns the factor of N(0, P⁻¹): C⁻ᵀ for the lower C with P = C Cᵀ.

    Then C⁻ᵀ C⁻¹ = P⁻¹. (C⁻¹ in its place has another covariance.) A Kronecker
    precision is taken apart into eigenvectors instead.

    >>> import numpy as np
    >>> from enn import networks
    >>> networks.factor_from_precision("shared", np.array([[4.0, 2.0], [2.0, 2.0]]))
    Array([[ 0.5, -0.5],
           [ 0. ,  1. ]], dtype=float32)

    Args:
      structure: of the precision and the factor.
      precision: `diagonal` `[F1, C]`; `shared` `[F1, F1]`; `per_output` `[C, F1, F1]`;
        `joint` `[F1, C, F1, C]`; `kronecker` a mapping of `left` A `[F1, F1]`, `right`
        B `[C, C]` and the scalar `prior_precision` δ, for P = A ⊗ B + δ I.

    Raises:
      ValueError: for an unknown structure or a wrong shape, and if the precision is
        not positive definite in its type.
    """
    arrays, sizes = _read(structure, precision, _PRECISION_AXES)
    *_, matrix = arrays
    match structure:
        case "kronecker":
            left, right, prior_precision = arrays
            (left_values, left), (right_values, right) = map(
                jnp.linalg.eigh, (left, right)
            )
            values = jnp.outer(left_values, right_values) + prior_precision
            return {"left": left, "right": right, "scale": _inverse_root(values)}
        case "diagonal":
            return _inverse_root(matrix)
        case "joint":
            size = sizes["F"] * sizes["C"]
            flat = _inverse_root_of_matrix(matrix.reshape(size, size))
            return flat.reshape(sizes["F"], sizes["C"], size)
        case _:
            return _inverse_root_of_matrix(matrix)


def _read(
    structure: Structure,
    value: Factor,
    axes: Mapping[str, Mapping[str, str]],
    features: chex.Array | None = None,
) -> tuple[list[jax.Array], dict[str, int]]:
    """Returns the arrays of `value`, and the size of each axis by its letter."""
    check_structure(structure)
    names = axes[structure]
    arrays = value if isinstance(value, Mapping) else {next(iter(names)): value}
    if set(arrays) != set(names):
        raise ValueError(
            f"The structure {structure!r} has the arrays {list(names)}, got "
            f"{sorted(arrays)}."
        )
    sizes: dict[str, int] = {}
    for name, letters in names.items():
        shape = np.shape(arrays[name])
        sizes.update(zip(letters[::-1], shape[::-1], strict=False))
        expected = tuple(sizes.get(axis) for axis in letters)
        _checks.shape(name, arrays[name], expected, f"[{', '.join(letters)}]")
    if features is not None:
        axis = f"[batch, {sizes['F']}]"
        _checks.shape("features", features, (None, sizes["F"]), axis)
    return [jnp.asarray(arrays[name]) for name in names], sizes


def _prior_factor(
    structure: Structure, sizes: Mapping[str, int], dtype: jnp.dtype
) -> dict[str, jax.Array]:
    """Returns the arrays of a factor of the identity, or of its first columns."""
    match structure:
        case "diagonal":
            return {"factor": jnp.ones([sizes["F"], sizes["C"]], dtype)}
        case "kronecker":
            left, right = (jnp.eye(sizes[axis], dtype=dtype) for axis in "FC")
            scale = jnp.ones([sizes["F"], sizes["C"]], dtype)
            return {"left": left, "right": right, "scale": scale}
        case "joint":
            eye = jnp.eye(sizes["F"] * sizes["C"], sizes["R"], dtype=dtype)
            return {"factor": eye.reshape(sizes["F"], sizes["C"], sizes["R"])}
    eye = jnp.eye(sizes["F"], sizes["R"], dtype=dtype)
    shape = [sizes[axis] for axis in _FACTOR_AXES[structure]["factor"]]
    return {"factor": jnp.broadcast_to(eye, shape)}


def _inverse_root(precisions: jax.Array) -> jax.Array:
    """Returns P^(-1/2) of a diagonal precision, `[F1, C]`."""
    if _checks.is_concrete(precisions) and not (precisions > 0).all():
        row = np.argwhere(~(np.asarray(precisions) > 0))[0]
        _raise_indefinite(f"row {row[0]}, output {row[1]}", precisions[*row])
    return jax.lax.rsqrt(precisions)


def _inverse_root_of_matrix(precision: jax.Array) -> jax.Array:
    """Returns C⁻ᵀ of P = C Cᵀ, `[..., n, n]`."""
    lower = jnp.linalg.cholesky(precision)
    size = lower.shape[-1]
    if _checks.is_concrete(lower) and not jnp.isfinite(lower).all():
        failed = ~np.isfinite(lower).reshape(-1, size * size).all(axis=1)
        matrix = np.array(precision).reshape(-1, size, size)[failed.argmax()]
        row, pivot = _smallest_pivot(matrix)
        _raise_indefinite(f"row {row}", pivot)
    eye = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    return jax.scipy.linalg.solve_triangular(lower, eye, trans="T", lower=True)


def _smallest_pivot(matrix: np.ndarray) -> tuple[int, Any]:
    """Returns the row of the first pivot that is not > 0, or the last, and the pivot.

    Eliminates as Cholesky does. Overwrites `matrix`.
    """
    for row in range(len(matrix) - 1):
        if not matrix[row, row] > 0:
            return row, matrix[row, row]
        below = matrix[row + 1 :, row]
        matrix[row + 1 :, row + 1 :] -= np.outer(below, below) / matrix[row, row]
    return len(matrix) - 1, matrix[-1, -1]


def _raise_indefinite(place: str, pivot: Any) -> None:
    raise ValueError(
        f"The precision is not positive definite in {jnp.result_type(pivot)}: its "
        f"smallest pivot, of {place}, is {pivot:.3g}. Take a larger prior_precision, "
        "or float64 by jax_enable_x64."
    )
