"""The testbed's contract: a problem, an agent, and how good its predictions are.

A problem shows an agent its training data and some prior knowledge. The agent trains,
and returns a sampler of functions from its posterior. The problem, which knows the
truth, then measures the sampler's joint predictions.

Reference: Osband et al., 2022, The Neural Testbed, https://arxiv.org/abs/2110.04629.
"""

import abc
import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import numpy as np

from enn import base

Array = jax.Array | np.ndarray


class Data(NamedTuple):
    """Inputs and targets.

    Attributes:
      x: inputs `[num_data, input_dim]`, float32.
      y: `[num_data, 1]`: classes, int32; in regression float targets.
    """

    x: Array
    y: Array


@dataclasses.dataclass(frozen=True)
class PriorKnowledge:
    """What an agent may know of a problem before it trains.

    Attributes:
      input_dim: number of inputs.
      num_train: number of training rows.
      tau: how many inputs are predicted jointly. The testbed's agents do not use it.
      num_classes: number of classes; 1 in regression.
      layers: number of hidden layers of the network that generated the data.
      noise_std: standard deviation of the targets' noise, in regression.
      temperature: the generating network's logits are divided by it.
      extra: anything else.
    """

    input_dim: int
    num_train: int
    tau: int
    num_classes: int = 1
    layers: int | None = None
    noise_std: float | None = None
    temperature: float | None = None
    extra: dict[str, Any] | None = None


@dataclasses.dataclass
class ENNQuality:
    """How good the predictions of a sampler are.

    Attributes:
      kl_estimate: estimated KL divergence of the joint predictions from the truth, in
        nats per batch of `tau` inputs (not divided by `tau`); lower is better.
      extra: further figures by name, such as `test_acc` and `pct_finite_kl`.
    """

    kl_estimate: float
    extra: dict[str, Any] | None = None


class EpistemicSampler(Protocol):
    """Draws functions from an agent's posterior."""

    def __call__(self, x: base.AnyArray, key: chex.PRNGKey, /) -> chex.Array:
        """Returns the values of one function at all of `x`.

        Args:
          x: inputs `[batch, input_dim]`.
          key: picks the function; the same key gives the same function.

        Returns:
          Logits `[batch, num_classes]`; in regression function values `[batch, 1]`.
        """
        ...


class TestbedAgent(Protocol):
    """Trains on data and returns a sampler."""

    def __call__(self, data: Data, prior: PriorKnowledge, /) -> EpistemicSampler: ...


class TestbedProblem(abc.ABC):
    """Training data, and a judge of what is learned from them.

    The Neural Testbed: Osband et al., 2022, https://arxiv.org/abs/2110.04629.
    """

    __test__ = False

    @property
    @abc.abstractmethod
    def train_data(self) -> Data:
        """The data to train on."""

    @property
    @abc.abstractmethod
    def prior_knowledge(self) -> PriorKnowledge:
        """What the agent may know."""

    @abc.abstractmethod
    def evaluate_quality(self, enn_sampler: EpistemicSampler) -> ENNQuality:
        """Returns how good the sampler's predictions are."""


def stream_name() -> str:
    """Returns the random stream in use: `"default"` or `"published"`."""
    is_default = jax.config.jax_threefry_partitionable  # pyrefly: ignore[missing-attribute]
    return "default" if is_default else "published"


def run(agent: TestbedAgent, problem: TestbedProblem) -> ENNQuality:
    """Trains an agent on a problem, and returns how good its predictions are.

    >>> import jax
    >>> from enn import testbed
    >>> def uniform(data, prior):
    ...     return lambda x, key: jax.numpy.zeros([len(x), prior.num_classes])
    >>> problem = testbed.problem_from_id("classification_2d/75")
    >>> round(testbed.run(uniform, problem).kl_estimate, 4)
    0.3781
    """
    sampler = agent(problem.train_data, problem.prior_knowledge)
    return problem.evaluate_quality(sampler)


def similar_ones(name: str, names: Iterable[str]) -> str:
    """Returns the end of an error about an unknown name: up to three like it."""
    near = difflib.get_close_matches(name, list(names), 3, 0.0)
    return f"similar ones are {', '.join(near)}" if near else "it takes none"
