"""The contract that every epistemic network keeps."""

import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import losses, networks, supervised
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.networks.descriptors import DESCRIPTORS, Descriptor

# All tests of a network run in one process, which makes and compiles it once.
pytestmark = pytest.mark.parametrize(
    "net",
    [
        pytest.param(net, id=net.name, marks=pytest.mark.xdist_group(net.name))
        for net in DESCRIPTORS
    ],
)

NUM_INDICES = 5


@functools.lru_cache(maxsize=2)
def _init(net: Descriptor, key_fn: Any = jax.random.PRNGKey) -> tuple[Any, ...]:
    enn = net.make()
    index = enn.indexer(key_fn(1))
    params, state = jax.jit(enn.init)(key_fn(0), net.inputs, index)
    return enn, params, state, index


def _indices(enn: Any) -> Any:
    return jax.vmap(enn.indexer)(jax.random.split(jax.random.PRNGKey(3), NUM_INDICES))


@functools.lru_cache(maxsize=2)
def _predict(enn: Any) -> Any:
    def predict(params: Any, state: Any, inputs: Any, index: Any) -> jax.Array:
        return networks.parse_net_output(enn.apply(params, state, inputs, index)[0])

    return jax.jit(predict)


def _batch_size(net: Descriptor) -> int:
    return len(jax.tree.leaves(net.inputs)[0])


@pytest.mark.strict
def test_apply_gives_finite_float_predictions_and_keeps_the_state_tree(
    net: Descriptor,
) -> None:
    enn, params, state, index = _init(net)
    preds = _predict(enn)(params, state, net.inputs, index)
    _, new_state = jax.eval_shape(enn.apply, params, state, net.inputs, index)
    assert preds.shape == (_batch_size(net), net.num_outputs)
    assert jnp.issubdtype(preds.dtype, jnp.floating)
    assert np.isfinite(preds).all()
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    for new, old in zip(
        jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True
    ):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_parameters_and_predictions_are_float32(net: Descriptor) -> None:
    enn, params, state, index = _init(net)
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == jnp.float32
    assert _predict(enn)(params, state, net.inputs, index).dtype == jnp.float32


def test_jit_agrees_with_eager(net: Descriptor) -> None:
    enn, params, state, index = _init(net)
    args = (params, state, net.inputs, index)
    np.testing.assert_allclose(
        _predict(enn)(*args),
        networks.parse_net_output(enn.apply(*args)[0]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_vmap_over_indices_agrees_with_one_at_a_time(net: Descriptor) -> None:
    enn, params, state, _ = _init(net)
    indices = _indices(enn)
    one = _predict(enn)
    many = jax.jit(jax.vmap(one.__wrapped__, in_axes=(None, None, None, 0)))
    expected = [
        one(params, state, net.inputs, jax.tree.map(lambda z, i=i: z[i], indices))
        for i in range(NUM_INDICES)
    ]
    np.testing.assert_allclose(
        many(params, state, net.inputs, indices),
        np.stack(expected),
        rtol=1e-4,
        atol=1e-5,
    )


def test_many_indices_cost_at_most_as_much_as_one_at_a_time(net: Descriptor) -> None:
    enn, params, state, index = _init(net)

    def flops(fn: Any, index: Any) -> float:
        lowered = jax.jit(fn).lower(params, state, net.inputs, index)
        return lowered.cost_analysis()["flops"]

    predict = _predict(enn).__wrapped__
    many = jax.vmap(predict, in_axes=(None, None, None, 0))
    single = flops(predict, index)
    assert flops(many, _indices(enn)) <= 1.1 * NUM_INDICES * single


def test_gradients_are_finite_and_agree_with_vmap_of_grad(net: Descriptor) -> None:
    enn, params, state, _ = _init(net)
    indices = _indices(enn)

    def loss(params: Any, index: Any) -> jax.Array:
        preds = _predict(enn).__wrapped__(params, state, net.inputs, index)
        return jnp.sum(jnp.sin(preds))

    def total(params: Any) -> jax.Array:
        return jnp.sum(jax.vmap(loss, in_axes=(None, 0))(params, indices))

    @jax.jit
    def both(params: Any) -> Any:
        each = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, indices)
        return jax.grad(total)(params), each

    grads, each = both(params)
    for leaf, parts in zip(jax.tree.leaves(grads), jax.tree.leaves(each), strict=True):
        assert np.isfinite(leaf).all()
        np.testing.assert_allclose(leaf, parts.sum(0), rtol=1e-3, atol=1e-4)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_training_lowers_the_loss(net: Descriptor) -> None:
    def single_loss(apply: Any, params: Any, state: Any, batch: Any, index: Any) -> Any:
        out, new_state = apply(params, state, batch.x, index)
        preds = networks.parse_net_output(out)
        return jnp.mean(jnp.square(preds - batch.y)), (new_state, {})

    targets = np.linspace(-2, 2, _batch_size(net) * net.num_outputs)
    targets = targets.reshape(-1, net.num_outputs).astype(np.float32)
    batch = ArrayBatch(x=net.inputs, y=targets)
    logger = MemoryLogger()
    experiment = supervised.Experiment(
        net.make(),
        losses.average_single_index_loss(single_loss, NUM_INDICES),
        optax.adam(1e-2),
        iter([batch] * 30),
        logger=logger,
        init_x=net.inputs,
    )
    experiment.train(30)
    history = [float(row["loss"]) for row in logger.rows]
    assert np.isfinite(history).all()
    assert np.mean(history[-5:]) < np.mean(history[:5])


def test_saved_parameters_give_the_same_predictions(net: Descriptor) -> None:
    enn, params, state, index = _init(net)
    leaves, structure = jax.tree.flatten((params, state))
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file) as stored:
        loaded = [stored[f"arr_{i}"] for i in range(len(leaves))]
    np.testing.assert_array_equal(
        _predict(enn)(*jax.tree.unflatten(structure, loaded), net.inputs, index),
        _predict(enn)(params, state, net.inputs, index),
    )


def test_typed_and_legacy_keys_give_the_same_numbers(net: Descriptor) -> None:
    results = []
    for key_fn in (jax.random.PRNGKey, jax.random.key):
        enn, params, state, index = _init(net, key_fn)
        results.append(_predict(enn)(params, state, net.inputs, index))
    np.testing.assert_array_equal(*results)
