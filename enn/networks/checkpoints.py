"""Trained networks: how to build one and where its parameters are."""

import dataclasses
from collections.abc import Callable

import haiku as hk

from enn.datasets.base import Dataset
from enn.networks.base import EnnArray

EnnCtor = Callable[[], EnnArray]
"""Makes a network."""


ParamsStateLoadFn = Callable[[], tuple[hk.Params, hk.State]]
"""Loads the parameters and state of a network."""


@dataclasses.dataclass
class EnnCheckpoint:
    """A trained network.

    Attributes:
      name: name of the checkpoint.
      load_fn: loads parameters and state.
      enn_ctor: makes the network that they belong to.
      dataset: what it was trained on.
      report_cl: number of the change that reported its results.
      tuned_eval_temperature: divisor of the logits that does best in evaluation.
    """

    name: str
    load_fn: ParamsStateLoadFn
    enn_ctor: EnnCtor
    dataset: Dataset | None = None
    report_cl: int | None = None
    tuned_eval_temperature: float | None = None
