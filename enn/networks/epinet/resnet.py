"""An epinet on the last hidden layer of a trained residual network."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from enn import base
from enn.networks.base import EnnArray
from enn.networks.checkpoints import EnnCheckpoint, ParamsStateLoadFn
from enn.networks.epinet.base import (
    BaseHiddenParser,
    EpinetWithState,
    combine_base_epinet_as_enn,
)
from enn.networks.epinet.checkpoint import EpinetCheckpoint
from enn.networks.epinet.last_layer import MLPEpinetWithPrior, parse_base_hidden
from enn.networks.epinet.priors import combine_epinet_and_prior
from enn.networks.priors import PriorFn

PriorFnCtor = Callable[[], PriorFn]
"""Makes a prior function."""


@dataclasses.dataclass
class ResnetFinalEpinetConfig:
    """An epinet on the last hidden layer of a trained network.

    Osband et al., 2021, https://arxiv.org/abs/2107.08924.

    Attributes:
      base_checkpoint: the base network.
      index_dim: size of the Gaussian index.
      num_classes: number of classes.
      epinet_hiddens: widths of the epinet's hidden layers.
      prior_epinet_hiddens: those of its prior; the same by default.
      base_logits_scale: factor of the base network's output.
      epi_prior_scale: factor of the epinet's prior.
      add_prior_scale: factor of the additional prior function; 0 leaves it out.
      prior_fn_ctor: makes an additional prior function of inputs and index.
      freeze_base: whether only the epinet trains.
      parse_hidden: base output -> hidden features.
      seed: not used; kept for compatibility.
      base_index: index of the base network, drawn with key 0 by default.
    """

    base_checkpoint: EnnCheckpoint
    index_dim: int
    num_classes: int
    epinet_hiddens: Sequence[int]
    prior_epinet_hiddens: Sequence[int] | None = None
    base_logits_scale: float = 1
    epi_prior_scale: float = 1
    add_prior_scale: float = 1
    prior_fn_ctor: PriorFnCtor | None = None
    freeze_base: bool = True
    parse_hidden: BaseHiddenParser = parse_base_hidden
    seed: int = 23
    base_index: base.Index | None = None


class ResnetFinalEpinet(EnnArray):
    """The base network and the epinet of a config as one epistemic network.

    μ(x) + σ(x, φ(x), z) (Osband et al., 2021, https://arxiv.org/abs/2107.08924).

    See `combine_base_epinet_as_enn` for outputs and parameters.
    """

    def __init__(self, config: ResnetFinalEpinetConfig):
        enn = combine_base_epinet_as_enn(
            config.base_checkpoint,
            _make_epinet(config),
            config.parse_hidden,
            base_index=config.base_index,
            base_scale=config.base_logits_scale,
            freeze_base=config.freeze_base,
        )
        super().__init__(enn.apply, enn.init, enn.indexer)


def make_checkpoint_from_config(
    name: str,
    load_fn: ParamsStateLoadFn,
    config: ResnetFinalEpinetConfig,
    tuned_eval_temperature: float | None = None,
) -> EpinetCheckpoint:
    """Returns the checkpoint of a trained `ResnetFinalEpinet`.

    Args:
      name: name of the checkpoint.
      load_fn: loads the network's parameters and state: those of the epinet, and
        without `config.freeze_base` those of the base network as well, which then
        take the place of the ones in `config.base_checkpoint`.
      config: how the network was made.
      tuned_eval_temperature: divisor of the logits that does best in evaluation.
    """
    base_cpt = config.base_checkpoint
    if not config.freeze_base:
        base_cpt = dataclasses.replace(base_cpt, load_fn=load_fn)
    return EpinetCheckpoint(
        name=name,
        load_fn=load_fn,
        epinet_ctor=functools.partial(_make_epinet, config),
        parse_hidden=config.parse_hidden,
        base_cpt=base_cpt,
        base_index=config.base_index,
        base_scale=config.base_logits_scale,
        tuned_eval_temperature=tuned_eval_temperature,
    )


def _make_epinet(config: ResnetFinalEpinetConfig) -> EpinetWithState:
    epinet = MLPEpinetWithPrior(
        config.index_dim,
        config.num_classes,
        config.epinet_hiddens,
        config.prior_epinet_hiddens,
        prior_scale=config.epi_prior_scale,
        drop_inputs=True,
    )
    if config.prior_fn_ctor is None or config.add_prior_scale == 0:
        return epinet
    return combine_epinet_and_prior(
        epinet, config.prior_fn_ctor(), config.add_prior_scale
    )
