"""Agents that are not networks: fixed predictions, scikit-learn's classifiers."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax.numpy as jnp
import numpy as np

from enn import _extras
from enn.testbed.agents import temperature
from enn.testbed.base import Data, EpistemicSampler, PriorKnowledge, TestbedAgent
from enn.testbed.generative import make_2layer_mlp_logit_fn


@dataclasses.dataclass(frozen=True)
class DummyConfig:
    """Settings of the baselines.

    Attributes:
      seed: not used: they are deterministic, or draw with the sampler's key.
      log_probs: whether `average_class_probs` returns log frequencies. The published
        one returns frequencies, which count as logits: nearly uniform predictions.
    """

    seed: int = 0
    log_probs: bool = False


def make_uniform_class_probs_agent(config: DummyConfig) -> TestbedAgent:
    """Returns the agent that gives all classes the same probability."""
    del config

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        classes = prior.num_classes
        return _Certain(lambda x: jnp.full([x.shape[0], classes], 1 / classes))

    return agent


def make_average_class_probs_agent(config: DummyConfig) -> TestbedAgent:
    """Returns the agent that gives classes their frequency in the training data."""

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        classes = jnp.arange(prior.num_classes)
        logits = (jnp.asarray(data.y) == classes[None]).mean(0, dtype=jnp.float32)
        if config.log_probs:
            logits = jnp.log(logits)
        return _Certain(lambda x: jnp.tile(logits, (x.shape[0], 1)))

    return agent


def make_prior_agent(config: DummyConfig) -> TestbedAgent:
    """Returns the agent that draws functions from the prior and learns nothing."""
    del config

    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        def sampler(x: chex.Array, key: chex.PRNGKey) -> chex.Array:
            shape = prior.input_dim, temperature(prior), 50, prior.num_classes
            return make_2layer_mlp_logit_fn(*shape, key)(x)

        return sampler

    return agent


@dataclasses.dataclass(frozen=True)
class KnnConfig:
    """K-nearest neighbours.

    Cover & Hart, 1967, https://doi.org/10.1109/TIT.1967.1053964.

    Attributes:
      num_neighbors: how many neighbours vote.
      weighting: "uniform" or "distance".
    """

    num_neighbors: int = 3
    weighting: Literal["uniform", "distance"] = "uniform"


@dataclasses.dataclass(frozen=True)
class RandomForestConfig:
    """A random forest.

    Breiman, 2001, https://doi.org/10.1023/A:1010933404324.

    Attributes:
      n_estimators: number of trees.
      criterion: of the splits, such as "gini" or "entropy".
      seed: of the forest. The published agent has none.
    """

    n_estimators: int = 100
    criterion: str = "gini"
    seed: int = 0


def make_knn_agent(config: KnnConfig) -> TestbedAgent:
    """Returns the agent `knn`, by scikit-learn."""

    def make_classifier() -> Any:
        neighbors = _extras.require("sklearn.neighbors", "demo")
        return neighbors.KNeighborsClassifier(
            config.num_neighbors, weights=config.weighting
        )

    return _classifier_agent(make_classifier)


def make_random_forest_agent(config: RandomForestConfig) -> TestbedAgent:
    """Returns the agent `random_forest`, by scikit-learn."""

    def make_classifier() -> Any:
        ensemble = _extras.require("sklearn.ensemble", "demo")
        return ensemble.RandomForestClassifier(
            config.n_estimators, criterion=config.criterion, random_state=config.seed
        )

    return _classifier_agent(make_classifier)


class _Certain:
    """A sampler of one function, the same for every key."""

    def __init__(self, logits: Callable[[chex.Array], Any]):
        self._logits = logits

    def __call__(self, x: chex.Array, key: chex.PRNGKey) -> Any:
        return self._logits(x)

    def sample_many(self, x: chex.Array, keys: chex.PRNGKey) -> np.ndarray:
        logits = np.asarray(self._logits(x))
        return np.broadcast_to(logits, (len(keys), *logits.shape))


def _classifier_agent(make_classifier: Any) -> TestbedAgent:
    def agent(data: Data, prior: PriorKnowledge) -> EpistemicSampler:
        # A point at the origin for each class, so that all of them have been seen.
        classes = np.arange(prior.num_classes)
        origin = np.zeros([len(classes), prior.input_dim])
        x = np.concatenate([np.asarray(data.x), origin])
        y = np.concatenate([np.asarray(data.y)[:, 0], classes])
        classifier = make_classifier().fit(x, y)

        def log_probs(x: chex.Array) -> np.ndarray:
            probs = classifier.predict_proba(np.asarray(x))
            return np.log(np.clip(probs, 0.01, 0.99)).astype(np.float32)

        return _Certain(log_probs)

    return agent
