"""The contract that every epistemic network keeps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import losses, networks, supervised, testing
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.networks.descriptors import DESCRIPTORS, Descriptor
from tests.support import cost

pytestmark = pytest.mark.parametrize(
    "net", DESCRIPTORS, ids=[net.name for net in DESCRIPTORS], scope="module"
)


@functools.lru_cache(maxsize=2)
def _variables(net: Descriptor) -> Any:
    """Returns a network, and its parameters, state and inputs."""
    enn = net.make()

    @jax.jit
    def init(inputs: Any) -> Any:
        return enn.init(jax.random.key(0), inputs, enn.indexer(jax.random.key(1)))

    return enn, (*init(net.inputs), net.inputs)


def _predict(enn: Any, *args: Any) -> Any:
    return networks.parse_net_output(enn.apply(*args)[0])


def _batch_size(net: Descriptor) -> int:
    return len(jax.tree.leaves(net.inputs)[0])


@pytest.mark.strict
def test_the_contract_is_kept(net: Descriptor) -> None:
    enn, _ = _variables(net)
    testing.check_enn(
        enn,
        net.inputs,
        draws_per_row=net.draws_per_row,
        batch_statistics=net.batch_statistics,
    )


def test_parameters_and_predictions_are_float32(net: Descriptor) -> None:
    enn, args = _variables(net)
    index = enn.indexer(jax.random.key(1))
    preds = jax.eval_shape(lambda *args: _predict(enn, *args, index), *args)
    assert preds.shape == (_batch_size(net), net.num_outputs)
    for leaf in jax.tree.leaves((args[0], preds)):
        assert leaf.dtype == jnp.float32


def test_many_indices_cost_at_most_as_much_as_one_at_a_time(net: Descriptor) -> None:
    enn, args = _variables(net)
    indices = jax.vmap(enn.indexer)(jax.random.split(jax.random.key(3), 5))

    def predict(index: Any, *args: Any) -> jax.Array:
        return _predict(enn, *args, index)

    one = cost.flops(predict, jax.tree.map(lambda z: z[0], indices), *args)
    predict_all = jax.vmap(predict, in_axes=(0, None, None, None))
    assert cost.flops(predict_all, indices, *args) <= 1.1 * 5 * one


@pytest.mark.slow
def test_training_lowers_the_loss(net: Descriptor) -> None:
    def single_loss(apply: Any, params: Any, state: Any, batch: Any, index: Any) -> Any:
        out, new_state = apply(params, state, batch.x, index)
        preds = networks.parse_net_output(out)
        return jnp.mean(jnp.square(preds - batch.y)), (new_state, {})

    enn, (params, state, inputs) = _variables(net)
    targets = np.linspace(-2, 2, _batch_size(net) * net.num_outputs)
    targets = targets.reshape(-1, net.num_outputs).astype(np.float32)
    batch = ArrayBatch(x=net.inputs, y=targets)
    logger = MemoryLogger()
    experiment = supervised.Experiment(
        networks.EnnArray(enn.apply, lambda *_: (params, state), enn.indexer),
        losses.average_single_index_loss(single_loss, 20),
        optax.sign_sgd(1e-2),
        iter([batch] * 30),
        logger=logger,
        init_x=inputs,
    )
    experiment.train(30)
    history = [float(row["loss"]) for row in logger.rows]
    assert np.isfinite(history).all()
    assert np.mean(history[-5:]) < np.mean(history[:5])
