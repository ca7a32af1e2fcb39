"""Networks and batches that the tests of losses share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn import base, datasets, networks
from tests.support import golden
from tests.support.fast import compiled


@functools.cache
def golden_ensemble(num_outputs: int) -> networks.EnnArray:
    return networks.MLPEnsembleMatchedPrior(
        [8, num_outputs], dummy_input=golden.X5, num_ensemble=4
    )


def evaluate(loss_fn: Callable, enn: Any, batch: datasets.ArrayBatch) -> dict[str, Any]:
    """Loss, metrics and gradient at initial parameters, as the golden cases hold."""
    index = enn.indexer(golden.keys(1))
    params, state = compiled(enn.init)(golden.keys(0), golden.X5, index)

    def loss_of(params: Any) -> Any:
        return loss_fn(enn, params, state, batch, golden.keys(21))

    value_and_grad = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (_, metrics)), grad = value_and_grad(params)
    return {"loss": loss, "metrics": metrics, "grad": grad}


def batch_of(y: Any, **fields: Any) -> datasets.ArrayBatch:
    return datasets.ArrayBatch(x=np.zeros([len(y), 2]), y=np.asarray(y), **fields)


def fixed_output(out: Any) -> Callable:
    """Returns the `apply` of a network with the same output everywhere."""

    def apply(params: Any, state: Any, inputs: Any, index: base.Index) -> Any:
        return out, state

    return apply


def single_value(single_loss: Callable, out: Any, batch: datasets.ArrayBatch) -> Any:
    """Returns the value of a single-index loss at a given network output."""
    return single_loss(fixed_output(out), {}, {}, batch, jnp.array(0))[0]


def index_network(num_ensemble: int = 10) -> networks.EnnArray:
    """Returns a network whose output is its index."""

    def apply(params: Any, state: Any, inputs: Any, index: base.Index) -> Any:
        return index, state

    def init(key: Any, inputs: Any, index: base.Index) -> Any:
        return {}, {}

    return networks.EnnArray(apply, init, networks.EnsembleIndexer(num_ensemble))


def counting_network(num_ensemble: int = 4) -> networks.EnnArray:
    """Returns an ensemble whose members count and average what they see.

    State of each member: how many forward passes it had (int32), and a moving
    average of its inputs.
    """

    def apply(params: Any, state: Any, inputs: Any, index: base.Index) -> Any:
        count, average = state["net"]["count"], state["net"]["average"]
        moved = 0.5 * average[index] + 0.5 * jnp.mean(inputs)
        new = {
            "count": count.at[index].add(1),
            "average": average.at[index].set(moved),
        }
        return params["net"]["w"][index] * jnp.ones([len(inputs), 1]), {"net": new}

    def init(key: Any, inputs: Any, index: base.Index) -> Any:
        state = {
            "count": jnp.zeros(num_ensemble, jnp.int32),
            "average": jnp.zeros(num_ensemble),
        }
        return {"net": {"w": jnp.arange(1.0, num_ensemble + 1)}}, {"net": state}

    return networks.EnnArray(apply, init, networks.EnsembleIndexer(num_ensemble))
