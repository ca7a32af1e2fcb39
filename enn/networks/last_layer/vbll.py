"""A last layer whose Gaussian is learned with the features: VBLL."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EnnArray, EpistemicModule, OutputWithPrior
from enn.networks.indexers import GaussianIndexer
from enn.networks.inputs import flat_inputs, init_once, layer_sizes
from enn.networks.last_layer.gaussian_last_layer import (
    append_one,
    apply_factor,
    marginal_variance,
)


class VariationalLastLayer(EpistemicModule):
    """A last layer with a learned Gaussian q(W) = Π_c N(w̄_c, S_c) over its weights.

    At index z ~ N(0, I) the output is φ̃(x)ᵀ (w̄_c + L_c z_c), for S_c = L_c L_cᵀ and L_c
    lower triangular with the diagonal exp(ρ_c). The bound that trains it needs no
    sample (Harrison et al., 2024, Variational Bayesian last layers,
    https://arxiv.org/abs/2404.11599): `enn.losses.ElboLoss` of
    `get_last_layer_gaussian_loglike_fn` or `get_last_layer_categorical_loglike_fn` and
    `get_last_layer_kl_fn`, at a single index, which does not enter. It reads from
    `extra`

    - `last_layer_mean`: m_c = φ̃ᵀ w̄_c, `[batch, num_outputs]`;
    - `last_layer_variance`: q_c = φ̃ᵀ S_c φ̃, `[batch, num_outputs]`;
    - `last_layer_kl`: KL(q ‖ N(0, v I)) =
      ½ Σ_c (tr S_c / v + ‖w̄_c‖² / v - F1 + F1 log v - log det S_c), a scalar;
    - `noise_std`: σ_c of a Gaussian likelihood, `[num_outputs]`.

    The learned noise on logits that the authors' code adds to q_c is left out: it
    belongs to no index, and so to no function.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def forward(h, z):
    ...     return networks.VariationalLastLayer(num_outputs=1)(h, z)
    >>> layer, h, z = hk.transform(forward), np.ones([5, 3]), np.zeros(4)
    >>> out = layer.apply(layer.init(jax.random.key(0), h, z), None, h, z)
    >>> bool((out.preds == out.extra["last_layer_mean"]).all())  # At z = 0
    True

    Args:
      num_outputs: number of outputs.
      prior_variance: v > 0; 2 / num_features by default.
      structure: `per_output`, or `diagonal` for L_c = exp(ρ_c) alone.
      noise_std: σ > 0, one or one for each output; learned if None. In classification
        it has no meaning: give any number.
      bias: whether a bias is among the weights.
      name: name of the module.

    Raises:
      ValueError: for an unknown structure or a number that is not > 0; by a call with
        inputs that are not `[batch, num_features]` or an index of another shape.
    """

    def __init__(
        self,
        num_outputs: int,
        prior_variance: float | None = None,
        structure: Literal["per_output", "diagonal"] = "per_output",
        noise_std: float | Sequence[float] | None = None,
        bias: bool = True,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.num_outputs = _checks.positive_int("num_outputs", num_outputs)
        _check_settings(prior_variance, structure, noise_std)
        self.prior_variance = prior_variance
        self.structure: Literal["per_output", "diagonal"] = structure
        self.noise_std = noise_std
        self.bias = bias

    def __call__(self, inputs: chex.Array, index: base.Index) -> OutputWithPrior:
        """Returns `[batch, num_outputs]` for features `[batch, num_features]`."""
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        num_features = inputs.shape[1]
        features = append_one(inputs) if self.bias else jnp.asarray(inputs)
        size, dtype = features.shape[1], jnp.result_type(features, 0.0)
        w_init = hk.initializers.RandomNormal((2 / num_features) ** 0.5)
        mean_weights = hk.get_parameter(
            "w", [size, self.num_outputs], dtype, init=w_init
        )
        # Small at first: with a wide posterior, training starts in a far worse place.
        log_scale = hk.get_parameter(
            "log_scale",
            [size, self.num_outputs],
            dtype,
            init=hk.initializers.RandomNormal(1e-3, -np.log(num_features)),
        )
        factor = jnp.exp(log_scale)
        if self.structure == "per_output":
            factor = _lower(factor, num_features)
        mean = features @ mean_weights
        draw = apply_factor(self.structure, factor, features, index)
        variance = marginal_variance(self.structure, factor, features)
        prior_variance = self.prior_variance
        if prior_variance is None:
            prior_variance = 2 / num_features
        squares = jnp.sum(jnp.square(factor)) + jnp.sum(jnp.square(mean_weights))
        constant = log_scale.size * (jnp.log(prior_variance) - 1)
        kl = 0.5 * (squares / prior_variance + constant) - jnp.sum(log_scale)
        extra = {
            "last_layer_mean": mean,
            "last_layer_variance": variance,
            "last_layer_kl": kl,
            "noise_std": self._noise(dtype),
        }
        return OutputWithPrior(mean + draw, extra=extra)

    def _noise(self, dtype: jnp.dtype) -> jax.Array:
        shape = [self.num_outputs]
        if self.noise_std is not None:
            return jnp.broadcast_to(jnp.asarray(self.noise_std, dtype), shape)
        return jnp.exp(hk.get_parameter("log_noise_std", shape, dtype, init=jnp.zeros))


def _check_settings(prior_variance: Any, structure: Any, noise_std: Any) -> None:
    _checks.one_of("structure", structure, ("per_output", "diagonal"))
    if prior_variance is not None:
        _checks.positive(prior_variance=prior_variance)
    if noise_std is not None and not np.all(np.asarray(noise_std) > 0):
        raise ValueError(f"noise_std must be > 0, got {noise_std}.")


def _lower(diagonal: jax.Array, num_features: int) -> jax.Array:
    """Returns L, `[num_outputs, F1, F1]`, of diagonals `[F1, num_outputs]`."""
    size, num_outputs = diagonal.shape
    below = hk.get_parameter(
        "off_diagonal",
        [num_outputs, size, size],
        diagonal.dtype,
        init=hk.initializers.RandomNormal(1e-3 / num_features),
    )
    eye = jnp.eye(size, dtype=diagonal.dtype)
    return jnp.tril(below, -1) + diagonal.T[:, :, None] * eye[None]


def make_vbll_mlp_enn(
    output_sizes: Sequence[int],
    prior_variance: float | None = None,
    structure: Literal["per_output", "diagonal"] = "per_output",
    noise_std: float | Sequence[float] | None = None,
) -> EnnArray:
    """Returns an MLP whose last layer is a `VariationalLastLayer`.

    Harrison et al., 2024, https://arxiv.org/abs/2404.11599.

    >>> import jax, numpy as np
    >>> from enn import losses, networks
    >>> enn = networks.make_vbll_mlp_enn([4, 1])
    >>> x, key = np.ones([2, 3]), jax.random.key(0)
    >>> log_likelihood = losses.get_last_layer_gaussian_loglike_fn()
    >>> kl = losses.get_last_layer_kl_fn(num_samples=2)
    >>> loss = losses.average_single_index_loss(losses.ElboLoss(log_likelihood, kl), 1)
    >>> z = 0 * enn.indexer(key)
    >>> out, _ = enn.apply(*enn.init(key, x, z), x, z)
    >>> bool((out.preds == out.extra["last_layer_mean"]).all())  # z = 0: the mean
    True

    Args:
      output_sizes: width of every layer, at least one of them hidden.
      prior_variance: see `VariationalLastLayer`, as for the next two.
      structure: of the covariance.
      noise_std: of a Gaussian likelihood.

    Returns:
      Network on inputs `[batch, ...]`; `OutputWithPrior` of
      `[batch, output_sizes[-1]]`, with a Gaussian index.

    Raises:
      ValueError: as `VariationalLastLayer`, and without a hidden layer.
    """
    _check_settings(prior_variance, structure, noise_std)
    *hidden_sizes, num_outputs = layer_sizes("output_sizes", output_sizes)
    if not hidden_sizes:
        raise ValueError(
            f"output_sizes must have a hidden layer, got {list(output_sizes)}."
        )

    def forward(inputs: chex.Array, index: base.Index) -> OutputWithPrior:
        hidden = hk.nets.MLP(hidden_sizes, activate_final=True)(flat_inputs(inputs))
        layer = VariationalLastLayer(num_outputs, prior_variance, structure, noise_std)
        return layer(hidden, index)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    indexer = GaussianIndexer((hidden_sizes[-1] + 1) * num_outputs)
    init = functools.partial(init_once, transformed.init)
    return EnnArray(transformed.apply, init, indexer)
