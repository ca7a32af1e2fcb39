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

# All tests of a network run in one process, which makes and compiles it once.
pytestmark = pytest.mark.parametrize(
    "net",
    [
        pytest.param(net, id=net.name, marks=pytest.mark.xdist_group(net.name))
        for net in DESCRIPTORS
    ],
    scope="module",
)


class Computed(NamedTuple):
    """What one compiled program says of a network: compiling takes all the time.

    Attributes:
      enn: the network.
      args: parameters, state, inputs and index of a call of `enn.apply`.
      preds: predictions there.
      new_state: state that the call returned.
      typed: parameters, state and predictions from typed random keys.
      indices: several indices, stacked.
      many: predictions at `indices` under `jax.vmap`.
      grads: gradient of the sum over `indices` of a function of the predictions.
      grads_each: its terms, under `jax.vmap`.
    """

    enn: Any
    args: tuple[Any, ...]
    preds: jax.Array
    new_state: Any
    typed: Any
    indices: Any
    many: jax.Array
    grads: Any
    grads_each: Any


@functools.lru_cache(maxsize=2)
def _computed(net: Descriptor) -> Computed:
    enn = net.make()

    def at_keys(key_fn: Any, inputs: Any) -> tuple[Any, ...]:
        index = enn.indexer(key_fn(1))
        params, state = enn.init(key_fn(0), inputs, index)
        preds, new_state = _predict(enn, params, state, inputs, index)
        return params, state, index, preds, new_state

    @jax.jit
    def compute(inputs: Any) -> Any:
        params, state, index, preds, new_state = at_keys(jax.random.PRNGKey, inputs)
        typed = at_keys(jax.random.key, inputs)
        indices = jax.vmap(enn.indexer)(jax.random.split(jax.random.key(3), 5))

        def predict(index: Any, params: Any = params) -> jax.Array:
            return _predict(enn, params, state, inputs, index)[0]

        def value(params: Any, index: Any) -> jax.Array:
            return jnp.sum(jnp.sin(predict(index, params)))

        def total(params: Any) -> jax.Array:
            return jnp.sum(jax.vmap(value, in_axes=(None, 0))(params, indices))

        return Computed(
            None,
            (params, state, inputs, index),
            preds,
            new_state,
            (typed[0], typed[1], typed[3]),
            indices,
            jax.vmap(predict)(indices),
            jax.grad(total)(params),
            jax.vmap(jax.grad(value), in_axes=(None, 0))(params, indices),
        )

    return compute(net.inputs)._replace(enn=enn)


def _predict(enn: Any, *args: Any) -> tuple[jax.Array, Any]:
    out, new_state = enn.apply(*args)
    return networks.parse_net_output(out), new_state


def _batch_size(net: Descriptor) -> int:
    return len(jax.tree.leaves(net.inputs)[0])


@pytest.mark.strict
def test_apply_gives_finite_float_predictions_and_keeps_the_state_tree(
    net: Descriptor,
) -> None:
    computed = _computed(net)
    preds, state = computed.preds, computed.args[1]
    assert preds.shape == (_batch_size(net), net.num_outputs)
    assert jnp.issubdtype(preds.dtype, jnp.floating)
    assert np.isfinite(preds).all()
    assert jax.tree.structure(computed.new_state) == jax.tree.structure(state)
    for new, old in zip(
        jax.tree.leaves(computed.new_state), jax.tree.leaves(state), strict=True
    ):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_parameters_and_predictions_are_float32(net: Descriptor) -> None:
    computed = _computed(net)
    for leaf in jax.tree.leaves((computed.args[0], computed.preds)):
        assert leaf.dtype == jnp.float32


def test_saved_parameters_give_eagerly_what_jit_gives(net: Descriptor) -> None:
    enn, args, preds, *_ = _computed(net)
    leaves, structure = jax.tree.flatten(args[:2])
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file) as stored:
        loaded = [stored[f"arr_{i}"] for i in range(len(leaves))]
    params, state = jax.tree.unflatten(structure, loaded)
    eager, _ = _predict(enn, params, state, *args[2:])
    np.testing.assert_allclose(eager, preds, rtol=1e-4, atol=1e-5)


def test_vmap_over_indices_agrees_with_one_at_a_time(net: Descriptor) -> None:
    enn, args, *_ = computed = _computed(net)
    for i, preds in enumerate(computed.many):
        index = jax.tree.map(lambda z, i=i: z[i], computed.indices)
        one, _ = _predict(enn, *args[:3], index)
        np.testing.assert_allclose(preds, one, rtol=1e-4, atol=1e-5)


def test_many_indices_cost_at_most_as_much_as_one_at_a_time(net: Descriptor) -> None:
    enn, (params, state, inputs, index), *_ = computed = _computed(net)

    def predict(index: Any, params: Any, state: Any, inputs: Any) -> jax.Array:
        return _predict(enn, params, state, inputs, index)[0]

    def flops(fn: Any, index: Any) -> float:
        lowered = jax.jit(fn).lower(index, params, state, inputs)
        return lowered.cost_analysis()["flops"]

    many = jax.vmap(predict, in_axes=(0, None, None, None))
    assert flops(many, computed.indices) <= 1.1 * len(computed.many) * flops(
        predict, index
    )


def test_gradients_are_finite_and_agree_with_vmap_of_grad(net: Descriptor) -> None:
    computed = _computed(net)
    grads = jax.tree.leaves(computed.grads)
    for leaf, parts in zip(grads, jax.tree.leaves(computed.grads_each), strict=True):
        assert np.isfinite(leaf).all()
        np.testing.assert_allclose(leaf, parts.sum(0), rtol=1e-3, atol=1e-4)
    assert any(np.abs(leaf).max() > 0 for leaf in grads)


def test_training_lowers_the_loss(net: Descriptor) -> None:
    def single_loss(apply: Any, params: Any, state: Any, batch: Any, index: Any) -> Any:
        out, new_state = apply(params, state, batch.x, index)
        preds = networks.parse_net_output(out)
        return jnp.mean(jnp.square(preds - batch.y)), (new_state, {})

    enn, (params, state, inputs, _), *_ = _computed(net)
    targets = np.linspace(-2, 2, _batch_size(net) * net.num_outputs)
    targets = targets.reshape(-1, net.num_outputs).astype(np.float32)
    batch = ArrayBatch(x=net.inputs, y=targets)
    logger = MemoryLogger()
    experiment = supervised.Experiment(
        networks.EnnArray(enn.apply, lambda *_: (params, state), enn.indexer),
        losses.average_single_index_loss(single_loss, 20),
        optax.adam(1e-2),
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
    legacy = (*computed.args[:2], computed.preds)
    jax.tree.map(np.testing.assert_array_equal, computed.typed, legacy)
