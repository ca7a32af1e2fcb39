"""The benchmark's agents with a Gaussian at the last layer, or over all weights.

They train the agent `mlp`'s network, or one like it. Laplace approximations, deep
kernels and SNGP then see the training data once more; the hyper-head and VBLL learn
their Gaussian while they train.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from enn import losses, networks, posteriors
from enn.datasets import ArrayBatch
from enn.losses.base import LossFnArray
from enn.networks.base import EnnArray
from enn.networks.last_layer import Structure
from enn.testbed.agents import adapted_decay, scaled_prior, temperature
from enn.testbed.base import Data, EpistemicSampler, PriorKnowledge, TestbedAgent
from enn.testbed.posterior_agents import cross_entropy, train
from enn.testbed.vanilla import (
    EnnSampler,
    VanillaEnnAgent,
    VanillaEnnConfig,
    classification_loss,
)


@dataclasses.dataclass(frozen=True)
class TrunkConfig:
    """An MLP and its training, with the settings of the agent `mlp`.

    Attributes:
      l2_weight_decay: scale of the weight decay, times √T D / N.
      hidden_sizes: sizes of hidden layers, at least one.
      num_batches: number of steps.
      learning_rate: of Adam.
      seed: of training.
    """

    l2_weight_decay: float = 1.0
    hidden_sizes: Sequence[int] = (50, 50)
    num_batches: int = 1000
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidden_sizes:
            raise ValueError("The agent needs a hidden layer: hidden_sizes is empty.")

    def sizes(self, prior: PriorKnowledge) -> list[int]:
        """Returns the widths of all layers."""
        return [*self.hidden_sizes, prior.num_classes]

    def decay(self, prior: PriorKnowledge) -> float:
        """Returns the scale c of the weight decay c Σθ²."""
        return self.l2_weight_decay * adapted_decay(prior, True) / prior.num_train

    def precision(self, prior: PriorKnowledge) -> float:
        """Returns δ = 2 N c, the precision of the prior that the decay stands for."""
        return 2 * prior.num_train * self.decay(prior)

    def last_layer(self) -> str:
        """Returns the Haiku name of the last layer of `hk.nets.MLP`."""
        return f"mlp/~/linear_{len(self.hidden_sizes)}"

    def train(self, enn: EnnArray, data: Data, prior: PriorKnowledge) -> Any:
        """Returns the training state of `enn`, trained on its cross-entropy."""
        loss = cross_entropy(prior, self.decay(prior))
        optimizer = optax.adam(self.learning_rate)
        return train(enn, loss, optimizer, self.num_batches, self.seed, data, prior)


def _mlp(config: TrunkConfig, prior: PriorKnowledge) -> EnnArray:
    sizes = config.sizes(prior)
    return networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP(sizes)(x))


@dataclasses.dataclass(frozen=True)
class LaplaceConfig(TrunkConfig):
    """A Laplace approximation of the last layer of a trained MLP.

    Daxberger et al., 2021, https://arxiv.org/abs/2106.14806.

    Further attributes:
      prior_precision: δ; by default 2 √T D, which the weight decay stands for, so that
        the trained weights are the mode; or "marginal_likelihood".
      structure: of the covariance.
      alg_temperature: factor of the covariance.
    """

    prior_precision: float | Literal["marginal_likelihood"] | None = None
    structure: Structure = "joint"
    alg_temperature: float = 1.0


def make_laplace_agent(config: LaplaceConfig) -> TestbedAgent:
    """Returns the agent `laplace`, on `enn.posteriors.fit_laplace`."""
    fit = functools.partial(posteriors.fit_laplace, last_layer=config.last_layer())
    return _laplace_agent(config, fit)


@dataclasses.dataclass(frozen=True)
class LinearisedLaplaceConfig(TrunkConfig):
    """A Laplace approximation of all weights of a trained MLP, linearised at them.

    Immer et al., 2021, https://arxiv.org/abs/2008.08400.

    Further attributes:
      prior_precision: as in `LaplaceConfig`.
      structure: of the covariance; "full" up to 5000 weights.
      rank: of the structure "low_rank".
      alg_temperature: factor of the covariance.
    """

    prior_precision: float | Literal["marginal_likelihood"] | None = None
    structure: Literal["full", "diagonal", "low_rank"] = "full"
    rank: int | None = None
    alg_temperature: float = 1.0


def make_linearised_laplace_agent(config: LinearisedLaplaceConfig) -> TestbedAgent:
    """Returns the agent `linearised_laplace`."""
    fit = functools.partial(posteriors.fit_linearised_laplace, rank=config.rank)
    return _laplace_agent(config, fit)


def _laplace_agent(
    config: LaplaceConfig | LinearisedLaplaceConfig, fit: Callable[..., Any]
) -> TestbedAgent:
    """Returns the agent that fits a Laplace approximation to a trained MLP."""

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        enn = _mlp(config, prior)
        state = config.train(enn, data, prior)
        precision = config.prior_precision
        if precision is None:
            precision = config.precision(prior)
        posterior = fit(
            enn,
            state.params,
            state.network_state,
            ArrayBatch(x=data.x, y=data.y),
            "categorical",
            structure=config.structure,
            prior_precision=precision,
            temperature=config.alg_temperature,
        )
        return EnnSampler(posterior.enn, posterior.params, posterior.state)

    return agent


@dataclasses.dataclass(frozen=True)
class DeepKernelConfig:
    """A Gaussian process on the last hidden layer of a trained MLP.

    Deep kernels: Wilson et al., 2016, https://arxiv.org/abs/1511.02222.

    Attributes:
      num_batches: number of steps.
      learning_rate: of Adam.
      weight_decay: scale of the weight decay, times √T D / N.
      hidden_sizes: sizes of hidden layers.
      scale_factor: standard deviation of functions, beside that of the posterior.
      num_inference_samples: training rows of the posterior at most.
      sigma_squared_factor: noise variance, in units of the temperature.
      seed: of training.
    """

    num_batches: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    hidden_sizes: Sequence[int] = (50, 50)
    scale_factor: float = 2.0
    num_inference_samples: int = 32768
    sigma_squared_factor: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.trunk()

    def trunk(self) -> TrunkConfig:
        """Returns how the MLP trains."""
        return TrunkConfig(
            self.weight_decay,
            self.hidden_sizes,
            self.num_batches,
            self.learning_rate,
            self.seed,
        )


def make_deep_kernel_agent(config: DeepKernelConfig) -> TestbedAgent:
    """Returns the agent `deep_kernel`.

    Features φ are the last hidden units, of unit length. With noise s² = factor · T the
    weights' covariance is scale² s² (s² I + φᵀφ)⁻¹ / (N T), a Laplace approximation
    with unit prior precision and the temperature scale² / (N T).
    """

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        trunk = config.trunk()
        enn = networks.expose_features(_mlp(trunk, prior), trunk.last_layer())
        state = trunk.train(enn, data, prior)
        x, y = (array[: config.num_inference_samples] for array in data)
        posterior = posteriors.fit_laplace(
            enn,
            state.params,
            state.network_state,
            ArrayBatch(x=x, y=jax.nn.one_hot(y[:, 0], prior.num_classes)),
            "gaussian",
            structure="shared",
            parse_hidden=_unit_features,
            noise_std=math.sqrt(config.sigma_squared_factor * temperature(prior)),
            temperature=config.scale_factor**2 / (prior.num_train * temperature(prior)),
            bias=False,
        )
        return EnnSampler(posterior.enn, posterior.params, posterior.state)

    return agent


def _unit_features(out: Any) -> jax.Array:
    features = out.extra["features"]
    return features / (jnp.linalg.norm(features, axis=1, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class SNGPConfig(TrunkConfig):
    """An MLP with bounded spectral norms, and random features as its last layer.

    Liu et al., 2022, https://arxiv.org/abs/2205.00403.

    Further attributes:
      num_features: M, the number of random features.
      length_scale: of their kernel.
      bound: on spectral norms.
      prior_precision: δ, the ridge.
      likelihood: "gaussian" for the covariance (ΦᵀΦ / δ + I)⁻¹ / δ of the authors'
        code, or "categorical" for the Laplace approximation of their paper.
    """

    num_features: int = 256
    length_scale: float = 2.0
    bound: float = 0.95
    prior_precision: float = 1.0
    likelihood: Literal["gaussian", "categorical"] = "gaussian"


def make_sngp_agent(config: SNGPConfig) -> TestbedAgent:
    """Returns the agent `sngp`, on `enn.networks.make_sngp_mlp_enn`."""

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        train_enn, enn = (
            networks.make_sngp_mlp_enn(
                config.sizes(prior),
                config.num_features,
                length_scale=config.length_scale,
                bound=config.bound,
                is_training=is_training,
            )
            for is_training in (True, False)
        )
        state = config.train(train_enn, data, prior)
        is_gaussian = config.likelihood == "gaussian"
        y = jax.nn.one_hot(data.y[:, 0], prior.num_classes) if is_gaussian else data.y
        posterior = posteriors.fit_laplace(
            enn,
            state.params,
            state.network_state,
            ArrayBatch(x=data.x, y=y),
            config.likelihood,
            structure="shared" if is_gaussian else "per_output",
            last_layer="linear",
            prior_precision=config.prior_precision,
            bias=False,
        )
        return EnnSampler(posterior.enn, posterior.params, posterior.state)

    return agent


@dataclasses.dataclass(frozen=True)
class VBLLConfig(TrunkConfig):
    """An MLP with a variational last layer, whose weight decay is on the MLP alone.

    Harrison et al., 2024, https://arxiv.org/abs/2404.11599.

    Further attributes:
      structure: of the covariance.
      prior_variance: of the last layer's weights; by default 1 / (2 √T D), for which
        the weight decay stands.
    """

    structure: Literal["per_output", "diagonal"] = "per_output"
    prior_variance: float | None = None


def make_vbll_agent(config: VBLLConfig) -> VanillaEnnAgent:
    """Returns the agent `vbll`, on `enn.networks.make_vbll_mlp_enn`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        variance = config.prior_variance
        if variance is None:
            variance = 1 / config.precision(prior)
        # The standard deviation of noise has no meaning in classification.
        return networks.make_vbll_mlp_enn(
            config.sizes(prior), variance, config.structure, noise_std=1.0
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        elbo = losses.ElboLoss(
            losses.get_last_layer_categorical_loglike_fn(prior.num_classes),
            losses.get_last_layer_kl_fn(prior.num_train),
        )
        return losses.add_l2_weight_decay(
            losses.average_single_index_loss(elbo, 1),
            config.decay(prior),
            lambda module, *_: module.startswith("mlp"),
        )

    return _vanilla(config, enn_ctor, loss_ctor)


@dataclasses.dataclass(frozen=True)
class LinearHyperHeadConfig(TrunkConfig):
    """An MLP with the linear hyper-head of Ensemble++.

    Li et al., 2024, https://arxiv.org/abs/2407.13195.

    Further attributes:
      index_dim: M, the size of the index; a step trains on its 2 M signed axes.
      prior_scale: of the fixed part, by default the number of `EnsembleConfig`. The
        last layer of that one's prior functions has smaller weights: functions are as
        large at the number divided by the root of the layer's size, 3 / √50 = 0.424.
      posterior_scale: of the part that trains.
      temp_scale_prior: how the prior scale adapts, see `agents.scaled_prior`.
    """

    index_dim: int = 8
    prior_scale: float = 3.0
    posterior_scale: float = 1.0
    temp_scale_prior: str | None = "sqrt"


def make_linear_hyper_head_agent(config: LinearHyperHeadConfig) -> VanillaEnnAgent:
    """Returns the agent `linear_hyper_head`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        scale = scaled_prior(config.prior_scale, config.temp_scale_prior, prior)
        return networks.make_linear_hyper_mlp_enn(
            config.sizes(prior),
            config.index_dim,
            scale,
            config.posterior_scale,
            config.seed,
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        indices = networks.SignedAxisIndexer(config.index_dim).all_indices()
        single = classification_loss(prior.num_classes)
        return losses.add_l2_weight_decay(
            losses.average_over_indices(single, indices),
            config.decay(prior),
            networks.is_trainable,
        )

    return _vanilla(config, enn_ctor, loss_ctor)


def _vanilla(config: TrunkConfig, enn_ctor: Any, loss_ctor: Any) -> VanillaEnnAgent:
    return VanillaEnnAgent(
        VanillaEnnConfig(
            enn_ctor,
            loss_ctor,
            optax.adam(config.learning_rate),
            config.num_batches,
            seed=config.seed,
        )
    )
