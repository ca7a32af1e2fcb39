"""How the benchmark trains a network of this library, and what it samples from it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import optax

from enn import data_noise, losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import Logger, NullLogger
from enn.losses.base import LossFnArray, SingleLossFnArray
from enn.networks import forwarders
from enn.networks.base import EnnArray
from enn.supervised.programs import shared
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


@shared
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
    """Returns the cross-entropy, with the error rate as the metric `acc`.

    Raises:
      ValueError: for regression.
    """
    if num_classes < 2:
        raise ValueError(
            "The benchmark's agents classify. For regression give VanillaEnnConfig "
            "your network and a loss such as gaussian_regression_loss."
        )
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
            predicate = is_no_bias if exclude_bias_l2 else None
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


def is_no_bias(module: str, name: str, value: Any) -> bool:
    """Whether a parameter is not a bias; a predicate of weight decay."""
    return name != "b"
