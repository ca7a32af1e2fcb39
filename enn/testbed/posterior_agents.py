"""The benchmark's agents that sample a posterior, on `enn.posteriors`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from enn import losses, networks, posteriors, supervised
from enn.datasets import ArrayBatch
from enn.networks.base import EnnArray
from enn.testbed.agents import adapted_decay, temperature
from enn.testbed.base import Data, EpistemicSampler, PriorKnowledge, TestbedAgent
from enn.testbed.vanilla import (
    EnnSampler,
    VanillaEnnAgent,
    VanillaEnnConfig,
    classification_loss,
)


@dataclasses.dataclass(frozen=True)
class SGMCMCConfig:
    """One MLP, whose iterates under stochastic gradient MCMC are the posterior.

    Attributes:
      learning_rate: step size.
      prior_variance: of the weights; the penalty Σθ² has the scale √T D / (variance N).
      alg_temperature: of the sampler.
      momentum_decay: b; 0 is Langevin dynamics without momentum.
      preconditioner: "None" or "RMSprop".
      num_hidden: units of each of the two hidden layers.
      num_batches: number of steps.
      burn_in_time: steps before the first sample.
      model_saving_frequency: steps between samples.
      adaptive_prior_variance: whether the variance doubles from 100 inputs on.
      seed: of the sampler's noise and of training.
    """

    learning_rate: float = 1e-4
    prior_variance: float = 0.1
    alg_temperature: float = 1.0
    momentum_decay: float = 0.9
    preconditioner: Literal["None", "RMSprop"] = "None"
    num_hidden: int = 50
    num_batches: int = 500_000
    burn_in_time: int = 100_000
    model_saving_frequency: int = 1000
    adaptive_prior_variance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preconditioner not in ("None", "RMSprop"):
            raise ValueError(
                "preconditioner must be 'None' or 'RMSprop', "
                f"got {self.preconditioner!r}."
            )
        if self.burn_in_time > self.num_batches:
            raise ValueError(
                f"burn_in_time={self.burn_in_time} leaves no sample of "
                f"num_batches={self.num_batches}."
            )


def make_sgmcmc_agent(config: SGMCMCConfig) -> TestbedAgent:
    """Returns the agent `sgmcmc` (Chen et al., 2014, https://arxiv.org/abs/1402.4102)."""

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        sizes = [config.num_hidden, config.num_hidden, prior.num_classes]
        enn = networks.make_einsum_ensemble_mlp_enn(sizes, 1, nonzero_bias=False)
        is_wide = config.adaptive_prior_variance and prior.input_dim >= 100
        variance = config.prior_variance * (2 if is_wide else 1)
        decay = adapted_decay(prior, True) / (variance * prior.num_train)
        rmsprop = config.preconditioner == "RMSprop"
        sampler = posteriors.sghmc(
            config.learning_rate,
            prior.num_train,
            config.momentum_decay,
            config.alg_temperature,
            posteriors.rmsprop_preconditioner() if rmsprop else None,
            config.seed,
        )
        kept = config.num_batches - config.burn_in_time
        optimizer = posteriors.track_samples(
            sampler,
            kept // config.model_saving_frequency + 1,
            config.model_saving_frequency,
            config.burn_in_time,
        )
        state = _train(enn, optimizer, decay, data, prior, config)
        samples = posteriors.get_samples(state.opt_state)
        enn = networks.from_network_samples(enn, samples, index=0)
        return EnnSampler(enn, *enn.init(jax.random.PRNGKey(0), data.x, 0))

    return agent


def _train(
    enn: EnnArray,
    optimizer: optax.GradientTransformation,
    decay: float,
    data: Data,
    prior: PriorKnowledge,
    config: Any,
) -> supervised.TrainingState:
    """Returns the state of one network after training on its cross-entropy."""
    loss = losses.average_single_index_loss(classification_loss(prior.num_classes), 1)
    loss = losses.add_l2_weight_decay(loss, decay)
    trainer = VanillaEnnAgent(
        VanillaEnnConfig(
            lambda _: enn,
            lambda *_: loss,
            optimizer,
            config.num_batches,
            seed=config.seed,
        )
    )
    trainer(data, prior)
    assert trainer.experiment is not None  # The call has made it.
    return trainer.experiment.state


@dataclasses.dataclass(frozen=True)
class DeepKernelConfig:
    """A Gaussian process on the last hidden layer of a trained MLP.

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
        if not self.hidden_sizes:
            raise ValueError("deep_kernel needs a hidden layer: hidden_sizes is empty.")


def make_deep_kernel_agent(config: DeepKernelConfig) -> TestbedAgent:
    """Returns the agent `deep_kernel`.

    Features φ are the last hidden units, of unit length. With noise s² = factor · T the
    weights' covariance is scale² s² (s² I + φᵀφ)⁻¹ / (N T), a Laplace approximation
    with unit prior precision and the temperature scale² / (N T).
    """

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        sizes = [*config.hidden_sizes, prior.num_classes]
        enn = networks.expose_features(
            networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP(sizes)(x)),
            f"mlp/~/linear_{len(config.hidden_sizes)}",
        )
        decay = config.weight_decay * adapted_decay(prior, True) / prior.num_train
        optimizer = optax.adam(config.learning_rate)
        state = _train(enn, optimizer, decay, data, prior, config)
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
