"""The published residual networks of a data set, and the epinets on top of them.

Osband et al., 2021, Epistemic neural networks, https://arxiv.org/abs/2107.08924.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import numpy as np

from enn import _checks
from enn.checkpoints.utils import init_from_file
from enn.datasets.base import Dataset
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.epinet.checkpoint import EpinetCheckpoint
from enn.networks.epinet.last_layer import MLPEpinetWithPrior
from enn.networks.epinet.resnet import (
    PriorFnCtor,
    ResnetFinalEpinetConfig,
    make_checkpoint_from_config,
)
from enn.networks.resnet.base import EnsembleResNetENN
from enn.networks.resnet.lib import CanonicalResNets, ResNetConfig


@dataclasses.dataclass(frozen=True)
class PublishedResNets:
    """The networks trained on one data set.

    Attributes:
      name: name of the data set in names of checkpoints and files.
      make_dataset: makes the data set.
      enable_double_transpose: whether a batch on TPU is
        `[height, width, channels, batch]`.
      index_dim: size of the epinets' index.
      epi_prior_scale: factor of the epinets' own prior.
      add_prior_scale: factor of their additional prior function.
      prior_fn_ctor: makes that prior function. It is not in the files: it has to draw
        the numbers that the epinets were trained with.
      temperature: divisor of the networks' logits that does best in evaluation. The
        epinets were trained on logits divided by it.
      epinet_temperature: the same of the epinets' logits.
    """

    name: str
    make_dataset: Callable[[], Dataset]
    enable_double_transpose: bool
    index_dim: int
    epi_prior_scale: float
    add_prior_scale: float
    prior_fn_ctor: PriorFnCtor
    temperature: float | None = None
    epinet_temperature: float | None = None

    def resnet(self, num_layers: int) -> EnnCheckpoint:
        """Returns the network with `num_layers` layers."""
        dataset = self.make_dataset()
        enn_ctor = functools.partial(
            EnsembleResNetENN,
            dataset.num_classes,
            num_ensemble=1,
            is_training=False,
            enable_double_transpose=self.enable_double_transpose,
            config=_config(num_layers),
        )
        file_name = f"resnet{num_layers}_{self.name}"
        return EnnCheckpoint(
            name=f"{self.name}_resnet{num_layers}",
            load_fn=functools.partial(
                _load_checked, file_name, functools.partial(_resnet_shapes, enn_ctor)
            ),
            enn_ctor=enn_ctor,
            dataset=dataset,
            tuned_eval_temperature=self.temperature,
        )

    def final_epinet(
        self, num_layers: int, name: str | None = None
    ) -> EpinetCheckpoint:
        """Returns the epinet on the network with `num_layers` layers.

        Args:
          num_layers: number of layers of the base network.
          name: name of the checkpoint, if it differs from the others' pattern.
        """
        config = ResnetFinalEpinetConfig(
            base_checkpoint=self.resnet(num_layers),
            index_dim=self.index_dim,
            num_classes=self.make_dataset().num_classes,
            epinet_hiddens=[50],
            base_logits_scale=1 / (self.temperature or 1),
            epi_prior_scale=self.epi_prior_scale,
            add_prior_scale=self.add_prior_scale,
            prior_fn_ctor=self.prior_fn_ctor,
        )
        num_hidden = _config(num_layers).channels_per_group[-1]
        file_name = f"resnet{num_layers}_epinet_{self.name}"
        return make_checkpoint_from_config(
            name or f"{self.name}_final_epinet_resnet{num_layers}",
            functools.partial(
                _load_checked,
                file_name,
                functools.partial(_epinet_shapes, config, num_hidden),
            ),
            config,
            self.epinet_temperature,
        )


def _config(num_layers: int) -> ResNetConfig:
    return CanonicalResNets[f"RESNET_{num_layers}"].value


def _load_checked(
    file_name: str, expected: Callable[[], Any]
) -> tuple[hk.Params, hk.State]:
    params, state = init_from_file(file_name)
    wanted_params, wanted_state = expected()
    _checks.same_shapes(
        f"{file_name}.npzs",
        {"params": params, "state": state},
        {"params": wanted_params, "state": wanted_state},
    )
    return params, state


def _resnet_shapes(enn_ctor: Callable[..., EnsembleResNetENN]) -> Any:
    # They do not depend on the size of the images.
    images = np.zeros((1, 32, 32, 3), np.float32)
    enn = enn_ctor(enable_double_transpose=False)
    return jax.eval_shape(enn.init, jax.random.PRNGKey(0), images, 0)


def _epinet_shapes(config: ResnetFinalEpinetConfig, num_hidden: int) -> Any:
    epinet = MLPEpinetWithPrior(
        config.index_dim, config.num_classes, config.epinet_hiddens, drop_inputs=True
    )
    hidden, index = np.zeros((1, num_hidden)), np.zeros(config.index_dim)
    return jax.eval_shape(epinet.init, jax.random.PRNGKey(0), hidden, index, hidden)
