"""Laplace approximations of the last layer: a Gaussian at the trained weights.

Its precision is the curvature of the loss there plus that of the prior N(0, I / δ)
(MacKay, 1992, https://doi.org/10.1162/neco.1992.4.3.448). The loss is the sum over
rows, not the mean: a network trained with the mean and a weight decay of `scale` c, as
`enn.losses.add_l2_weight_decay` adds it, has δ = 2 N c for N rows. With another δ, the
trained weights are not the mode.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EnnArray
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.epinet.base import BaseHiddenParser, combine_base_epinet_as_enn
from enn.networks.epinet.expose_features import (
    FEATURES,
    expose_features,
    run_to_last_layer,
)
from enn.networks.epinet.last_layer import parse_base_hidden
from enn.networks.last_layer.gaussian_last_layer import (
    MODULE,
    Factor,
    GaussianLastLayer,
    Structure,
    append_one,
    check_structure,
    factor_from_precision,
)
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


def fit_laplace(
    enn: EnnArray,
    params: base.AnyTree,
    state: base.AnyTree,
    data: Data,
    likelihood: Likelihood,
    *,
    structure: Structure = "joint",
    last_layer: str | None = None,
    parse_hidden: BaseHiddenParser | None = None,
    prior_precision: PriorPrecision = 1.0,
    noise_std: float = 1.0,
    temperature: float = 1.0,
    bias: bool = True,
    index: base.Index | None = None,
    previous: Posterior | None = None,
    mesh: Any = None,
) -> Posterior:
    """Fits a Laplace approximation to the last layer of a trained network.

    The result is f(x, z) = f(x) + φ̃(x)ᵀ Λ(z), with Λ(z) ~ N(0, T P⁻¹) and

        P = Σ_n w_n φ̃_n φ̃_nᵀ ⊗ Λ_n + δ I

    as far as `structure` holds it; Λ_n = diag(p_n) - p_n p_nᵀ for a categorical
    likelihood, I / noise_std² for a Gaussian one. P is the Hessian in the weights of
    the last layer (Daxberger et al., 2021, https://arxiv.org/abs/2106.14806). A
    Kronecker structure takes (Σ φ̃φ̃ᵀ) ⊗ (ΣΛ) / N (Ritter et al., 2018,
    https://openreview.net/forum?id=Skdvd2xAZ), which is exact for Gaussian noise. Data
    stream through memory once.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import datasets, networks, posteriors
    >>> enn = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1)(x))
    >>> x = np.array([[-1.5], [-0.5], [0.0], [1.0], [2.0]])
    >>> y = np.array([[-1.2], [0.3], [0.1], [1.1], [1.4]])
    >>> params = {"linear": {"w": np.array([[0.691]]), "b": np.array([0.192])}}
    >>> data = datasets.ArrayBatch(x=x, y=y)
    >>> posterior = posteriors.fit_laplace(
    ...     enn, params, {}, data, "gaussian", last_layer="linear", noise_std=0.5
    ... )
    >>> forward = networks.make_batch_fwd(posterior.enn, num_enn_samples=1000)
    >>> samples = forward(posterior.params, posterior.state, np.array([[3.0]]))
    >>> samples.shape, round(float(posterior.log_marginal_likelihood), 3)
    ((1000, 1, 1), -5.449)

    Args:
      enn: the trained network, built for evaluation.
      params: its parameters.
      state: its state.
      data: training data: one `ArrayBatch`, or an iterable of them, each row once.
        `weights` multiply rows.
      likelihood: `categorical` for labels and logits, or `gaussian`.
      structure: of the covariance, a `Structure`. `shared` is of Gaussian noise only.
      last_layer: name of the Haiku module of the last layer, which sees the features.
      parse_hidden: network output -> features `[batch, F]`, for other networks. The
        marginal likelihood is then unknown.
      prior_precision: δ, or `"marginal_likelihood"` for the best of 81 from 1e-4
        to 1e4.
      noise_std: standard deviation of Gaussian noise.
      temperature: T, which multiplies the covariance.
      bias: whether a bias is among the weights.
      index: index of the trained network, such as the member of an ensemble; drawn
        with key 0 by default.
      previous: an earlier fit of the same network, whose rows count too.
      mesh: shards rows over its axis `data`.

    Returns:
      The posterior. Its network takes z ~ N(0, I) and has the modules of `params` and
      `gaussian_last_layer`.

    Raises:
      TypeError: for data that are endless or no batches.
      ValueError: for an unknown name, a number out of range, both or none of
        `last_layer` and `parse_hidden`, features that do not give the output, a network
        whose state changes, labels out of range, data without rows, curvature that is
        not finite, a precision that is not positive definite, and a structure too large
        for memory.
    """
    check_structure(structure)
    options = FitOptions(likelihood, noise_std, prior_precision, temperature, previous)
    if structure == "shared" and likelihood == "categorical":
        raise ValueError(
            "The structure 'shared' is of a Gaussian likelihood: the Hessian of a "
            "categorical one differs by class. Take 'per_output' or 'kronecker'."
        )
    if (last_layer is None) == (parse_hidden is None):
        raise ValueError(
            "Give either last_layer or parse_hidden, got "
            f"{'both' if last_layer else 'neither'}."
        )
    index = base_index(enn, index)
    exposed = enn if last_layer is None else expose_features(enn, last_layer)
    parse_features = parse_hidden or functools.partial(
        parse_base_hidden, hidden_name=FEATURES
    )

    def run(params: Any, state: Any, inputs: Any) -> tuple[Any, Any, Any, Any]:
        """Returns output, features, weights of the last layer if known, new state."""
        weights = None
        if last_layer is not None:
            out, new_state, (features, weights) = run_to_last_layer(
                enn, last_layer, params, state, inputs, index
            )
        else:
            out, new_state = enn.apply(params, state, inputs, index)
            features = parse_features(parse_to_output_with_prior(out))
        _checks.shape("features", features, (None, None), "[batch, num_features]")
        return parse_to_output_with_prior(out), features, weights, new_state

    first, blocks = curvature.first_batch(data)
    out, features, weights, new_state = jax.jit(run)(params, state, first.x)
    check_state(state, new_state)
    _checks.shape("network output", out.train, (None, None), "[batch, num_outputs]")
    num_outputs = out.train.shape[1]
    num_features = features.shape[1] + bias
    curvature.check_size(structure, num_features, num_outputs)
    squared_norm = None
    if weights is not None:
        squared_norm = _squared_norm(weights, features, out.train, bias)
    blocks = curvature.with_checked_labels(blocks, likelihood, num_outputs)

    def terms(variables: Any, batch: Rows) -> Sums:
        params, state = variables
        out, features, *_ = run(params, state, batch.x)
        log_likelihood, hessian = curvature.output_curvature(
            likelihood, noise_std, out.preds, batch.y
        )
        features = append_one(features) if bias else features
        features = features.astype(log_likelihood.dtype)
        return {
            **curvature.last_layer_sums(structure, features, batch.weights, hessian),
            **curvature.totals(log_likelihood, batch.weights),
        }

    def add(sums: Sums, variables: Any, batch: Rows) -> Sums:
        return jax.tree.map(jnp.add, sums, terms(variables, batch))

    shapes = jax.eval_shape(terms, (params, state), first)
    no_rows = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    blocks = curvature.batches(blocks, mesh)
    sums = curvature.fold_rows(
        add, options.start(no_rows), (params, state), blocks, mesh
    )
    arrays, delta, evidence = _solve(
        structure, sums, options, num_outputs, squared_norm
    )
    return Posterior(
        combine_base_epinet_as_enn(
            EnnCheckpoint("base", lambda: (params, state), lambda: exposed),
            GaussianLastLayer(
                num_features - bias,
                num_outputs,
                structure,
                bias=bias,
                prior_precision=delta,
            ),
            parse_features,
            base_index=index,
            freeze_base=False,
        ),
        merge_modules(params, {MODULE: arrays}),
        state,
        evidence,
        sums,
        float(sums["num_data"]),
    )


def _solve(
    structure: Structure,
    sums: Sums,
    options: FitOptions,
    num_outputs: int,
    squared_norm: float | None,
) -> tuple[dict[str, Any], float, jax.Array | None]:
    """Returns the factor's arrays, δ, and the evidence if the mode is known."""
    delta = options.prior_precision
    if delta == "marginal_likelihood":
        eigenvalues = _eigenvalues(structure, sums, num_outputs)
        delta = best_prior_precision(sums, eigenvalues, squared_norm)
    factor = factor_from_precision(structure, _precision(structure, sums, delta))
    arrays: dict[str, Any] = {"factor": factor}
    if isinstance(factor, Mapping):
        arrays = dict(factor)
    evidence = None
    if squared_norm is not None:
        ratio = _log_det_ratio(structure, arrays, num_outputs, delta)
        evidence = log_evidence(sums, ratio, delta, squared_norm)
    *_, scaled = arrays
    arrays[scaled] = math.sqrt(options.temperature) * arrays[scaled]
    return arrays, delta, evidence


