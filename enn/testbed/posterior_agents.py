"""The benchmark's agents that take samples of weights, and temperature scaling."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from enn import calibration, losses, networks, posteriors, supervised
from enn.losses.base import LossFnArray
from enn.networks.base import EnnArray
from enn.testbed.agents import adapted_decay
from enn.testbed.base import Data, EpistemicSampler, PriorKnowledge, TestbedAgent
from enn.testbed.vanilla import (
    EnnSampler,
    VanillaEnnAgent,
    VanillaEnnConfig,
    classification_loss,
)


def cross_entropy(prior: PriorKnowledge, decay: float) -> LossFnArray:
    """Returns the cross-entropy at one index, plus `decay` times Σθ²."""
    loss = losses.average_single_index_loss(classification_loss(prior.num_classes), 1)
    return losses.add_l2_weight_decay(loss, decay)


def train(
    enn: EnnArray,
    loss: LossFnArray,
    optimizer: optax.GradientTransformation,
    num_batches: int,
    seed: int,
    data: Data,
    prior: PriorKnowledge,
) -> supervised.TrainingState:
    """Returns the state of a network after `num_batches` steps, as of every agent."""
    trainer = VanillaEnnAgent(
        VanillaEnnConfig(
            lambda _: enn, lambda *_: loss, optimizer, num_batches, seed=seed
        )
    )
    trainer(data, prior)
    assert trainer.experiment is not None  # The call has made it.
    return trainer.experiment.state


@dataclasses.dataclass(frozen=True)
class SGMCMCConfig:
    """One MLP, whose iterates under stochastic gradient MCMC are the posterior.

    Welling & Teh, 2011; Chen et al., 2014, https://arxiv.org/abs/1402.4102.

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
        loss = cross_entropy(prior, decay)
        num_batches, seed = config.num_batches, config.seed
        state = train(enn, loss, optimizer, num_batches, seed, data, prior)
        samples = posteriors.get_samples(state.opt_state)
        enn = networks.from_network_samples(enn, samples, index=0)
        return EnnSampler(enn, *enn.init(jax.random.PRNGKey(0), data.x, 0))

    return agent


@dataclasses.dataclass(frozen=True)
class SWAGConfig:
    """MLPs trained by SGD, and Gaussians of the moments of its late iterates.

    Maddox et al., 2019, https://arxiv.org/abs/1902.02476.

    Attributes:
      num_runs: independent runs, more than one for MultiSWAG.
      num_samples: samples of each run's Gaussian.
      learning_rate: of SGD with momentum 0.9; constant.
      scale: factor of the covariance.
      rank: number of deviations kept.
      l2_weight_decay: scale of the weight decay, times √T D / N.
      num_hidden: units of each of the two hidden layers.
      num_batches: number of steps.
      burn_in_time: steps before the first snapshot.
      model_saving_frequency: steps between snapshots.
      seed: of training and samples.
    """

    num_runs: int = 1
    num_samples: int = 30
    learning_rate: float = 0.02
    scale: float = 0.5
    rank: int = 20
    l2_weight_decay: float = 1.0
    num_hidden: int = 50
    num_batches: int = 2000
    burn_in_time: int = 1000
    model_saving_frequency: int = 10
    seed: int = 0


def make_swag_agent(config: SWAGConfig) -> TestbedAgent:
    """Returns the agent `swag` (Maddox et al., 2019), or `multiswag` of many runs.

    The runs are members of an ensemble, which sees every batch with all of them.
    """

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        runs = config.num_runs
        sizes = [config.num_hidden, config.num_hidden, prior.num_classes]
        make_enn = networks.make_einsum_ensemble_mlp_enn
        decay = config.l2_weight_decay * adapted_decay(prior, True) / prior.num_train
        # The gradient of a mean over members is 1 / runs of each member's own.
        loss = losses.add_l2_weight_decay(
            losses.average_over_indices(
                classification_loss(prior.num_classes), jnp.arange(runs)
            ),
            decay / runs,
        )
        optimizer = posteriors.track_moments(
            optax.sgd(config.learning_rate * runs, 0.9),
            config.model_saving_frequency,
            config.burn_in_time,
            config.rank,
        )
        enn = make_enn(sizes, runs, nonzero_bias=False)
        num_batches, seed = config.num_batches, config.seed
        state = train(enn, loss, optimizer, num_batches, seed, data, prior)
        moments = posteriors.get_moments(state.opt_state)

        def draw(key: Any, *of_one_run: Any) -> Any:
            one_run = posteriors.Moments(moments.count, *of_one_run)
            return posteriors.draw_swag_samples(
                one_run, key, config.num_samples, config.scale
            )

        keys = jax.random.split(jax.random.PRNGKey(seed), runs)
        samples = jax.vmap(draw, (0, -1, -1, -1))(keys, *moments[1:])
        samples = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:], 1), samples
        )
        one = make_enn(sizes, 1, nonzero_bias=False)
        enn = networks.from_network_samples(one, samples, index=0)
        return EnnSampler(enn, *enn.init(jax.random.PRNGKey(0), data.x, 0))

    return agent


@dataclasses.dataclass(frozen=True)
class TemperatureConfig:
    """Another agent, with a temperature fitted to training rows that it never saw.

    Guo et al., 2017, https://arxiv.org/abs/1706.04599.

    Attributes:
      agent: its name.
      options: its options.
      held_out: share of the rows that are held out.
      num_index_samples: functions that the temperature is fitted to.
      seed: of these functions.
    """

    agent: str = "mlp"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    held_out: float = 0.2
    num_index_samples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}.")


def make_temperature_agent(
    config: TemperatureConfig, make_agent: Callable[..., TestbedAgent]
) -> TestbedAgent:
    """Returns the agent `temperature`.

    The temperature stays 1 where none is best: with fewer than 1 / `held_out` rows in
    all, or where the rows held out are all predicted right, or no better than chance.

    Args:
      config: which agent, and how.
      make_agent: makes an agent of its name and options.
    """
    agent = make_agent(config.agent, **config.options)

    def scaled_agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        num_train = len(data.y) - int(config.held_out * len(data.y))
        known = dataclasses.replace(prior, num_train=num_train)
        seen, unseen = (
            Data(*(array[rows] for array in data))
            for rows in (slice(num_train), slice(num_train, None))
        )
        sampler = agent(seen, known)
        if not isinstance(sampler, EnnSampler):
            raise ValueError(
                f"temperature scales an agent that trains a network, and "
                f"{config.agent!r} does not."
            )
        temperature = 1.0
        if len(unseen.y):
            key = jax.random.PRNGKey(config.seed)
            keys = jax.random.split(key, config.num_index_samples)
            logits = sampler.sample_many(unseen.x, keys)
            with contextlib.suppress(ValueError):  # No temperature is best.
                temperature = calibration.fit_temperature(logits, unseen.y)
        enn = networks.scale_enn_output(sampler.enn, 1 / temperature)
        return EnnSampler(enn, sampler.params, sampler.state)

    return scaled_agent
