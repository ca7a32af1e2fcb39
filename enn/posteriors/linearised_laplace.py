"""Laplace approximation of all weights, with the network linearised at them."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import chex
import haiku as hk
import jax
import jax.flatten_util
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.base import EnnArray, Output, OutputWithPrior
from enn.networks.indexers import GaussianIndexer
from enn.networks.last_layer.gaussian_last_layer import factor_from_precision
from enn.networks.utils import merge_modules, parse_to_output_with_prior
from enn.posteriors import curvature
from enn.posteriors.base import (
    FitOptions,
    Posterior,
    PriorPrecision,
    base_index,
    best_prior_precision,
    check_state,
    log_evidence,
)
from enn.posteriors.curvature import Data, Likelihood, Rows, Sums

LinearisedStructure = Literal["full", "diagonal", "low_rank"]
"""How the covariance of all weights is held."""

MODULE = "linearised_laplace"
_MOST_PARAMS = 5000
_EXTRA_RANK = 10
_JACOBIAN_SIZE = 2**24
_MOST_COMPRESSED = 1000


def fit_linearised_laplace(
    enn: EnnArray,
    params: base.AnyTree,
    state: base.AnyTree,
    data: Data,
    likelihood: Likelihood,
    *,
    structure: Literal["full", "diagonal", "low_rank"] = "full",
    rank: int | None = None,
    prior_precision: PriorPrecision = 1.0,
    noise_std: float = 1.0,
    temperature: float = 1.0,
    index: base.Index | None = None,
    previous: Posterior | None = None,
    mesh: Any = None,
) -> Posterior:
    """Fits a Laplace approximation to all weights of a trained network.

    The result is the network linearised at its weights (Immer et al., 2021,
    https://arxiv.org/abs/2008.08400):

        f(x, z) = f(x) + J(x) d(z), with d(z) ~ N(0, T (H + δ I)⁻¹),

    H = Σ_n w_n J_nᵀ Λ_n J_n, for the P weights of the tree, in its order. J(x) d(z) is
    one `jax.jvp` an index; over many indices they share the forward pass of f. Where
    (λ, U) are the largest eigenvalues of H and their vectors,

    | structure  | d(z) for z in R^P                                |
    |------------|--------------------------------------------------|
    | `full`     | L z, L Lᵀ = (H + δ I)⁻¹                           |
    | `diagonal` | z / (diag(H) + δ)^½                               |
    | `low_rank` | δ^(-½) (z + U ((δ / (λ + δ))^½ - 1) Uᵀ z)         |

    so that directions without curvature keep their prior. Low rank holds 3 `rank` + 10
    directions while data stream by: it is exact if H has no more, and for data of one
    block; otherwise the smallest of the eigenvalues may be too small by a percent.

    All weights count in the evidence, also those on which no output depends at `index`,
    such as other members of an ensemble: to choose δ by it, fit the member alone.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import datasets, networks
    >>> from enn.posteriors import fit_linearised_laplace
    >>> enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([4, 2])(x))
    >>> x = np.linspace(-1, 1, 12).reshape(6, 2).astype(np.float32)
    >>> data = datasets.ArrayBatch(x=x, y=np.array([[0], [1], [1], [0], [1], [0]]))
    >>> params, state = enn.init(jax.random.key(0), x, jax.random.key(0))
    >>> posterior = fit_linearised_laplace(enn, params, state, data, "categorical")
    >>> posterior.params["linearised_laplace"]["factor"].shape
    (22, 22)

    Args:
      enn: the trained network, built for evaluation; a row's output depends on that
        row alone.
      params: its parameters.
      state: its state.
      data: as in `fit_laplace`.
      likelihood: `categorical` or `gaussian`.
      structure: see above. `full` has at most 5000 weights.
      rank: number of eigenvalues, for `low_rank` alone.
      prior_precision: δ, as in `fit_laplace`.
      noise_std: standard deviation of Gaussian noise.
      temperature: T, which multiplies the covariance.
      index: index of the trained network; drawn with key 0 by default.
      previous: an earlier fit of the same network, whose rows count too.
      mesh: shards rows over its axis `data`.

    Returns:
      The posterior. Its network takes z ~ N(0, I), `[P]`, and has the modules of
      `params` and `linearised_laplace`.

    Raises:
      TypeError: as `fit_laplace`.
      ValueError: as `fit_laplace`; for "full" with more than 5000 weights, and a rank
        where there is none, or none where there is one.
    """
    _checks.one_of("structure", structure, ("full", "diagonal", "low_rank"))
    options = FitOptions(likelihood, noise_std, prior_precision, temperature, previous)
    index = base_index(enn, index)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    _check_rank(structure, rank, flat.size)

    def run(flat: jax.Array, state: hk.State, inputs: Any) -> tuple[Any, hk.State]:
        out, new_state = enn.apply(unravel(flat), state, inputs, index)
        return parse_to_output_with_prior(out), new_state

    first, blocks = curvature.first_batch(data)
    out, new_state = jax.jit(run)(flat, state, first.x)
    check_state(state, new_state)
    _checks.shape("network output", out.train, (None, None), "[batch, num_outputs]")
    num_outputs = out.train.shape[1]
    blocks = curvature.with_checked_labels(blocks, likelihood, num_outputs)

    def root_rows(variables: Any, batch: Rows) -> tuple[jax.Array, Sums]:
        """Returns X, of which the curvature of the batch is XᵀX, and its totals."""
        flat, state = variables
        out, _ = run(flat, state, batch.x)
        log_likelihood, hessian = curvature.output_curvature(
            likelihood, noise_std, out.preds, batch.y
        )

        def one_row(flat: jax.Array, row: Any) -> jax.Array:
            row = jax.tree.map(lambda leaf: leaf[None], row)
            return run(flat, state, row)[0].train[0]

        jacobian = jax.vmap(jax.jacrev(one_row), (None, 0))(flat, batch.x)
        rows = curvature.square_root_rows(jacobian, batch.weights, hessian)
        return rows, curvature.totals(log_likelihood, batch.weights)

    held = min(3 * (rank or 0) + _EXTRA_RANK, flat.size)

    def add(total: jax.Array, rows: jax.Array) -> jax.Array:
        match structure:
            case "full":
                return total + rows.T @ rows
            case "diagonal":
                return total + jnp.sum(jnp.square(rows), axis=0)
            case _:
                return _compressed(jnp.concatenate([total, rows]), held)

    def update(sums: Sums, variables: Any, batch: Rows) -> Sums:
        rows, totals = root_rows(variables, batch)
        return {
            "curvature": add(sums["curvature"], rows),
            **{name: sums[name] + value for name, value in totals.items()},
        }

    shapes = {"full": (flat.size, flat.size), "diagonal": (flat.size,)}
    rows, totals = jax.eval_shape(root_rows, (flat, state), first)
    start = {
        "curvature": jnp.zeros(shapes.get(structure, (held, flat.size)), rows.dtype),
        **{name: jnp.zeros((), value.dtype) for name, value in totals.items()},
    }
    of_block = _JACOBIAN_SIZE // flat.size
    if structure == "low_rank":  # Compressing costs the square of its rows.
        of_block = max(held, min(of_block, _MOST_COMPRESSED))
    num_rows = of_block // num_outputs
    blocks = curvature.batches(blocks, mesh, max(1, num_rows))
    sums = curvature.fold_rows(
        update, options.start(start), (flat, state), blocks, mesh
    )
    eigenvalues = vectors = total = sums["curvature"]
    if structure == "low_rank":
        _, values, vectors = jnp.linalg.svd(total, full_matrices=False)
        eigenvalues, vectors = jnp.square(values)[:rank], vectors[:rank]
    elif structure == "full" and prior_precision == "marginal_likelihood":
        eigenvalues = jnp.linalg.eigvalsh(total)
    squared_norm = float(flat @ flat)
    delta = options.prior_precision
    if delta == "marginal_likelihood":
        delta = best_prior_precision(sums, eigenvalues, squared_norm)
    scale = math.sqrt(temperature)
    match structure:
        case "full":
            eye = jnp.eye(flat.size, dtype=total.dtype)
            factor: Any = factor_from_precision("shared", total + delta * eye)
            ratio = -jnp.sum(2 * jnp.log(jnp.diag(factor)) + math.log(delta))
            arrays = {"factor": scale * factor}
        case "diagonal":
            ratio = jnp.sum(jnp.log1p(total / delta))
            arrays = {"scale": scale * jax.lax.rsqrt(total + delta)}
        case _:
            ratio = jnp.sum(jnp.log1p(eigenvalues / delta))
            arrays = {
                "scale": jnp.asarray(scale * delta**-0.5, total.dtype),
                "shrinkage": jnp.sqrt(delta / (eigenvalues + delta)) - 1,
                "vectors": vectors.T,
            }
    fitted = merge_modules(params, {MODULE: arrays})
    return Posterior(
        _linearised(enn, index, fitted, state, flat.size),
        fitted,
        state,
        log_evidence(sums, ratio, delta, squared_norm),
        sums,
        float(sums["num_data"]),
    )


def _check_rank(structure: str, rank: int | None, size: int) -> None:
    if structure == "full" and size > _MOST_PARAMS:
        raise ValueError(
            f"The structure 'full' is for at most {_MOST_PARAMS} weights, and there "
            f"are {size}: take 'low_rank' or 'diagonal', or fit_laplace."
        )
    if (structure == "low_rank") != (rank is not None):
        raise ValueError(
            f"rank must be given for 'low_rank' alone, got {rank} for {structure!r}."
        )
    if rank is not None and _checks.positive_int("rank", rank) > size:
        raise ValueError(f"rank must be at most the {size} weights, got {rank}.")


def _compressed(rows: jax.Array, size: int) -> jax.Array:
    """Returns the `size` rows Y of which YᵀY is closest to that of the rows X.

    Rotates X by the eigenvectors of X Xᵀ, which is far cheaper than a decomposition of
    X; Y has the digits of X, as nothing is squared but to find the rotation.
    """
    _, vectors = jnp.linalg.eigh(rows @ rows.T)
    return vectors.T[::-1][:size] @ rows


def _direction(arrays: Mapping[str, Any], z: jax.Array) -> jax.Array:
    """Returns d(z), `[num_params]`."""
    match arrays:
        case {"factor": factor}:
            return factor @ z
        case {"vectors": vectors, "shrinkage": shrinkage, "scale": scale}:
            return scale * (z + vectors @ (shrinkage * (vectors.T @ z)))
        case _:
            return arrays["scale"] * z


def _linearised(
    enn: EnnArray, base_index: base.Index, params: Any, state: Any, size: int
) -> EnnArray:
    """Returns the network f(x) + J(x) d(z), whose `init` gives `params` and `state`."""

    def apply(
        params: base.AnyTree, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        _checks.shape("index", index, (size,), f"[{size}]")
        own = {name: p for name, p in params.items() if name != MODULE}
        flat, unravel = jax.flatten_util.ravel_pytree(own)
        direction = _direction(params[MODULE], jnp.asarray(index))

        def run(params: Any) -> tuple[Any, tuple[Any, Any]]:
            out, new_state = enn.apply(params, state, inputs, base_index)
            out = parse_to_output_with_prior(out)
            return out.train, (out.prior, new_state)

        train, change, (prior, new_state) = jax.jvp(
            run, (own,), (unravel(direction.astype(flat.dtype)),), has_aux=True
        )
        return OutputWithPrior(train + change, prior), new_state

    def init(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        return jax.tree.map(jnp.array, (params, state))

    return EnnArray(apply, init, GaussianIndexer(size))