def _squared_norm(
    weights: Mapping[str, jax.Array], features: Any, output: Any, bias: bool
) -> float:
    """Returns ‖θ*‖² of the weights with which the features give the output.

    Raises:
      ValueError: if they do not.
    """
    w = np.asarray(weights.get("w", np.zeros(0)))
    b = np.asarray(weights.get("b", np.zeros(output.shape[1])))
    if w.shape == (features.shape[1], output.shape[1]):
        found = jnp.matmul(features, w) + b[None]  # As the network rounds.
        finite = np.isfinite(output)  # What is not is reported with the curvature.
        rtol = max(1e-3, 4 * float(jnp.finfo(found.dtype).eps))
        atol = rtol * np.max(np.abs(output), initial=0, where=finite)
        found, output = (np.asarray(leaf, np.float64) for leaf in (found, output))
        if np.allclose(found, output, rtol, atol, equal_nan=True):
            return float(np.sum(np.square(w)) + bias * np.sum(np.square(b)))
    raise ValueError(
        "The features times the weights of last_layer, plus its bias, must be the "
        f"output of the network. Features are {list(features.shape)}, weights "
        f"{list(w.shape)}, the output {list(output.shape)}. Is another module the last?"
    )


def _precision(structure: Structure, sums: Sums, delta: float) -> Factor:
    """Returns the curvature plus δ I, as `factor_from_precision` takes it."""
    if structure == "kronecker":
        left = sums["left"] / sums["num_data"]
        return {
            "left": left,
            "right": sums["right"],
            "prior_precision": jnp.asarray(delta, left.dtype),
        }
    total = sums["curvature"]
    if structure == "diagonal":
        return total + delta
    if structure == "joint":
        size = math.prod(total.shape[:2])
        flat = total.reshape(size, size) + delta * jnp.eye(size, dtype=total.dtype)
        return flat.reshape(total.shape)
    return total + delta * jnp.broadcast_to(jnp.eye(total.shape[-1]), total.shape)


