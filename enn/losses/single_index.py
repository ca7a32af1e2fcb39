"""Losses of a network on a batch at one epistemic index.

Each is called as `loss(apply, params, state, batch, index)`, runs the network once
and returns `(loss, (new_state, metrics))`; `average_single_index_loss` turns it into a
loss for training. Wrong shapes raise ValueError.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.data_noise.bootstrapping import BootstrapFn, null_bootstrap
from enn.datasets.base import ArrayBatch
from enn.losses.base import (
    SingleLossFnArray,
    wrap_single_loss_as_single_loss_no_state,
)
from enn.metrics.base import at_least_float32
from enn.networks.base import ApplyArray, OutputWithPrior
from enn.networks.utils import parse_net_output

__all__ = [
    "AccuracyErrorLoss",
    "ElboLoss",
    "GaussianNLLLoss",
    "L2Loss",
    "L2LossWithBootstrap",
    "LatentKlFn",
    "LogLikelihoodFn",
    "ModelPriorKlFn",
    "VaeLoss",
    "XentLoss",
    "label_cross_entropy",
    "log_softmax",
    "regression_errors",
    "soft_cross_entropy",
    "weighted_mean",
    "wrap_single_loss_as_single_loss_no_state",
    "xent_loss_with_custom_labels",
]

LogLikelihoodFn = Callable[[Any, ArrayBatch], chex.Array]
"""`(out, batch) -> scalar`: the mean log-likelihood of a row."""

ModelPriorKlFn = Callable[[Any, base.AnyTree, base.Index], chex.Array]
"""`(out, params, index) -> scalar`: KL divergence to the prior of the model."""

LatentKlFn = Callable[[OutputWithPrior], chex.Array]
"""`out -> scalar`: KL divergence of the latents to their prior."""


@dataclasses.dataclass(frozen=True)
class L2Loss:
    """Weighted squared error, Σᵦ wᵦ ‖f(xᵦ) - yᵦ‖² / B, summed over outputs.

    The network output and `batch.y` are `[batch, num_outputs]`; for one output,
    `batch.y` may be `[batch]`. `batch.weights` is `[batch, 1]`, or None for ones.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> def apply(params, state, x, index):
    ...     return x, state
    >>> x = np.array([[1.0], [2.0]])
    >>> batch = datasets.ArrayBatch(x=x, y=x**2)
    >>> float(losses.L2Loss()(apply, {}, {}, batch, index=0)[0])  # (0² + 2²) / 2
    2.0
    """

    def __call__(
        self,
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        out, state = apply(params, state, batch.x, index)
        squares = jnp.square(regression_errors(parse_net_output(out), batch.y))
        row_losses = jnp.sum(squares, axis=1, keepdims=True)
        return weighted_mean(row_losses, batch), (state, {})


@dataclasses.dataclass(frozen=True)
class L2LossWithBootstrap:
    """`L2Loss` whose weights are redrawn for each index.

    `L2LossWithBootstrap(make_boot_fn(enn, "exponential"))` is
    `add_data_noise(L2Loss(), BootstrapNoise(enn, "exponential"))`.

    Osband & Van Roy, 2015, https://arxiv.org/abs/1507.00300.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> def apply(params, state, x, index):
    ...     return x, state
    >>> x, rows = np.array([[1.0], [2.0]]), np.array([[0], [1]])
    >>> batch = datasets.ArrayBatch(x=x, y=x**2, data_index=rows)
    >>> loss_fn = losses.L2LossWithBootstrap(lambda rows, index: rows == index)
    >>> [float(loss_fn(apply, {}, {}, batch, index)[0]) for index in (0, 1)]
    [0.0, 2.0]

    Attributes:
      bootstrap_fn: `(batch.data_index, index) -> weights`, which replace those of
        the batch. By default all weights are one: nothing is bootstrapped.
    """

    bootstrap_fn: BootstrapFn = null_bootstrap

    def __call__(
        self,
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        weights = self.bootstrap_fn(batch.data_index, index)
        batch = dataclasses.replace(batch, weights=weights)
        return L2Loss()(apply, params, state, batch, index)


@dataclasses.dataclass(frozen=True)
class GaussianNLLLoss:
    """Weighted negative log-likelihood of a Gaussian whose scale depends on x, in nats.

    Σᵦ wᵦ Σₖ [½ ((yᵦₖ - μₖ(xᵦ)) / σₖ(xᵦ))² + log σₖ(xᵦ) + ½ log 2π] / B (Nix & Weigend,
    1994, https://doi.org/10.1109/ICNN.1994.374138; in ensembles: Lakshminarayanan et
    al., 2017, https://arxiv.org/abs/1612.01474, equation 1).

    The network output is `[batch, 2 * num_outputs]`: means, and then as many numbers s
    with σ = `min_scale` + softplus(s). `enn.networks.add_learned_scale` adds a scale
    that is learned but does not depend on x; `enn.networks.scale_prior(enn, [1, 0])`
    leaves a prior on the means alone. `batch.y` and weights are as in `L2Loss`.
    The method `parse` is also the `parse` of the mixture metrics of `enn.metrics`.

    Attributes:
      min_scale: smallest standard deviation, in units of the target. Without one, a
        network that fits a few rows exactly gains without bound.

    Raises:
      ValueError: unless `min_scale` is > 0; from the loss, for wrong shapes.

    >>> import numpy as np
    >>> from enn import losses
    >>> loss_fn = losses.GaussianNLLLoss(min_scale=0.1)
    >>> mean, scale = loss_fn.parse(np.array([[3.0, 0.0]]))
    >>> float(mean[0, 0]), round(float(scale[0, 0]), 4)  # 0.1 + log 2
    (3.0, 0.7931)
    """

    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        if not self.min_scale > 0:
            raise ValueError(f"min_scale must be > 0, got {self.min_scale}.")

    def parse(self, outputs: chex.Array) -> tuple[jax.Array, jax.Array]:
        """Returns means and standard deviations, both `[..., num_outputs]`.

        Args:
          outputs: `[..., 2 * num_outputs]`.
        """
        shape = list(np.shape(outputs))
        if not shape or shape[-1] % 2:
            raise ValueError(
                "network output must have an even last axis, means and then as many "
                f"scales, got shape {shape}."
            )
        mean, raw_scale = jnp.split(at_least_float32(outputs), 2, axis=-1)
        return mean, self.min_scale + jax.nn.softplus(raw_scale)

    def __call__(
        self,
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        out, state = apply(params, state, batch.x, index)
        mean, scale = self.parse(parse_net_output(out))
        normalised = regression_errors(mean, batch.y) / scale
        nll = (
            0.5 * jnp.square(normalised) + jnp.log(scale) + 0.5 * math.log(2 * math.pi)
        )
        loss = weighted_mean(jnp.sum(nll, axis=1, keepdims=True), batch)
        return loss, (state, {})


@dataclasses.dataclass(frozen=True)
class XentLoss:
    """Weighted cross-entropy, -Σᵦ wᵦ log softmax(f(xᵦ))[yᵦ] / B.

    The network output is `[batch, num_classes]`, `batch.weights` is `[batch, 1]`, or
    None for ones. Labels `batch.y` are `[batch, 1]` or `[batch]` and may be integral
    floats. A label outside [0, num_classes) raises ValueError; inside `jax.jit`, where
    its value is not known, its row contributes 0. Metrics: `loss`.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> def apply(params, state, x, index):
    ...     return np.log([[0.9, 0.1]]), state
    >>> xent = losses.XentLoss(num_classes=2)
    >>> for label in (0, 1):
    ...     batch = datasets.ArrayBatch(x=np.zeros([1, 1]), y=np.array([[label]]))
    ...     round(float(xent(apply, {}, {}, batch, index=0)[0]), 3)
    0.105
    2.303

    Attributes:
      num_classes: number of classes, at least 2.
    """

    num_classes: int

    def __post_init__(self) -> None:
        if _checks.positive_int("num_classes", self.num_classes) == 1:
            raise ValueError("num_classes must be at least 2, got 1.")

    def __call__(
        self,
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        out, state = apply(params, state, batch.x, index)
        logits = parse_net_output(out)
        row_losses = label_cross_entropy(logits, batch.y, self.num_classes)
        loss = weighted_mean(row_losses, batch)
        return loss, (state, {"loss": loss})


def xent_loss_with_custom_labels(
    labeller: Callable[[base.AnyArray], chex.Array],
) -> SingleLossFnArray:
    """Returns the cross-entropy with labels that may be soft.

    -Σᵦ wᵦ Σ_c labeller(yᵦ)_c log softmax(f(xᵦ))_c / B.

    Weights and metrics are those of `XentLoss`.

    >>> import jax, numpy as np
    >>> from enn import datasets, losses
    >>> def apply(params, state, x, index):
    ...     return np.log([[0.9, 0.1]]), state
    >>> def smooth(labels):
    ...     return 0.8 * jax.nn.one_hot(labels, 2) + 0.1
    >>> loss_fn = losses.xent_loss_with_custom_labels(smooth)
    >>> batch = datasets.ArrayBatch(x=np.zeros([1, 1]), y=np.array([[0]]))
    >>> loss, _ = loss_fn(apply, {}, {}, batch, index=0)
    >>> round(float(loss), 3)  # -0.9 log 0.9 - 0.1 log 0.1
    0.325

    Args:
      labeller: maps the labels, `[batch]`, to the probability of each class,
        `[batch, num_classes]`, such as smoothed one-hot labels.
    """

    def single_loss(
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        classes = _checks.as_column("batch.y", batch.y)[:, 0]
        out, state = apply(params, state, batch.x, index)
        logits = parse_net_output(out)
        labels = labeller(classes)
        shape = np.shape(labels)
        _checks.shape("logits", logits, shape, f"of the labels, {list(shape)}")
        row_losses = soft_cross_entropy(logits, labels)[:, None]
        loss = weighted_mean(row_losses, batch)
        return loss, (state, {"loss": loss})

    return single_loss


@dataclasses.dataclass(frozen=True)
class AccuracyErrorLoss:
    """Fraction of rows whose most probable class is wrong; metrics: `accuracy`.

    Σᵦ 1[argmax f(xᵦ) ≠ yᵦ] / B. For evaluation beside a loss that trains: its gradient
    is zero. Loss and metric are NaN if any logit is. Numbers follow the original `enn`:
    every row counts alike, and `batch.weights` is ignored.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> def apply(params, state, x, index):
    ...     return x, state
    >>> batch = datasets.ArrayBatch(x=np.eye(4), y=np.array([[0], [1], [2], [2]]))
    >>> loss, (_, metrics) = losses.AccuracyErrorLoss(4)(apply, {}, {}, batch, index=0)
    >>> float(loss), float(metrics["accuracy"])
    (0.25, 0.75)

    Attributes:
      num_classes: number of classes that labels and logits are checked against.
    """

    num_classes: int

    def __post_init__(self) -> None:
        _checks.positive_int("num_classes", self.num_classes)

    def __call__(
        self,
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        labels = _checks.as_column("batch.y", batch.y)
        _checks.class_labels(labels, self.num_classes)
        out, state = apply(params, state, batch.x, index)
        logits = parse_net_output(out)
        shape = (len(labels), self.num_classes)
        _checks.shape("logits", logits, shape, f"[batch, num_classes] = {list(shape)}")
        right = jnp.argmax(logits, axis=1) == labels[:, 0]
        unknown = jnp.isnan(logits).any()
        error, accuracy = (
            jnp.where(unknown, jnp.nan, jnp.mean(rows)) for rows in (~right, right)
        )
        return error, (state, {"accuracy": accuracy})


@dataclasses.dataclass(frozen=True)
class ElboLoss:
    """Negative evidence lower bound, KL(q_θ ‖ prior) - log-likelihood.

    Blundell et al., 2015, https://arxiv.org/abs/1505.05424, section 3.

    >>> import numpy as np
    >>> from enn import datasets, losses
    >>> likelihood = losses.get_awgn_loglike_fn(sigma_w=1.0)
    >>> elbo = losses.ElboLoss(likelihood, lambda out, params, index: np.float32(0.25))
    >>> def apply(params, state, x, index):
    ...     return x, state
    >>> batch = datasets.ArrayBatch(x=np.zeros([1, 1]), y=np.array([[2.0]]))
    >>> float(elbo(apply, {}, {}, batch, index=0)[0])  # 0.25 + ½ 2²
    2.25

    Attributes:
      log_likelihood_fn: `(out, batch) -> scalar`.
      model_prior_kl_fn: `(out, params, index) -> scalar`.
      temperature: if both it and `input_dim` are given and not zero, the divergence is
        multiplied by √temperature · input_dim.
      input_dim: dimension of the inputs, see `temperature`.

    Raises:
      ValueError: for a negative temperature; from the loss, unless the two functions
        return arrays of equal shape.
    """

    log_likelihood_fn: LogLikelihoodFn
    model_prior_kl_fn: ModelPriorKlFn
    temperature: float | None = None
    input_dim: int | None = None

    def __post_init__(self) -> None:
        value = self.temperature
        if value is not None and _checks.is_concrete(value) and value < 0:
            raise ValueError(f"temperature must be >= 0, got {value}.")

    def __call__(
        self,
        apply: ApplyArray,
        params: hk.Params,
        state: hk.State,
        batch: ArrayBatch,
        index: base.Index,
    ) -> base.LossOutput:
        out, state = apply(params, state, batch.x, index)
        log_likelihood = self.log_likelihood_fn(out, batch)
        kl = self.model_prior_kl_fn(out, params, index)
        shapes = [getattr(value, "shape", None) for value in (log_likelihood, kl)]
        if shapes[0] is None or shapes[0] != shapes[1]:
            raise ValueError(
                "log_likelihood_fn and model_prior_kl_fn must return arrays of one "
                f"shape, got shapes {shapes[0]} and {shapes[1]}."
            )
        temperature = self.temperature
        if _checks.is_concrete(temperature) and not temperature:
            temperature = None
        if self.input_dim and temperature is not None:
            kl = jnp.sqrt(temperature) * self.input_dim * kl
        return jnp.subtract(kl, log_likelihood), (state, {})


@dataclasses.dataclass(frozen=True)
class VaeLoss:
    """Negative evidence lower bound of a variational autoencoder.

    KL(q(latent | x) ‖ prior) - log p(x | latent) (Kingma & Welling, 2014,
    https://arxiv.org/abs/1312.6114, equation 3); parts: `enn.losses.vae_losses`.

    >>> import numpy as np
    >>> from enn import datasets, losses, networks
    >>> parts = ["latent_mean", "latent_log_var", "out_mean", "out_log_var"]
    >>> def apply(params, state, x, index):  # Latents N(0, 1), decoded to ½.
    ...     return networks.OutputWithPrior(x, extra=dict.fromkeys(parts, 0 * x)), state
    >>> likelihood = losses.get_log_likelihood_fn(bernoulli_decoder=True)
    >>> loss_fn = losses.VaeLoss(likelihood, losses.latent_kl_fn)
    >>> batch = datasets.ArrayBatch(x=np.ones([1, 1]), y=np.zeros([1, 1]))
    >>> round(float(loss_fn(apply, {}, {}, batch, index=0)[0]), 3)  # 0 + log 2
    0.693

    Attributes:
      log_likelihood_fn: `(out, batch) -> scalar`.
      latent_kl_fn: `out -> scalar`.
    """

    log_likelihood_fn: Callable[[OutputWithPrior, ArrayBatch], chex.Array]
    latent_kl_fn: LatentKlFn

    def __call__(
        self,
        apply: base.ApplyFn[chex.Array, OutputWithPrior],
        params: hk.Params,
        state: hk.State,
        batch: Any,
        index: base.Index,
    ) -> base.LossOutput:
        out, state = apply(params, state, batch.x, index)
        log_likelihood = self.log_likelihood_fn(out, batch)
        return jnp.subtract(self.latent_kl_fn(out), log_likelihood), (state, {})


def regression_errors(preds: chex.Array, targets: chex.Array) -> jax.Array:
    """Returns predictions minus targets, in at least float32.

    Args:
      preds: `[batch, num_outputs]`.
      targets: of the same shape; for one output, `[batch]` will do.

    Raises:
      ValueError: for other shapes.
    """
    _checks.shape("network output", preds, (None, None), "[batch, num_outputs]")
    shape = np.shape(preds)
    if shape[1] == 1:
        targets = _checks.as_column("batch.y", targets)
    axes = f"[batch, num_outputs] = {list(shape)}"
    _checks.shape("batch.y", targets, shape, axes)
    return at_least_float32(preds) - at_least_float32(targets)


def label_cross_entropy(
    logits: chex.Array, labels: chex.Array, num_classes: int
) -> jax.Array:
    """Returns -log softmax(logits)[label] of each row.

    Args:
      logits: `[batch, num_classes]`.
      labels: class labels, `[batch, 1]` or `[batch]`, integers or integral floats.
      num_classes: number of classes.

    Returns:
      `[batch, 1]`, in nats. Inside `jax.jit`, where values are not known, a
      label outside [0, num_classes) gives 0.

    Raises:
      ValueError: for a wrong shape, or a wrong label outside `jax.jit`.
    """
    labels = _checks.as_column("batch.y", labels)
    _checks.class_labels(labels, num_classes)
    shape = (np.shape(labels)[0], num_classes)
    _checks.shape("logits", logits, shape, f"[batch, num_classes] = {list(shape)}")
    return _row_losses(logits, labels, num_classes)


@functools.partial(jax.jit, static_argnames="num_classes")
def _row_losses(logits: chex.Array, labels: chex.Array, num_classes: int) -> jax.Array:
    labels = jnp.asarray(labels)
    classes = labels.astype(jnp.int32)
    valid = (classes == labels) & (classes >= 0) & (classes < num_classes)
    logits = at_least_float32(logits)
    is_label = jax.nn.one_hot(
        jnp.where(valid, classes, 0)[:, 0], num_classes, dtype=bool
    )
    # log(1 + Σ exp(gap)) over the classes that are not the label: from the sum of all,
    # a sure and right network would have a loss of 0, and no gradient.
    label_logit = jnp.sum(logits, axis=1, keepdims=True, where=is_label)
    gaps = jnp.where(is_label, -jnp.inf, logits - label_logit)
    highest = jax.lax.stop_gradient(jnp.max(gaps, axis=1, keepdims=True, initial=0))
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    others = jnp.sum(jnp.exp(gaps - highest), axis=1, keepdims=True)
    losses = highest + jnp.log1p(others + jnp.expm1(-highest))
    return jnp.where(valid, losses, 0.0)


def soft_cross_entropy(logits: chex.Array, probs: chex.Array) -> jax.Array:
    """Returns -Σ_c probs_c log softmax(logits)_c over the last axis, with 0 log 0 = 0.

    Args:
      logits: `[..., num_classes]`.
      probs: probability of each class, of the same shape.
    """
    log_probs = log_softmax(logits)
    return -jnp.sum(jnp.where(probs == 0, 0, log_probs) * probs, axis=-1)


def log_softmax(logits: chex.Array) -> jax.Array:
    """Returns log pᵢ = lᵢ - log Σⱼ exp lⱼ over the last axis, precise as pᵢ → 1.

    With k the largest logit, log pᵢ = (lᵢ - lₖ) - log1p(Σ_{j≠k} exp(lⱼ - lₖ)): nothing
    is added to 1, so that a class of which the network is sure has a log-probability of
    -exp(-30), not 0, and a gradient.
    """
    logits = at_least_float32(logits)
    # One class even among equal ones: where gaps are set to 0, no gradient flows.
    is_top = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    top = jnp.sum(logits, axis=-1, keepdims=True, where=is_top)
    gaps = jnp.where(is_top, 0, logits - top)
    others = jnp.sum(jnp.exp(gaps), axis=-1, keepdims=True, where=~is_top)
    return gaps - jnp.log1p(others)


def weighted_mean(row_losses: chex.Array, batch: ArrayBatch) -> jax.Array:
    """Returns Σᵦ wᵦ lossᵦ / B, where w is `batch.weights`, or one where that is None.

    Divides by the number of rows B and not by Σ w: bootstrap weights have mean one
    over the distribution of weights, not within a batch.

    Args:
      row_losses: `[batch, 1]`.
      batch: its `weights` are `[batch, 1]` or None.

    Raises:
      ValueError: for weights of another shape.
    """
    row_losses = at_least_float32(row_losses)
    if batch.weights is None:
        return jnp.mean(row_losses)
    shape = np.shape(row_losses)
    _checks.shape("batch.weights", batch.weights, shape, f"[batch, 1] = {list(shape)}")
    return jnp.mean(at_least_float32(batch.weights) * row_losses)
