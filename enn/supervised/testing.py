"""A small experiment to try a network in."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import optax

from enn import losses, utils
from enn.networks.base import EnnArray
from enn.supervised.base import BaseExperiment
from enn.supervised.sgd_experiment import Experiment


class TestExperiment(NamedTuple):
    """All it takes to train your own network on the two moons.

    Attributes:
      num_outputs: number of outputs that the network needs.
      experiment_ctor: makes the experiment of a network.
      dummy_input: a batch of inputs, `[20, 2]`.
    """

    num_outputs: int
    experiment_ctor: Callable[[EnnArray], BaseExperiment]
    dummy_input: chex.Array


TestExperiment.__test__ = False  # pyrefly: ignore[missing-attribute]  # for pytest


def make_test_experiment(regression: bool) -> TestExperiment:
    """Returns an experiment on the two moons, as a regression or with two classes.

    >>> from enn import supervised
    >>> test = supervised.make_test_experiment(regression=False)
    >>> test.num_outputs, test.dummy_input.shape
    (2, (20, 2))
    """
    dataset = utils.make_test_data(20)
    if regression:
        num_outputs, single_loss = 1, losses.L2Loss()
    else:
        num_outputs, single_loss = 2, losses.XentLoss(2)
    loss_fn = losses.average_single_index_loss(single_loss)

    def experiment_ctor(enn: EnnArray) -> BaseExperiment:
        return Experiment(enn, loss_fn, optax.adam(1e-3), dataset)

    return TestExperiment(num_outputs, experiment_ctor, next(dataset).x)