def _eigenvalues(structure: Structure, sums: Sums, num_outputs: int) -> jax.Array:
    """Returns all eigenvalues of the curvature."""
    if structure == "kronecker":
        left, right = (jnp.linalg.eigvalsh(sums[name]) for name in ("left", "right"))
        return jnp.outer(left, right).ravel() / sums["num_data"]
    total = sums["curvature"]
    if structure == "diagonal":
        return total.ravel()
    if structure == "joint":
        size = math.prod(total.shape[:2])
        return jnp.linalg.eigvalsh(total.reshape(size, size))
    values = jnp.linalg.eigvalsh(total)
    return jnp.tile(values, num_outputs) if structure == "shared" else values.ravel()


def _log_det_ratio(
    structure: Structure, factor: Mapping[str, Any], num_outputs: int, delta: float
) -> jax.Array:
    """Returns log det(P / δ) of the precision P, from the diagonals of its factor."""
    *_, array = factor.values()
    if structure in ("diagonal", "kronecker"):
        roots = array
    elif structure == "joint":
        roots = jnp.diagonal(array.reshape(-1, array.shape[-1]))
    else:
        roots = jnp.diagonal(array, axis1=-2, axis2=-1)
    ratio = -jnp.sum(2 * jnp.log(roots) + math.log(delta))
    return num_outputs * ratio if structure == "shared" else ratio
