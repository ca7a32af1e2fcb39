"""A linear network with state, which compiles fast, and what trains it."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import base, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from enn.networks import indexers


def make_enn(num_outputs: int = 1, name: str = "linear") -> Any:
    """Returns x·w + u, with u in [0, 1] from the key that is the index.

    Its state counts calls, from a NumPy number on.
    """

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        noise = jax.random.key_data(index)[0].astype(float) / 2.0**32
        out = inputs @ params[name]["w"] + noise
        return out, {"calls": {"count": state["calls"]["count"] + 1}}

    def init(key: Any, inputs: Any, index: Any) -> Any:
        params = {name: {"w": jax.random.normal(key, [3, num_outputs])}}
        return params, {"calls": {"count": np.int64(0)}}

    return base.EpistemicNetwork(apply, init, indexers.PrngIndexer())


def make_bfloat16_enn() -> Any:
    """Returns the same network with parameters and outputs in half precision."""
    enn = make_enn()

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        out, state = enn.apply(params, state, inputs.astype(jnp.bfloat16), index)
        return out.astype(jnp.bfloat16), state

    def init(key: Any, inputs: Any, index: Any) -> Any:
        params, state = enn.init(key, inputs, index)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), state

    return base.EpistemicNetwork(apply, init, enn.indexer)


def make_data(seed: int = 0) -> ArrayBatch:
    rng = np.random.default_rng(seed)
    return ArrayBatch(x=rng.normal(size=(12, 3)), y=rng.normal(size=(12, 1)))


def make_batches(seed: int = 0) -> Any:
    return utils.make_batch_iterator(make_data(seed), batch_size=5, seed=seed)


def loss_fn(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
    out, state = enn.apply(params, state, batch.x, enn.indexer(key))
    return jnp.square(out - batch.y).mean(), (state, {})


def make_experiment(
    dataset: Iterator[ArrayBatch] | None = None,
    enn: Any = None,
    optimizer: Any = None,
    **kwargs: Any,
) -> supervised.Experiment:
    """Returns one that evaluates every 20 steps."""
    kwargs.setdefault("eval_datasets", {"test": make_batches(seed=1)})
    return supervised.Experiment(
        enn or make_enn(),
        kwargs.pop("loss_fn", loss_fn),
        optimizer or optax.adam(1e-2),
        make_batches() if dataset is None else dataset,
        logger=MemoryLogger(),
        eval_metrics={"mean": lambda logits, y: np.asarray(logits).mean() + y[0, 0]},
        eval_enn_samples=2,
        eval_log_freq=20,
        **kwargs,
    )


def make_multiloss_experiment(**kwargs: Any) -> supervised.MultilossExperiment:
    often = supervised.MultilossTrainer(loss_fn, make_batches(), name="often")
    seldom = supervised.MultilossTrainer(
        loss_fn, make_batches(seed=2), lambda step: step % 3 == 0, "seldom"
    )
    return supervised.MultilossExperiment(
        make_enn(),
        [often, seldom],
        optax.adam(1e-2),
        logger=MemoryLogger(),
        eval_datasets={"test": make_batches(seed=1)},
        eval_log_freq=20,
        **kwargs,
    )


def assert_identical(tree: Any, expected: Any) -> None:
    """Asserts that two trees hold the same bits in arrays of the same types."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, want in zip(
        jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True
    ):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(
            leaf.dtype, jax.dtypes.prng_key
        ):
            assert leaf.dtype == want.dtype
            leaf, want = jax.random.key_data(leaf), jax.random.key_data(want)
        assert type(leaf) is type(want)
        assert np.asarray(leaf).dtype == np.asarray(want).dtype
        np.testing.assert_array_equal(leaf, want)


def assert_same_training(experiment: Any, expected: Any) -> None:
    """Asserts that all that training changes is the same, to the last bit."""
    assert experiment.step == expected.step
    assert_identical(experiment.state, expected.state)
    assert_identical(experiment.rng.internal_state, expected.rng.internal_state)
