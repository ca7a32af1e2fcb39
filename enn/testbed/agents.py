"""The benchmark's agents: networks of this library, trained as the testbed does.

Each agent has a configuration, whose defaults are the benchmark's, and a function that
makes the agent. Most train with `VanillaEnnAgent`.

Reference: Osband et al., 2022, The Neural Testbed, https://arxiv.org/abs/2110.04629,
section 4 and appendix C; the epinet is that of Osband et al., 2021,
https://arxiv.org/abs/2107.08924.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from enn import data_noise, losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import Logger, NullLogger
from enn.losses.base import LossFnArray, SingleLossFnArray
from enn.networks import forwarders
from enn.networks.base import EnnArray
from enn.testbed.base import Data, EpistemicSampler, PriorKnowledge

_ADAM = optax.adam(1e-3)


class EnnSampler:
    """Functions of a trained network, one for each key, which draws its index.

    Attributes:
      enn: the network.
      params: its parameters.
      state: its state.
    """

    def __init__(self, enn: EnnArray, params: Any, state: Any):
        """Takes a trained network."""
        self.enn, self.params, self.state = enn, params, state

    def __call__(self, x: chex.Array, key: chex.PRNGKey) -> jax.Array:
        """Returns logits `[batch, num_classes]` of the function that `key` draws."""
        return self.sample_many(x, jax.tree.map(lambda k: k[None], key))[0]

    def sample_many(self, x: chex.Array, keys: chex.PRNGKey) -> jax.Array:
        """Returns the logits for each key, `[num_keys, batch, num_classes]`.

        What the keys share is computed once, and every member of an ensemble once.
        """
        return _predict(self.enn)(self.params, self.state, x, keys)


@functools.lru_cache(maxsize=32)
def _predict(enn: EnnArray) -> Callable[..., jax.Array]:
    @jax.jit
    def predict(params: Any, state: Any, x: chex.Array, keys: chex.PRNGKey) -> Any:
        indices = jax.vmap(enn.indexer)(keys)
        return forwarders.predict_at_indices(enn, params, state, x, indices)

    return predict


@dataclasses.dataclass
class VanillaEnnConfig:
    """How to train a network on a problem.

    Attributes:
      enn_ctor: makes the network from prior knowledge.
      loss_ctor: makes the loss from prior knowledge and the network.
      optimizer: an optax transformation.
      num_batches: number of steps, or a function of prior knowledge.
      prior_loss_ctor: makes a second loss, trained on in turn with the first.
      prior_loss_freq: the second loss trains every so many steps.
      seed: of initial parameters, indices and order of the data.
      batch_size: rows of a step; fewer data repeat.
      center_train_data: whether the network normalises inputs by the training data.
      logger: takes the rows of metrics; by default none are kept.
      train_log_freq: steps between rows; by default 30 rows in all.
    """

    enn_ctor: Callable[[PriorKnowledge], EnnArray]
    loss_ctor: Callable[[PriorKnowledge, EnnArray], LossFnArray] = dataclasses.field(
        default_factory=lambda: default_enn_loss()
    )
    optimizer: optax.GradientTransformation = _ADAM
    num_batches: int | Callable[[PriorKnowledge], int] = 1000
    prior_loss_ctor: Callable[[PriorKnowledge, EnnArray], LossFnArray] | None = None
    prior_loss_freq: int = 10
    seed: int = 0
    batch_size: int = 100
    center_train_data: bool = False
    logger: Logger | None = None
    train_log_freq: int | None = None


class VanillaEnnAgent:
    """Trains a network by stochastic gradient descent.

    Attributes:
      config: how.
      experiment: the experiment of the last call.
    """

    def __init__(self, config: VanillaEnnConfig):
        """Takes the configuration."""
        self.config = config
        self.experiment: supervised.MultilossExperiment | None = None

    def __call__(self, data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        """Trains on `data`; returns the trained network."""
        config = self.config
        enn = config.enn_ctor(prior)
        if config.center_train_data:
            enn = networks.make_centered_enn(enn, data.x)
        dataset = utils.make_batch_iterator(
            ArrayBatch(x=data.x, y=data.y), config.batch_size, config.seed
        )
        trainers = [supervised.MultilossTrainer(config.loss_ctor(prior, enn), dataset)]
        if config.prior_loss_ctor is not None:
            trainers.append(
                supervised.MultilossTrainer(
                    config.prior_loss_ctor(prior, enn),
                    dataset,
                    lambda step: step % config.prior_loss_freq == 0,
                    "prior_loss",
                )
            )
        steps = config.num_batches
        steps = steps(prior) if callable(steps) else steps
        self.experiment = supervised.MultilossExperiment(
            enn,
            trainers,
            config.optimizer,
            config.seed,
            NullLogger() if config.logger is None else config.logger,
            config.train_log_freq or max(1, steps // 30),
        )
        self.experiment.train(steps)
        state = self.experiment.state
        return EnnSampler(enn, state.params, state.network_state)


def classification_loss(num_classes: int) -> SingleLossFnArray:
    """Returns the cross-entropy, with the error rate as the metric `acc`."""
    return losses.combine_single_index_losses_as_metric(
        losses.XentLoss(num_classes), {"acc": losses.AccuracyErrorLoss(num_classes)}
    )


def default_enn_loss(
    num_index_samples: int = 10,
    distribution: str = "none",
    seed: int = 0,
    weight_reg_scale: float | None = None,
) -> Callable[[PriorKnowledge, EnnArray], LossFnArray]:
    """Returns the constructor of the mean loss over indices, with bootstrapping.

    Args:
      num_index_samples: indices of each step.
      distribution: of the bootstrap's weights, see `enn.data_noise.BootstrapNoise`.
      seed: of the bootstrap.
      weight_reg_scale: s of the weight decay s²/(2N) Σθ²; None for no decay.
    """

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        single: SingleLossFnArray = losses.L2Loss()
        if prior.num_classes > 1:
            single = classification_loss(prior.num_classes)
        single = losses.add_data_noise(
            single, data_noise.BootstrapNoise(enn, distribution, seed)
        )
        loss = losses.average_single_index_loss(single, num_index_samples)
        if weight_reg_scale:
            scale = weight_reg_scale**2 / (2 * prior.num_train)
            loss = losses.add_l2_weight_decay(loss, scale)
        return loss

    return loss_ctor


def gaussian_regression_loss(
    num_index_samples: int,
    noise_scale: float = 1.0,
    l2_weight_decay: float = 0.0,
    exclude_bias_l2: bool = True,
) -> Callable[[PriorKnowledge, EnnArray], LossFnArray]:
    """Returns the constructor of the squared error of targets with Gaussian noise.

    Args:
      num_index_samples: indices of each step.
      noise_scale: standard deviation of the added noise, in units of the problem's.
      l2_weight_decay: the weight decay is this, times Σθ².
      exclude_bias_l2: whether biases do not decay.
    """

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        noise_std = noise_scale * (prior.noise_std or 0.0)
        single = losses.add_data_noise(
            losses.L2Loss(), data_noise.GaussianTargetNoise(enn, noise_std)
        )
        loss = losses.average_single_index_loss(single, num_index_samples)
        if l2_weight_decay:
            predicate = _is_no_bias if exclude_bias_l2 else None
            loss = losses.add_l2_weight_decay(loss, l2_weight_decay, predicate)
        return loss

    return loss_ctor


def default_enn_prior_loss(
    num_index_samples: int = 10,
) -> Callable[[PriorKnowledge, EnnArray], LossFnArray]:
    """Returns the constructor of the loss that keeps predictions of noise unsure."""

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        if prior.num_classes > 1:
            return losses.ClassificationPriorLoss(num_index_samples)
        return losses.RegressionPriorLoss(num_index_samples)

    return loss_ctor


def regularized_dropout_loss(
    num_index_samples: int = 10,
    dropout_rate: float = 0.05,
    scale: float = 1e-2,
    tau: float = 1.0,
) -> Callable[[PriorKnowledge, EnnArray], LossFnArray]:
    """Returns the constructor of a loss with the weight decay of MC dropout.

    The decay is scale² (1 − rate) / (2 N tau) (Gal & Ghahramani, 2016,
    https://arxiv.org/abs/1506.02142, equation 7).
    """

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        decay = scale**2 * (1 - dropout_rate) / (2 * prior.num_train * tau)
        loss = default_enn_loss(num_index_samples)(prior, enn)
        return losses.add_l2_weight_decay(loss, decay)

    return loss_ctor


def scaled_num_batches(
    num_batches: int, batch_strategy: bool
) -> Callable[[PriorKnowledge], int]:
    """Returns the number of steps for a problem.

    With `batch_strategy` it is five times as many for more than 500 rows an input
    dimension, a fifth for fewer than 5.
    """

    def steps(prior: PriorKnowledge) -> int:
        ratio = prior.num_train / prior.input_dim
        if batch_strategy and ratio > 500:
            return num_batches * 5
        return num_batches // 5 if batch_strategy and ratio < 5 else num_batches

    return steps


def temperature(prior: PriorKnowledge) -> float:
    """Returns the temperature of a problem, 1 where it has none."""
    return 1.0 if prior.temperature is None else prior.temperature


def adapted_decay(prior: PriorKnowledge, adaptive: bool) -> float:
    """Returns the factor √T · D of a weight decay that adapts to the problem, or 1."""
    return math.sqrt(temperature(prior)) * prior.input_dim if adaptive else 1.0


def scaled_prior(scale: float, rule: str | None, prior: PriorKnowledge) -> float:
    """Returns a prior scale divided by √T ("sqrt"), T ("linear" or "lin"), or 1.

    Raises:
      ValueError: for another rule.
    """
    rules = {
        "sqrt": math.sqrt(temperature(prior)),
        "linear": temperature(prior),
        "lin": temperature(prior),
        None: 1.0,
        "none": 1.0,
    }
    if rule not in rules:
        raise ValueError(
            f"temp_scale_prior must be 'sqrt', 'linear' or None, got {rule!r}."
        )
    return scale / rules[rule]


def _is_no_bias(module: str, name: str, value: Any) -> bool:
    return name != "b"


def _sizes(hidden: Sequence[int], prior: PriorKnowledge) -> list[int]:
    return [*hidden, prior.num_classes]


def _dummy_input(prior: PriorKnowledge) -> jax.Array:
    return jnp.ones([100, prior.input_dim])


@dataclasses.dataclass(frozen=True)
class VanillaEnsembleConfig:
    """An ensemble of MLPs, trained independently on the same data.

    Attributes:
      num_ensemble: number of members.
      l2_weight_decay: scale of the weight decay.
      adaptive_weight_scale: whether to multiply it by √T · D.
      hidden_sizes: sizes of hidden layers.
      num_batches: number of steps.
      batch_strategy: see `scaled_num_batches`.
      seed: of training.
    """

    num_ensemble: int = 100
    l2_weight_decay: float = 1.0
    adaptive_weight_scale: bool = True
    hidden_sizes: Sequence[int] = (50, 50)
    num_batches: int = 1000
    batch_strategy: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """One MLP; the fields are those of `VanillaEnsembleConfig`."""

    adaptive_weight_scale: bool = True
    l2_weight_decay: float = 1.0
    hidden_sizes: Sequence[int] = (50, 50)
    num_batches: int = 1000
    batch_strategy: bool = False
    seed: int = 0


def _ensemble_loss(
    config: Any, prior: PriorKnowledge, single: SingleLossFnArray, num_samples: int
) -> LossFnArray:
    decay = config.l2_weight_decay / config.num_ensemble / prior.num_train
    return losses.add_l2_weight_decay(
        losses.average_single_index_loss(single, num_samples),
        decay * adapted_decay(prior, config.adaptive_weight_scale),
    )


def make_vanilla_ensemble_agent(config: VanillaEnsembleConfig) -> VanillaEnnAgent:
    """Returns the agent `ensemble`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        return networks.make_einsum_ensemble_mlp_enn(
            _sizes(config.hidden_sizes, prior), config.num_ensemble, nonzero_bias=False
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        single = classification_loss(prior.num_classes)
        return _ensemble_loss(config, prior, single, config.num_ensemble)

    return _agent(config, enn_ctor, loss_ctor)


def make_mlp_agent(config: MLPConfig) -> VanillaEnnAgent:
    """Returns the agent `mlp`, an ensemble of one."""
    return make_vanilla_ensemble_agent(
        VanillaEnsembleConfig(num_ensemble=1, **dataclasses.asdict(config))
    )


def _agent(
    config: Any,
    enn_ctor: Callable[[PriorKnowledge], EnnArray],
    loss_ctor: Callable[[PriorKnowledge, EnnArray], LossFnArray],
    optimizer: optax.GradientTransformation = _ADAM,
) -> VanillaEnnAgent:
    steps = scaled_num_batches(config.num_batches, config.batch_strategy)
    return VanillaEnnAgent(
        VanillaEnnConfig(enn_ctor, loss_ctor, optimizer, steps, seed=config.seed)
    )


@dataclasses.dataclass(frozen=True)
class EnsembleConfig(VanillaEnsembleConfig):
    """An ensemble with prior functions: `ensemble+`.

    Further attributes:
      distribution: of bootstrap weights.
      prior_scale: scale of the prior functions.
      temp_scale_prior: how it adapts to the temperature, see `scaled_prior`.
      override_index_samples: indices of each step; by default the number of members.
    """

    distribution: str = "none"
    prior_scale: float = 3.0
    temp_scale_prior: str | None = "sqrt"
    override_index_samples: int | None = None


def make_ensemble_prior_agent(config: EnsembleConfig) -> VanillaEnnAgent:
    """Returns the agent `ensemble+`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        return networks.make_ensemble_mlp_with_prior_enn(
            _sizes(config.hidden_sizes, prior),
            _dummy_input(prior),
            config.num_ensemble,
            scaled_prior(config.prior_scale, config.temp_scale_prior, prior),
            seed=config.seed + 999,
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        single = losses.add_data_noise(
            classification_loss(prior.num_classes),
            data_noise.BootstrapNoise(enn, config.distribution, config.seed),
        )
        num_samples = config.override_index_samples or config.num_ensemble
        return _ensemble_loss(config, prior, single, num_samples)

    return _agent(config, enn_ctor, loss_ctor)


@dataclasses.dataclass(frozen=True)
class McDropoutConfig:
    """An MLP with dropout, whose masks are the index.

    Attributes:
      dropout_rate: share of units dropped.
      length_scale: scale of the weight decay.
      regularization_tau: divides it, unless it adapts.
      dropout_input: whether inputs are dropped too.
      exclude_bias_l2: whether biases do not decay.
      adaptive_weight_scale: whether the decay is `length_scale` √T D / N.
      hidden_sizes: sizes of hidden layers.
      num_batches: number of steps.
      batch_strategy: see `scaled_num_batches`.
      learning_rate: of Adam.
      seed: of training and masks.
    """

    dropout_rate: float = 0.1
    length_scale: float = 1.0
    regularization_tau: float = 1.0
    dropout_input: bool = False
    exclude_bias_l2: bool = False
    adaptive_weight_scale: bool = True
    hidden_sizes: Sequence[int] = (100, 100)
    num_batches: int = 1000
    batch_strategy: bool = False
    learning_rate: float = 1e-3
    seed: int = 0


def make_mc_dropout_agent(config: McDropoutConfig) -> VanillaEnnAgent:
    """Returns the agent `dropout`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        return networks.MLPDropoutENN(
            _sizes(config.hidden_sizes, prior),
            config.dropout_rate,
            config.dropout_input,
            config.seed,
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        if config.adaptive_weight_scale:
            decay = config.length_scale * adapted_decay(prior, True) / prior.num_train
        else:
            decay = config.length_scale**2 * (1 - config.dropout_rate)
            decay /= 2 * prior.num_train * config.regularization_tau
        predicate = (
            (lambda _, name, __: name != "b") if config.exclude_bias_l2 else None
        )
        loss = losses.average_single_index_loss(
            classification_loss(prior.num_classes), 1
        )
        return losses.add_l2_weight_decay(loss, decay, predicate)

    optimizer = optax.adam(config.learning_rate)
    return _agent(config, enn_ctor, loss_ctor, optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class BBBConfig:
    """Bayes by backprop: independent normal weights.

    Attributes:
      hidden_sizes: sizes of hidden layers.
      num_batches: number of steps.
      learning_rate: of Adam.
      seed: of training.
      sigma_1: standard deviation of the prior, or of its first component.
      sigma_2: standard deviation of its second component, where it is sampled.
      mixture_scale: weight of the first component, where it is sampled.
      num_index_samples: indices of each step.
      kl_method: "analytical" or "sample_based".
      adaptive_scale: whether the KL divergence is multiplied by √T · D.
      output_scale: whether outputs are divided by the temperature.
      batch_strategy: see `scaled_num_batches`.
    """

    hidden_sizes: Sequence[int] = (50, 50)
    num_batches: int = 1000
    learning_rate: float = 3e-3
    seed: int = 0
    sigma_1: float = 1.0
    sigma_2: float = 0.75
    mixture_scale: float = 1.0
    num_index_samples: int = 8
    kl_method: str = "analytical"
    adaptive_scale: bool = True
    output_scale: bool = False
    batch_strategy: bool = False

    def __post_init__(self) -> None:
        if self.kl_method not in ("analytical", "sample_based"):
            raise ValueError(
                "kl_method must be 'analytical' or 'sample_based', "
                f"got {self.kl_method!r}."
            )


def make_bbb_agent(config: BBBConfig) -> VanillaEnnAgent:
    """Returns the agent `bbb`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        return networks.make_bbb_enn(
            _sizes(config.hidden_sizes, prior),
            jnp.zeros((prior.input_dim,)),
            temperature(prior) if config.output_scale else 1.0,
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        if config.kl_method == "analytical":
            kl = losses.get_analytical_diagonal_linear_model_prior_kl_fn(
                prior.num_train, config.sigma_1
            )
        else:
            kl = losses.get_sample_based_model_prior_kl_fn(
                prior.num_train, config.sigma_1, config.sigma_2, config.mixture_scale
            )
        elbo = losses.ElboLoss(
            losses.get_categorical_loglike_fn(prior.num_classes),
            kl,
            temperature(prior) if config.adaptive_scale else None,
            prior.input_dim if config.adaptive_scale else None,
        )
        return losses.average_single_index_loss(elbo, config.num_index_samples)

    optimizer = optax.adam(config.learning_rate)
    return _agent(config, enn_ctor, loss_ctor, optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class HypermodelConfig:
    """A linear hypermodel with an independent prior.

    Attributes:
      index_dim: dimension of the index.
      num_index_samples: indices of each step.
      prior_scale: scale of the prior functions.
      l2_weight_decay: scale of the weight decay.
      adaptive_weight_scale: whether to multiply it by √T · D.
      temp_scale_prior: how the prior scale adapts, see `scaled_prior`.
      distribution: of bootstrap weights.
      hidden_sizes: sizes of hidden layers.
      prior_hidden_sizes: sizes of the prior's hidden layers.
      num_batches: number of steps.
      batch_strategy: see `scaled_num_batches`.
      learning_rate: of Adam.
      seed: of training and prior.
      scale: whether the generated weights are scaled by their fan-in.
    """

    index_dim: int = 6
    num_index_samples: int = 16
    prior_scale: float = 1.0
    l2_weight_decay: float = 1.0
    adaptive_weight_scale: bool = True
    temp_scale_prior: str | None = "sqrt"
    distribution: str = "none"
    hidden_sizes: Sequence[int] = (50, 50)
    prior_hidden_sizes: Sequence[int] = (10,)
    num_batches: int = 2000
    batch_strategy: bool = False
    learning_rate: float = 1e-3
    seed: int = 0
    scale: bool = False


def make_hypermodel_agent(config: HypermodelConfig) -> VanillaEnnAgent:
    """Returns the agent `hypermodel`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        return networks.MLPHypermodelPriorIndependentLayers(
            _sizes(config.hidden_sizes, prior),
            scaled_prior(config.prior_scale, config.temp_scale_prior, prior),
            _dummy_input(prior),
            networks.ScaledGaussianIndexer(config.index_dim),
            _sizes(config.prior_hidden_sizes, prior),
            hyper_hidden_sizes=[],
            seed=config.seed,
            scale=config.scale,
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        single = losses.add_data_noise(
            classification_loss(prior.num_classes),
            data_noise.BootstrapNoise(enn, config.distribution, config.seed),
        )
        decay = config.l2_weight_decay / prior.num_train
        return losses.add_l2_weight_decay(
            losses.average_single_index_loss(single, config.num_index_samples),
            decay * adapted_decay(prior, config.adaptive_weight_scale),
        )

    optimizer = optax.adam(config.learning_rate)
    return _agent(config, enn_ctor, loss_ctor, optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class EpinetConfig:
    """An MLP with an epinet and an additive ensemble prior.

    Attributes:
      index_dim: dimension of the index, and number of the prior's members.
      l2_weight_decay: scale of the weight decay, times (D/N)^0.7.
      distribution: of bootstrap weights.
      prior_scale: scale of the ensemble prior, divided by T.
      prior_scale_epi: scale of the epinet's own prior.
      prior_loss_freq: steps between those of the prior loss.
      hidden_sizes: hidden layers of the base network.
      num_batches: number of steps, ten times as many for over 500 rows a dimension.
      epi_hiddens: hidden layers of the epinet.
      add_hiddens: hidden layers of the ensemble prior.
      seed: of training and prior.
      override_index_samples: indices of each step; by default `index_dim`.
    """

    index_dim: int = 8
    l2_weight_decay: float = 0.2
    distribution: str = "none"
    prior_scale: float = 0.3
    prior_scale_epi: float = 0.0
    prior_loss_freq: int = 100_000
    hidden_sizes: Sequence[int] = (50, 50)
    num_batches: int = 1000
    epi_hiddens: Sequence[int] = (15, 15)
    add_hiddens: Sequence[int] = (5, 5)
    seed: int = 0
    override_index_samples: int | None = None


def make_epinet_agent(config: EpinetConfig) -> VanillaEnnAgent:
    """Returns the agent `epinet`."""

    def enn_ctor(prior: PriorKnowledge) -> EnnArray:
        # Only the last hidden layer is exposed, and without one nothing.
        expose = [False] * (len(config.hidden_sizes) + 1)
        if config.hidden_sizes:
            expose[-2] = True
        epinet = networks.epinet.make_mlp_epinet(
            _sizes(config.hidden_sizes, prior),
            config.epi_hiddens,
            config.index_dim,
            expose_layers=expose,
            prior_scale=config.prior_scale_epi,
        )
        prior_fns = networks.make_mlp_ensemble_prior_fns(
            _sizes(config.add_hiddens, prior),
            _dummy_input(prior),
            config.index_dim,
            config.seed,
        )
        return networks.EnnWithAdditivePrior(
            epinet,
            networks.combine_functions_linear_in_index(prior_fns),
            config.prior_scale / temperature(prior),
        )

    def loss_ctor(prior: PriorKnowledge, enn: EnnArray) -> LossFnArray:
        single = losses.add_data_noise(
            classification_loss(prior.num_classes),
            data_noise.BootstrapNoise(enn, config.distribution, config.seed),
        )
        num_samples = config.override_index_samples or config.index_dim
        ratio = prior.input_dim / prior.num_train
        return losses.add_l2_weight_decay(
            losses.average_single_index_loss(single, num_samples),
            config.l2_weight_decay * ratio**0.7,
            lambda module, *_: "prior" not in module,
        )

    def num_batches(prior: PriorKnowledge) -> int:
        many = prior.num_train / prior.input_dim > 500
        return config.num_batches * (10 if many else 1)

    return VanillaEnnAgent(
        VanillaEnnConfig(
            enn_ctor,
            loss_ctor,
            num_batches=num_batches,
            prior_loss_ctor=default_enn_prior_loss(config.index_dim),
            prior_loss_freq=config.prior_loss_freq,
            seed=config.seed,
        )
    )
