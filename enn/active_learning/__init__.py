"""Active learning: choosing which rows to ask a label for."""

from enn.active_learning.base import (
    ActiveLearner,
    PerExamplePriority,
    PriorityFn,
    PriorityFnCtor,
    PriorityOutput,
)
from enn.active_learning.loop import LearningCurvePoint, TrainableExperiment, run
from enn.active_learning.priorities import (
    get_implemented_priority_fn_ctors,
    get_per_example_priority,
    get_priority_fn_ctor,
    make_priority_fn_ctor,
    make_scaled_mean_per_example,
    make_scaled_std_per_example,
    make_ucb_per_example,
)
from enn.active_learning.prioritized import PrioritizedBatcher

__all__ = [
    "ActiveLearner",
    "LearningCurvePoint",
    "PerExamplePriority",
    "PrioritizedBatcher",
    "PriorityFn",
    "PriorityFnCtor",
    "PriorityOutput",
    "TrainableExperiment",
    "get_implemented_priority_fn_ctors",
    "get_per_example_priority",
    "get_priority_fn_ctor",
    "make_priority_fn_ctor",
    "make_scaled_mean_per_example",
    "make_scaled_std_per_example",
    "make_ucb_per_example",
    "run",
]


def __dir__() -> list[str]:
    return sorted(__all__)
