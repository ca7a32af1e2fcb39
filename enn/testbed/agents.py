"""The benchmark's agents: networks of this library, trained as the testbed does.

Each agent has a configuration, whose defaults are the benchmark's, and a function that
makes the agent. Most train with `VanillaEnnAgent`.

Reference: Osband et al., 2022, The Neural Testbed, https://arxiv.org/abs/2110.04629,
section 4 and appendix C; the epinet is that of Osband et al., 2021,
https://arxiv.org/abs/2107.08924.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from enn import losses, networks
from enn.losses.base import LossFnArray, SingleLossFnArray
from enn.networks.base import EnnArray
from enn.testbed.base import PriorKnowledge
from enn.testbed.vanilla import (
    VanillaEnnAgent,
    VanillaEnnConfig,
    bootstrapped,
    classification_loss,
    default_enn_prior_loss,
    is_bootstrapped,
    is_no_bias,
)


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
    return temperature(prior) ** 0.5 * prior.input_dim if adaptive else 1.0


def scaled_prior(scale: float, rule: str | None, prior: PriorKnowledge) -> float:
    """Returns a prior scale divided by √T ("sqrt"), T ("linear" or "lin"), or 1.

    Raises:
      ValueError: for another rule.
    """
    rules = {
        "sqrt": temperature(prior) ** 0.5,
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


def _sizes(hidden: Sequence[int], prior: PriorKnowledge) -> list[int]:
    return [*hidden, prior.num_classes]


def _dummy_input(prior: PriorKnowledge) -> jax.Array:
    return jnp.ones([100, prior.input_dim])


@dataclasses.dataclass(frozen=True)
class VanillaEnsembleConfig:
    """An ensemble of MLPs, trained independently on the same data.

    Lakshminarayanan et al., 2017, https://arxiv.org/abs/1612.01474.

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
    optimizer: optax.GradientTransformation | None = None,
    weighs_rows: bool = True,
) -> VanillaEnnAgent:
    steps = scaled_num_batches(config.num_batches, config.batch_strategy)
    vanilla = VanillaEnnConfig(
        enn_ctor,
        loss_ctor,
        num_batches=steps,
        seed=config.seed,
        weighs_rows=weighs_rows,
    )
    if optimizer is not None:
        vanilla.optimizer = optimizer
    return VanillaEnnAgent(vanilla)


@dataclasses.dataclass(frozen=True)
class EnsembleConfig(VanillaEnsembleConfig):
    """An ensemble with prior functions: `ensemble+`.

    Osband et al., 2018, https://arxiv.org/abs/1806.03335.

    >>> from enn import testbed
    >>> config = testbed.get_paper_agent("ensemble+").default
    >>> config == testbed.EnsembleConfig(), config.num_ensemble, config.prior_scale
    (True, 100, 3.0)

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
        single = bootstrapped(
            classification_loss(prior.num_classes),
            enn,
            config.distribution,
            config.seed,
        )
        num_samples = config.override_index_samples or config.num_ensemble
        return _ensemble_loss(config, prior, single, num_samples)

    weighs_rows = not is_bootstrapped(config.distribution)
    return _agent(config, enn_ctor, loss_ctor, weighs_rows=weighs_rows)


@dataclasses.dataclass(frozen=True)
class McDropoutConfig:
    """An MLP with dropout, whose masks are the index.

    Gal & Ghahramani, 2016, https://arxiv.org/abs/1506.02142.

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
        predicate = is_no_bias if config.exclude_bias_l2 else None
        loss = losses.average_single_index_loss(
            classification_loss(prior.num_classes), 1
        )
        return losses.add_l2_weight_decay(loss, decay, predicate)

    optimizer = optax.adam(config.learning_rate)
    return _agent(config, enn_ctor, loss_ctor, optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class BBBConfig:
    """Bayes by backprop: independent normal weights.

    Blundell et al., 2015, https://arxiv.org/abs/1505.05424.

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
    # The likelihood is a plain mean over rows.
    return _agent(config, enn_ctor, loss_ctor, optimizer, weighs_rows=False)


@dataclasses.dataclass(frozen=True)
class HypermodelConfig:
    """A linear hypermodel with an independent prior.

    Dwaracherla et al., 2020, https://arxiv.org/abs/2006.07464.

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
        single = bootstrapped(
            classification_loss(prior.num_classes),
            enn,
            config.distribution,
            config.seed,
        )
        decay = config.l2_weight_decay / prior.num_train
        return losses.add_l2_weight_decay(
            losses.average_single_index_loss(single, config.num_index_samples),
            decay * adapted_decay(prior, config.adaptive_weight_scale),
        )

    optimizer = optax.adam(config.learning_rate)
    weighs_rows = not is_bootstrapped(config.distribution)
    return _agent(config, enn_ctor, loss_ctor, optimizer, weighs_rows)


@dataclasses.dataclass(frozen=True)
class EpinetConfig:
    """An MLP with an epinet and an additive ensemble prior.

    Osband et al., 2021, https://arxiv.org/abs/2107.08924.

    >>> from enn import testbed
    >>> config = testbed.get_paper_agent("epinet").default
    >>> config == testbed.EpinetConfig(), config.index_dim, config.prior_scale
    (True, 8, 0.3)

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
        single = bootstrapped(
            classification_loss(prior.num_classes),
            enn,
            config.distribution,
            config.seed,
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
            weighs_rows=not is_bootstrapped(config.distribution),
        )
    )
