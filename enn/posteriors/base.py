"""What a fit takes and gives: a posterior, its prior, its evidence."""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EnnArray
from enn.posteriors.curvature import Likelihood, Sums

PRIOR_PRECISIONS = 10 ** np.linspace(-4, 4, 81)

PriorPrecision = float | Literal["marginal_likelihood"]
"""Precision δ of the prior, or that of the largest evidence in `PRIOR_PRECISIONS`."""


class Posterior(NamedTuple):
    """A posterior distribution, as a network and its parameters.

    Attributes:
      enn: the network: one index is one function.
      params: modules of the base network, and of the posterior.
      state: network state of the base network.
      log_marginal_likelihood: log evidence in nats, or None where the weights at which
        it is taken are not known.
      curvature: sums over the data without the prior, for `previous` of a later fit.
      num_data: number of rows; with weights their sum.
    """

    enn: EnnArray
    params: dict[str, Any]
    state: Any
    log_marginal_likelihood: jax.Array | None
    curvature: Sums
    num_data: float


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """What every fit is told about likelihood and prior; checked.

    Attributes:
      likelihood: categorical or Gaussian.
      noise_std: standard deviation of Gaussian noise.
      prior_precision: δ, or how to find it.
      temperature: factor of the covariance.
      previous: an earlier fit, whose curvature is added.
    """

    likelihood: Likelihood
    noise_std: float
    prior_precision: PriorPrecision
    temperature: float
    previous: Posterior | None

    def __post_init__(self) -> None:
        _checks.one_of("likelihood", self.likelihood, ("categorical", "gaussian"))
        for name in ("noise_std", "prior_precision", "temperature"):
            value = getattr(self, name)
            if isinstance(value, str):
                _checks.one_of(name, value, ("marginal_likelihood",))
            elif not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be > 0 and finite, got {value}.")
        if self.likelihood == "categorical" and self.noise_std != 1:
            raise ValueError(
                "noise_std is of a Gaussian likelihood, got "
                f"{self.noise_std} with a categorical one."
            )

    def start(self, no_rows: Sums) -> Sums:
        """Returns the sums to start with: those of the previous fit, or of no rows."""
        if self.previous is None:
            return no_rows
        shapes, expected = (
            {name: list(np.shape(value)) for name, value in sums.items()}
            for sums in (self.previous.curvature, no_rows)
        )
        if shapes != expected:
            raise ValueError(
                "previous must be a fit of the same network and structure: its "
                f"curvature has arrays {shapes}, and this one {expected}."
            )
        return self.previous.curvature


def base_index(enn: EnnArray, index: base.Index | None) -> base.Index:
    """Returns the index of the trained network, drawn with key 0 if it is None."""
    return enn.indexer(jax.random.PRNGKey(0)) if index is None else index


def check_state(state: hk.State, new_state: hk.State) -> None:
    """Raises ValueError if a forward pass changed the network state."""
    leaves, new_leaves = map(jax.tree.leaves, (state, new_state))
    if len(leaves) != len(new_leaves) or not all(
        jnp.array_equal(old, new, equal_nan=True)
        for old, new in zip(leaves, new_leaves, strict=True)
    ):
        raise ValueError(
            "The forward pass changes the network state, as batch normalisation does "
            "in training: build the network for evaluation."
        )


def log_evidence(
    sums: Sums, log_det_ratio: Any, prior_precision: Any, squared_norm: Any
) -> jax.Array:
    """Returns Laplace's log marginal likelihood of the data, in nats.

    Σ log p(y | θ*) - ½ (log det(P / δ) + δ ‖θ*‖²) for the precision P = H + δ I
    (MacKay, 1992, https://doi.org/10.1162/neco.1992.4.3.415).

    Args:
      sums: with the log-likelihood at the mode θ*.
      log_det_ratio: log det(P / δ).
      prior_precision: δ.
      squared_norm: ‖θ*‖².
    """
    penalty = prior_precision * squared_norm
    return sums["log_likelihood"] - 0.5 * (log_det_ratio + penalty)


def best_prior_precision(
    sums: Sums, eigenvalues: jax.Array, squared_norm: float | None
) -> float:
    """Returns the δ of `PRIOR_PRECISIONS` with the largest evidence.

    Args:
      sums: with the log-likelihood at the mode.
      eigenvalues: of the curvature H. Those that are zero may be left out; those below
        zero are rounding errors.
      squared_norm: of the mode.

    Raises:
      ValueError: if that is unknown.
    """
    if squared_norm is None:
        raise ValueError(
            "prior_precision='marginal_likelihood' needs the weights of the last "
            "layer: name it by last_layer, or give a number."
        )

    def evidence(delta: jax.Array) -> jax.Array:
        ratios = jnp.log1p(jnp.maximum(eigenvalues, 0) / delta)
        return log_evidence(sums, jnp.sum(ratios), delta, squared_norm)

    candidates = jnp.asarray(PRIOR_PRECISIONS, eigenvalues.dtype)
    return float(PRIOR_PRECISIONS[jnp.argmax(jax.lax.map(evidence, candidates))])
