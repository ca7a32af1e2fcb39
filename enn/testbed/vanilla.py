"""How the benchmark trains a network of this library, and what it samples from it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import data_noise, losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import Logger, NullLogger
from enn.losses.base import LossFnArray, SingleLossFnArray
from enn.networks import forwarders
from enn.networks.base import EnnArray
from enn.networks.indexers import EnsembleIndexer
from enn.supervised.many_programs import Hyper
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

    def __init__(
        self,
        enn: EnnArray,
        params: Any,
        state: Any,
        predict: Callable[..., jax.Array] | None = None,
    ):
        """Takes a trained network.

        Args:
          enn: the network.
          params: its parameters.
          state: its state.
          predict: `(params, state, x, keys)` to logits `[num_keys, batch, num_classes]`
            where networks share a compiled function.
        """
        self.enn, self.params, self.state = enn, params, state
        self._predict = predict or _predict(enn)

    def __call__(self, x: chex.Array, key: chex.PRNGKey) -> jax.Array:
        """Returns logits `[batch, num_classes]` of the function that `key` draws."""
        return self.sample_many(x, jax.tree.map(lambda k: k[None], key))[0]

    def sample_many(self, x: chex.Array, keys: chex.PRNGKey) -> jax.Array:
        """Returns the logits for each key, `[num_keys, batch, num_classes]`.

        What the keys share is computed once, and every member of an ensemble once.
        """
        return self._predict(self.params, self.state, x, keys)

    def distinct_keys(self, keys: chex.PRNGKey) -> tuple[chex.PRNGKey, np.ndarray]:
        """Returns keys that draw every function once, and which one each key draws.

        Of an ensemble they are as many as members, of other networks all keys.
        """
        indexer = self.enn.indexer
        if (
            not isinstance(indexer, EnsembleIndexer)
            or len(keys) <= indexer.num_ensemble
        ):
            return keys, np.arange(len(keys))
        members = jax.vmap(indexer)(keys)
        _, first, which = np.unique(members, return_index=True, return_inverse=True)
        # The first ones again for members that no key draws: shapes stay the same.
        return keys[np.resize(first, indexer.num_ensemble)], which


@shared
def _predict(enn: EnnArray) -> Callable[..., jax.Array]:
    predict = _predict_any(lambda _: enn)
    return functools.partial(predict, None)


@shared
def _predict_any(make_enn: Callable[[Hyper], EnnArray]) -> Callable[..., jax.Array]:
    @jax.jit
    def predict(hyper: Hyper, params: Any, state: Any, x: Any, keys: Any) -> Any:
        enn = make_enn(hyper)
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
      weighs_rows: whether `train_many` may give the loss each row of a batch once,
        with the number of its repetitions as `batch.weights`. Fewer data than
        `batch_size` then take less time, if the loss is a weighted mean over rows.
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
    weighs_rows: bool = False


class VanillaEnnAgent:
    """Trains a network by stochastic gradient descent.

    >>> from enn import networks, testbed
    >>> def enn_ctor(prior):
    ...     return networks.MLPDropoutENN([20, prior.num_classes])
    >>> loss_ctor = testbed.default_enn_loss(num_index_samples=5)
    >>> config = testbed.VanillaEnnConfig(enn_ctor, loss_ctor, num_batches=100)
    >>> problem = testbed.problem_from_id("classification_2d/75")
    >>> quality = testbed.run(testbed.VanillaEnnAgent(config), problem)
    >>> quality.kl_estimate < 0.3781  # That of uniform predictions
    True

    Attributes:
      config: how.
      experiment: the experiment of the last call.
    """

    def __init__(self, config: VanillaEnnConfig):
        """Takes the configuration."""
        self.config = config
        self.experiment: supervised.MultilossExperiment | None = None
        # Problems of one shape share these functions, and so a compiled program.
        self._makers: dict[PriorKnowledge, tuple[Any, Any, Any]] = {}

    def __call__(self, data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        """Trains on `data`; returns the trained network."""
        config = self.config
        enn = config.enn_ctor(prior)
        if config.center_train_data:
            enn = networks.make_centered_enn(enn, data.x)
        dataset = self._batches(data)
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
        steps = self._num_steps(prior)
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

    def train_many(
        self, datasets: Sequence[Data], priors: Sequence[PriorKnowledge]
    ) -> list[EpistemicSampler]:
        """Trains a network on each data set, all in one compiled program.

        Each has the numbers, to rounding, that a call gives it alone. The constructors
        of the configuration get temperature and noise as numbers that JAX traces; where
        they need plain ones, or a prior loss trains, calls follow each other instead.

        Args:
          datasets: all of one shape.
          priors: what is known of each; equal but for `temperature` and `noise_std`.

        Raises:
          ValueError: for data sets of different shapes and other priors.
        """
        config = self.config
        shapes = {(np.shape(data.x), np.shape(data.y)) for data in datasets}
        common = {without_numbers(prior) for prior in priors}
        if len(shapes) != 1 or len(common) != 1 or len(datasets) != len(priors):
            raise ValueError(
                "Problems trained together must have data of one shape, and prior "
                "knowledge that differs in temperature and noise_std alone; got the "
                f"shapes {sorted(shapes)} and {common}."
            )
        (prior,) = common
        steps = self._num_steps(prior)
        if config.prior_loss_ctor is not None and steps >= config.prior_loss_freq:
            return list(map(self, datasets, priors))
        if prior not in self._makers:
            self._makers[prior] = self._make_makers(prior)
        makers = self._makers[prior]
        hypers = _stack_hypers(datasets, priors)
        try:
            many = supervised.ManyExperiments(
                *makers,
                datasets=list(map(self._batches, datasets)),
                seeds=config.seed,
                hypers=hypers,
                logger=NullLogger() if config.logger is None else config.logger,
                train_log_freq=config.train_log_freq or max(1, steps // 30),
            )
        except jax.errors.JAXTypeError:  # A traced number where a plain one is needed.
            return list(map(self, datasets, priors))
        many.train(steps)
        predict = _predict_any(makers[0])
        samplers: list[EpistemicSampler] = []
        for i in range(len(datasets)):
            enn, state = many.run(i)
            hyper = {name: values[i] for name, values in hypers.items()}
            samplers.append(
                EnnSampler(
                    enn,
                    state.params,
                    state.network_state,
                    functools.partial(predict, hyper),
                )
            )
        return samplers

    def _batches(self, data: Data) -> Any:
        batch = ArrayBatch(x=data.x, y=data.y)
        return utils.make_batch_iterator(
            batch, self.config.batch_size, self.config.seed
        )

    def _num_steps(self, prior: PriorKnowledge) -> int:
        steps = self.config.num_batches
        return steps(prior) if callable(steps) else steps

    def _make_makers(self, prior: PriorKnowledge) -> tuple[Any, Any, Any]:
        """Returns functions of hyperparameters: network, loss and optimiser."""
        config = self.config
        weighs_rows = config.weighs_rows and prior.num_train < config.batch_size

        def make_enn(hyper: Hyper) -> EnnArray:
            enn = config.enn_ctor(_with_numbers(prior, hyper))
            if config.center_train_data:
                return networks.make_centered_enn(enn, hyper["x"])
            return enn

        def make_loss(enn: EnnArray, hyper: Hyper) -> LossFnArray:
            loss = config.loss_ctor(_with_numbers(prior, hyper), enn)
            return _on_distinct_rows(loss, hyper) if weighs_rows else loss

        return make_enn, make_loss, lambda hyper: config.optimizer


_NUMBERS = ("temperature", "noise_std")


def without_numbers(prior: PriorKnowledge) -> PriorKnowledge:
    """Returns what problems that train together must have in common."""
    return dataclasses.replace(prior, temperature=None, noise_std=None)


def _with_numbers(prior: PriorKnowledge, hyper: Hyper) -> PriorKnowledge:
    numbers = {name: hyper[name] for name in _NUMBERS if name in hyper}
    return dataclasses.replace(prior, **numbers)


def _stack_hypers(
    datasets: Sequence[Data], priors: Sequence[PriorKnowledge]
) -> dict[str, jax.Array]:
    """Returns what differs from problem to problem, with a leading axis of them."""
    hypers = {name: [getattr(prior, name) for prior in priors] for name in _NUMBERS}
    hypers |= {"x": [data.x for data in datasets], "y": [data.y for data in datasets]}
    return {n: jnp.stack(v) for n, v in hypers.items() if v[0] is not None}


def _on_distinct_rows(loss_fn: LossFnArray, data: Mapping[str, Any]) -> LossFnArray:
    """Returns the loss of a batch by that of all data, weighted by their counts."""
    x, y = data["x"], data["y"]
    rows = jnp.arange(len(x))[:, None]

    def loss(enn: EnnArray, params: Any, state: Any, batch: Any, key: Any) -> Any:
        # The loss is divided by the number of data, not by that of the batch.
        shares = (batch.data_index[:, 0][None] == rows).mean(axis=1, keepdims=True)
        distinct = ArrayBatch(x=x, y=y, data_index=rows, weights=shares * len(x))
        return loss_fn(enn, params, state, distinct, key)

    return loss


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


def is_bootstrapped(distribution: str | None) -> bool:
    """Whether rows have random weights, which replace those of the batch."""
    return distribution not in (None, "none")


def bootstrapped(
    single_loss: SingleLossFnArray, enn: EnnArray, distribution: str | None, seed: int
) -> SingleLossFnArray:
    """Returns the loss with bootstrap weights, see `enn.data_noise.BootstrapNoise`."""
    if not is_bootstrapped(distribution):
        return single_loss
    noise = data_noise.BootstrapNoise(enn, distribution, seed)
    return losses.add_data_noise(single_loss, noise)


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
        single = bootstrapped(single, enn, distribution, seed)
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
