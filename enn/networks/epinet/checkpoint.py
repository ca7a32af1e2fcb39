"""Trained epinets: how to build one and where its parameters are."""

import dataclasses
from collections.abc import Callable

from enn import base
from enn.datasets.base import Dataset
from enn.networks.checkpoints import EnnCheckpoint, ParamsStateLoadFn
from enn.networks.epinet.base import BaseHiddenParser, EpinetWithState


@dataclasses.dataclass
class EpinetCheckpoint:
    """A trained epinet, on a trained base network.

    Attributes:
      name: name of the checkpoint.
      load_fn: loads parameters and state of the epinet.
      epinet_ctor: makes the epinet.
      parse_hidden: base output -> hidden features for the epinet.
      base_cpt: the base network.
      base_index: index of the base network; drawn with key 0 by default.
      base_scale: factor of the base network's logits.
      tuned_eval_temperature: divisor of the logits that does best in evaluation.
      dataset: what the epinet was trained on.
      report_cl: number of the change that reported its results.
    """

    name: str
    load_fn: ParamsStateLoadFn
    epinet_ctor: Callable[[], EpinetWithState]
    parse_hidden: BaseHiddenParser
    base_cpt: EnnCheckpoint
    base_index: base.Index | None = None
    base_scale: float = 1.0
    tuned_eval_temperature: float | None = None
    dataset: Dataset | None = None
    report_cl: int | None = None
