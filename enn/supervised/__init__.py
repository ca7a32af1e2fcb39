"""Experiments: training a network and evaluating it."""

from enn.supervised.base import BaseExperiment, sample_predictions
from enn.supervised.loop import NonFiniteError
from enn.supervised.many import ManyExperiments
from enn.supervised.multiloss_experiment import (
    MultilossExperiment,
    MultilossTrainer,
    TrainingState,
)
from enn.supervised.replay import Replay
from enn.supervised.saving import saved_steps
from enn.supervised.sgd_experiment import Experiment
from enn.supervised.testing import TestExperiment, make_test_experiment

__all__ = [
    "BaseExperiment",
    "Experiment",
    "ManyExperiments",
    "MultilossExperiment",
    "MultilossTrainer",
    "NonFiniteError",
    "Replay",
    "TestExperiment",
    "TrainingState",
    "make_test_experiment",
    "sample_predictions",
    "saved_steps",
]


def __dir__() -> list[str]:
    return sorted(__all__)
