"""Experiments that share their objects share what they compile, and nothing else."""

import contextlib
import functools
import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest

from enn import supervised, utils
from enn.loggers import MemoryLogger
from enn.supervised import programs
from tests.support import tiny


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Yields a list that gets an entry for every program compiled or loaded."""
    compiled: list[str] = []

    def note(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def cycle() -> Any:
    return itertools.cycle([next(tiny.make_batches())])


@functools.cache
def parts(kind: str) -> Any:
    """What experiments share: the network, optimiser and losses."""
    del kind  # Each test has its own.
    return tiny.make_enn(), optax.adam(1e-2)


def make_experiment(kind: str, seed: int = 0) -> Any:
    enn, optimizer = parts(kind)
    if kind == "several losses":
        often = supervised.MultilossTrainer(tiny.loss_fn, tiny.make_batches())
        seldom = supervised.MultilossTrainer(
            tiny.loss_fn, tiny.make_batches(2), lambda step: step % 3 == 0
        )
        return supervised.MultilossExperiment(
            enn,
            [often, seldom],
            optimizer,
            seed,
            MemoryLogger(),
            eval_datasets={"test": tiny.make_batches(1)},
            eval_log_freq=20,
        )
    dataset = cycle() if kind == "any iterator" else tiny.make_batches()
    mesh = jax.make_mesh((1,), ("data",)) if kind == "mesh" else None
    return tiny.make_experiment(dataset, enn, optimizer, seed=seed, mesh=mesh)


def use(experiment: Any) -> None:
    batch = next(tiny.make_batches())
    experiment.train(41)
    experiment.predict(batch.x, jax.random.PRNGKey(0))
    experiment.loss(batch, jax.random.PRNGKey(0))


KINDS = ["in memory", "any iterator", "several losses", "mesh"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_experiment_compiles_nothing(kind: str) -> None:
    with compilations() as compiled:
        use(make_experiment(kind))
        assert compiled
        compiled.clear()
        use(make_experiment(kind, seed=1))
    assert compiled == []


@pytest.mark.parametrize("make_dataset", [tiny.make_batches, cycle])
def test_one_program_trains_any_number_of_steps(make_dataset: Any) -> None:
    enn, optimizer = parts("in memory")
    experiment = tiny.make_experiment(
        make_dataset(), enn, optimizer, eval_datasets=None
    )
    experiment.train(1)
    with compilations() as compiled:
        for num_steps in (1, 2, 5, 500):
            experiment.train(num_steps)
    assert compiled == []
    assert experiment.step == 509


def test_seeds_of_shared_programs_stay_apart() -> None:
    first, second, again = (make_experiment("in memory", seed=s) for s in (0, 1, 0))
    for experiment in (first, second, again):
        experiment.train(7)
    tiny.assert_same_training(again, first)
    assert first.state.params["linear"]["w"][0] != second.state.params["linear"]["w"][0]


@pytest.mark.slow
def test_another_optimiser_or_loss_has_a_program_of_its_own() -> None:
    def zero_loss(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
        loss, aux = tiny.loss_fn(enn, params, state, batch, key)
        return 0 * loss, aux

    enn, _ = parts("in memory")
    start = tiny.make_experiment(enn=enn).state.params["linear"]["w"]
    fast = tiny.make_experiment(enn=enn, optimizer=optax.sgd(1.0))
    slow = tiny.make_experiment(enn=enn, optimizer=optax.sgd(0.5))
    still = tiny.make_experiment(enn=enn, optimizer=optax.sgd(0.5), loss_fn=zero_loss)
    for experiment in (fast, slow, still):
        experiment.train(1)
    moves = [e.state.params["linear"]["w"] - start for e in (fast, slow, still)]
    np.testing.assert_allclose(moves[0], 2 * moves[1], rtol=1e-4)
    np.testing.assert_array_equal(moves[2], 0)


@pytest.mark.slow
def test_programs_not_used_for_long_are_forgotten() -> None:
    networks = [tiny.make_enn() for _ in range(programs._MAX_KEPT + 1)]
    first = weakref.ref(networks[0])
    assert programs.predict(networks[0], None) is programs.predict(networks[0], None)
    for enn in networks:
        programs.predict(enn, None)
    del networks[0]
    gc.collect()
    assert first() is None


def test_data_that_grow_a_little_compile_nothing() -> None:
    # As in active learning: 9 rows and then 12, which both have room for 16.
    enn, optimizer = parts("growing")
    data = tiny.make_data(0)
    assert len(data.y) >= 12

    def train(num_rows: int) -> list[Any]:
        rows = jax.tree.map(lambda leaf: leaf[:num_rows], data)
        dataset = utils.make_batch_iterator(rows, batch_size=5, seed=1)
        experiment = tiny.make_experiment(dataset, enn, optimizer)
        with compilations() as compiled:
            experiment.train(20)
        return compiled

    assert train(9)
    assert not train(12)
