"""Base networks and their checkpoints for the tests of epinets."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from enn import base
from enn.networks.base import OutputWithPrior
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.utils import wrap_net_fn_as_enn
from tests.support import fast, golden

X = golden.normal(4, 3)
NUM_CLASSES = 2


def stateful_base(is_training: bool = True) -> base.EpistemicNetwork:
    """A network with batch norm, hidden features and a prior of its own."""

    def forward(x: jax.Array) -> OutputWithPrior:
        hidden = hk.Linear(5, name="base_linear")(x)
        norm = hk.BatchNorm(True, True, 0.9, name="base_norm")
        hidden = jax.nn.relu(norm(hidden, is_training))
        logits = hk.Linear(NUM_CLASSES, name="base_logits")(hidden)
        return OutputWithPrior(logits, jnp.cos(logits), {"final_out": hidden})

    return wrap_net_fn_as_enn(forward)


class Checkpoint:
    """A checkpoint of `enn` at random parameters, counting how often it loads."""

    def __init__(self, enn: base.EpistemicNetwork, inputs: Any = X):
        self.enn = enn
        self.num_loads = 0
        self.variables = fast.random_params(enn, inputs, seed=7)
        self.checkpoint = EnnCheckpoint("base", self._load, lambda: enn)

    def _load(self) -> tuple[Any, Any]:
        self.num_loads += 1
        return jax.tree.map(jnp.array, self.variables)
