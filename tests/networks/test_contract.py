"""The contract that every epistemic network keeps."""

import functools
import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import losses, networks, supervised
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.networks.descriptors import DESCRIPTORS, Descriptor
from tests.support import cost

pytestmark = pytest.mark.parametrize(
    "net", DESCRIPTORS, ids=[net.name for net in DESCRIPTORS], scope="module"
)


class Computed(NamedTuple):
    """What is computed of a network, once: compiling takes all the time.

    One program initialises it, for legacy and for typed keys; another gives predictions
    and gradients at several indices. Eager operations are compiled once for all
    networks that share shapes.

    Attributes:
      enn: the network.
      args: parameters, state and inputs of `enn.apply`.
      eager: parameters and state, then predictions and new state, computed eagerly.
      typed: the same from typed random keys.
      indices: several indices, stacked.
      many: predictions at `indices` under `jax.vmap`.
      each: the same, one at a time.
      grads: gradient of the sum over `indices` of a function of the predictions.
      grads_each: its terms, one at a time.
    """

    enn: Any
    args: tuple[Any, ...]
    eager: tuple[Any, ...]
    typed: tuple[Any, ...]
    indices: Any
    many: jax.Array
    each: jax.Array
    grads: Any
    grads_each: Any


@functools.lru_cache(maxsize=2)
def _computed(net: Descriptor) -> Computed:
    enn = net.make()
    key_fns = (jax.random.PRNGKey, jax.random.key)

    @jax.jit
    def init(inputs: Any) -> Any:
        return [enn.init(key(0), inputs, enn.indexer(key(1))) for key in key_fns]

    eager, typed = (
        (*variables, *_predict(enn, *variables, net.inputs, enn.indexer(key(1))))
        for variables, key in zip(init(net.inputs), key_fns, strict=True)
    )
    args = (*eager[:2], net.inputs)
    indices = jax.vmap(enn.indexer)(jax.random.split(jax.random.key(3), 5))

    def value(index: Any, *args: Any) -> Any:
        preds, _ = _predict(enn, *args, index)
        return jnp.sum(jnp.sin(preds)), preds

    def total(indices: Any, *args: Any) -> Any:
        each = jax.vmap(value, (0, *[None] * len(args)))
        values, preds = each(indices, *args)
        return jnp.sum(values), preds

    @jax.jit
    def at_indices(indices: Any, *args: Any) -> Any:
        grad, grad_each = (jax.grad(fn, 1, has_aux=True) for fn in (total, value))
        grads, many = grad(indices, *args)
        grads_each, each = jax.lax.map(lambda index: grad_each(index, *args), indices)
        return many, each, grads, grads_each

    return Computed(enn, args, eager, typed, indices, *at_indices(indices, *args))


def _predict(enn: Any, *args: Any) -> tuple[jax.Array, Any]:
    out, new_state = enn.apply(*args)
    return networks.parse_net_output(out), new_state  # pyrefly: ignore[bad-return]


def _batch_size(net: Descriptor) -> int:
    return len(jax.tree.leaves(net.inputs)[0])


def _types(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.strict
def test_apply_gives_finite_float_predictions_and_keeps_the_state_tree(
    net: Descriptor,
) -> None:
    _, state, preds, new_state = _computed(net).eager
    assert preds.shape == (_batch_size(net), net.num_outputs)
    assert jnp.issubdtype(preds.dtype, jnp.floating)
    assert np.isfinite(preds).all()
    assert _types(new_state) == _types(state)


@pytest.mark.strict
def test_equal_rows_give_equal_outputs_whatever_the_batch(net: Descriptor) -> None:
    enn, args, (_, _, preds, _), *_ = _computed(net)
    equal_rows = jax.tree.map(lambda x: np.stack([x[0]] * len(x)), net.inputs)
    index = enn.indexer(jax.random.PRNGKey(1))
    repeated, _ = _predict(enn, *args[:2], equal_rows, index)
    if net.draws_per_row:
        assert (repeated[0] != repeated[1]).any()
        return
    np.testing.assert_allclose(repeated, repeated[:1].repeat(len(repeated), 0), 1e-5)
    if not net.batch_statistics:
        np.testing.assert_allclose(repeated[0], preds[0], rtol=1e-5, atol=1e-6)


def test_parameters_and_predictions_are_float32(net: Descriptor) -> None:
    params, _, preds, _ = _computed(net).eager
    for leaf in jax.tree.leaves((params, preds)):
        assert leaf.dtype == jnp.float32


def test_saved_parameters_give_eagerly_what_jit_gives(net: Descriptor) -> None:
    enn, args, *_ = computed = _computed(net)
    leaves, structure = jax.tree.flatten(args[:2])
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file) as stored:
        loaded = [stored[f"arr_{i}"] for i in range(len(leaves))]
    params, state = jax.tree.unflatten(structure, loaded)
    index = jax.tree.map(lambda z: z[0], computed.indices)
    eager, _ = _predict(enn, params, state, net.inputs, index)
    np.testing.assert_allclose(eager, computed.each[0], rtol=1e-4, atol=1e-5)


def test_vmap_over_indices_agrees_with_one_at_a_time(net: Descriptor) -> None:
    computed = _computed(net)
    np.testing.assert_allclose(computed.many, computed.each, rtol=1e-4, atol=1e-5)


def test_many_indices_cost_at_most_as_much_as_one_at_a_time(net: Descriptor) -> None:
    enn, args, *_ = computed = _computed(net)
    index = jax.tree.map(lambda z: z[0], computed.indices)

    def predict(index: Any, *args: Any) -> jax.Array:
        return _predict(enn, *args, index)[0]

    one = cost.flops(predict, index, *args)
    predict_all = jax.vmap(predict, in_axes=(0, None, None, None))
    many = cost.flops(predict_all, computed.indices, *args)
    assert many <= 1.1 * len(computed.many) * one


def test_gradients_are_finite_and_agree_with_one_at_a_time(net: Descriptor) -> None:
    computed = _computed(net)
    grads, parts = jax.tree.map(np.asarray, (computed.grads, computed.grads_each))
    for leaf in jax.tree.leaves(grads):
        assert np.isfinite(leaf).all()
    jax.tree.map(
        lambda leaf, part: np.testing.assert_allclose(leaf, part.sum(0), 1e-3, 1e-4),
        grads,
        parts,
    )
    assert any(leaf.any() for leaf in jax.tree.leaves(grads))


def test_training_lowers_the_loss(net: Descriptor) -> None:
    def single_loss(apply: Any, params: Any, state: Any, batch: Any, index: Any) -> Any:
        out, new_state = apply(params, state, batch.x, index)
        preds = networks.parse_net_output(out)
        return jnp.mean(jnp.square(preds - batch.y)), (new_state, {})

    enn, (params, state, inputs), *_ = _computed(net)
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


def test_typed_and_legacy_keys_give_the_same_numbers(net: Descriptor) -> None:
    computed = _computed(net)
    jax.tree.map(np.testing.assert_array_equal, computed.typed, computed.eager)
