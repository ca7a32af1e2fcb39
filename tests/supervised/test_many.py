"""Runs that train together have the numbers of each one alone."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.supervised import many_cases
from tests.supervised.many_cases import (
    HYPERS,
    SEEDS,
    make_alone,
    make_batches,
    make_data,
    make_many,
    summary,
)
from tests.support import tiny

ROOT = pathlib.Path(__file__).parents[2]
RUNS = range(4)
WIDE = utils.make_batch_iterator(ArrayBatch(x=np.ones([6, 4]), y=np.zeros(6)), 5)


def own_batches(run: int) -> Any:
    """Data that differ from run to run in values and number of rows."""
    return make_batches(run, 8 + run)


def own_stream(run: int) -> Any:
    """The same, not known to be in memory."""
    return itertools.chain(own_batches(run))


def assert_close(tree: Any, expected: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(
        lambda leaf, want: np.testing.assert_allclose(leaf, want, 2e-5, 2e-5),
        tree,
        expected,
    )


def assert_same_run(many: Any, run: int, alone: Any) -> None:
    """Asserts that a run has the state, rows and predictions of an experiment."""
    assert_close(many.run(run)[1], alone.state)
    rows = [row for row in many.logger.rows if row["run"] == run]
    assert len(rows) == len(alone.logger.rows)
    for row, want in zip(rows, alone.logger.rows, strict=True):
        hyper = {name: np.float32(values[run]) for name, values in HYPERS.items()}
        assert {name: np.float32(row[name]) for name in hyper} == hyper
        assert row["seed"] == SEEDS[run]
        assert set(row) == set(want) | set(hyper) | {"run", "seed"}
        assert {k: row[k] for k in ("dataset", "step", "sgd")} == {
            k: want[k] for k in ("dataset", "step", "sgd")
        }
        numbers = sorted(set(want) - {"dataset"})
        assert_close([row[k] for k in numbers], [want[k] for k in numbers])
    x, key = make_data().x, jax.random.key(5)
    together = jax.tree.map(lambda leaf: leaf[run], many.predict(x, key))
    assert_close(together, alone.predict(x, key))


@pytest.mark.parametrize("runs_at_once", [None, 3])
@pytest.mark.slow
def test_runs_on_the_same_data_train_as_alone(runs_at_once: int | None) -> None:
    many = make_many(runs_at_once=runs_at_once)
    many.train(12)
    many.train(13)
    assert many.step == 25
    assert many.finite.tolist() == [True] * 4
    for run in RUNS if runs_at_once is None else [3]:
        alone = make_alone(run)
        alone.train(25)
        assert_same_run(many, run, alone)
        sampled = many.sample(make_data().x, 5, jax.random.key(2))[run]
        enn, state = many.run(run)
        want = networks.make_batch_fwd(enn, 5)
        assert sampled.shape == want(*state[:2], make_data().x).shape


@pytest.mark.parametrize("make_dataset", [own_batches, own_stream])
@pytest.mark.slow
def test_runs_on_their_own_data_train_as_alone(
    make_dataset: Callable[[int], Any],
) -> None:
    many = make_many(datasets=[make_dataset(run) for run in RUNS])
    many.train(21)
    for run in RUNS:
        alone = make_alone(run, own_batches(run))
        alone.train(21)
        assert_same_run(many, run, alone)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.slow
def test_priors_of_each_run_are_computed_once_for_each_row(own: bool) -> None:
    """Also where the functions themselves differ from run to run."""
    computed: list[tuple[float, ...]] = []

    def make_enn(hyper: Any) -> Any:
        def prior_fn(x: Any) -> Any:
            out = jax.numpy.sin(hyper["frequency"] * x)
            jax.debug.callback(lambda *at: computed.append(at), hyper["frequency"], x)
            return out

        ensemble = networks.MLPEnsembleMatchedPrior([4, 3], num_ensemble=2)
        priors = [prior_fn, jax.numpy.square]
        return networks.EnnWithAdditivePrior(
            ensemble, networks.combine_functions_choice_via_index(priors)
        )

    def make(hypers: Any, **kwargs: Any) -> supervised.ManyExperiments:
        return supervised.ManyExperiments(
            make_enn,
            lambda *_: losses.average_single_index_loss(losses.XentLoss(3), 4),
            lambda _: optax.sgd(0.1),
            logger=MemoryLogger(),
            init_x=make_data().x,
            hypers={"frequency": hypers},
            **kwargs,
        )

    frequencies = [1.0, 3.0, 10.0]

    def datasets(wrap: Any) -> dict[str, Any]:
        if own:
            return {"datasets": [wrap(own_batches(run)) for run in range(3)]}
        return {"dataset": wrap(make_batches())}

    def met(frequency: float) -> list[float]:
        """Returns the first features of rows that the prior was computed for."""
        jax.effects_barrier()
        batches = [x for at, x in computed if at == frequency]
        return np.concatenate([x[:, 0] for x in batches]).tolist()

    many = make(frequencies, **datasets(iter))
    computed.clear()
    for steps in (1, 6, 30):
        many.train(steps)
    for run, frequency in enumerate(frequencies):
        rows = make_data(run, 8 + run).x if own else make_data().x
        assert set(met(frequency)) == set(rows[:, 0].tolist())
        # Blocks of 5 rows: those of the first batch, then the rest.
        assert len(met(frequency)) <= 20
    plain = make(frequencies, **datasets(itertools.chain))
    computed.clear()
    plain.train(37)
    assert len(met(1.0)) >= 37 * 5
    assert_close(many.state, plain.state)


@pytest.mark.slow
def test_what_no_step_changes_is_computed_once_for_many_steps() -> None:
    """Here the prior function at fixed inputs, of one run after the other."""
    computed: list[Any] = []

    def make_enn(hyper: Any) -> Any:
        def prior_fn(x: Any, index: Any) -> Any:
            out = jax.numpy.sin(hyper["frequency"] * x)
            jax.debug.callback(lambda at: computed.append(at), hyper["frequency"])
            return out

        ensemble = networks.MLPEnsembleMatchedPrior([4, 3], num_ensemble=2)
        return networks.EnnWithAdditivePrior(ensemble, prior_fn)

    def make_loss(enn: Any, hyper: Any) -> Any:
        loss = losses.average_single_index_loss(losses.XentLoss(3), 4)

        def at_fixed(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
            return loss(enn, params, state, make_data(), key)

        return at_fixed

    many = supervised.ManyExperiments(
        make_enn,
        make_loss,
        lambda _: optax.sgd(0.1),
        (batch for batch in make_batches()),
        logger=MemoryLogger(),
        init_x=make_data().x,
        hypers={"frequency": [1.0, 3.0]},
    )
    computed.clear()
    many.train(400)
    jax.effects_barrier()
    assert set(map(float, computed)) == {1.0, 3.0}
    assert len(computed) < 100  # Twice in each of a few dispatches, not in 400 steps.


@pytest.mark.slow
def test_given_inputs_leave_the_first_batch_to_training() -> None:
    many, alone = make_many(init_x=make_data().x), make_alone(1, init_x=make_data().x)
    many.train(4)
    alone.train(4)
    assert_same_run(many, 1, alone)


@pytest.mark.slow
def test_runs_differ_in_seeds_alone_and_share_one_seed() -> None:
    def make(**kwargs: Any) -> supervised.ManyExperiments:
        parts = (lambda _: tiny.make_enn(), lambda *_: tiny.loss_fn)
        optimizer = optax.adam(1e-2)
        return supervised.ManyExperiments(
            *parts, lambda _: optimizer, logger=MemoryLogger(), **kwargs
        )

    seeds = make(dataset=tiny.make_batches(), seeds=[4, 0])
    data = make(datasets=[tiny.make_batches(), tiny.make_batches(1)])
    alone = tiny.make_experiment(eval_datasets={})
    for experiment in (seeds, data, alone):
        experiment.train(7)
    assert_close(seeds.run(1)[1], alone.state)
    assert_close(data.run(0)[1], alone.state)
    assert seeds.state.network_state["calls"]["count"].tolist() == [7, 7]


@pytest.mark.slow
def test_an_optimiser_may_change_the_types_of_its_state(tmp_path: Any) -> None:
    def init(params: Any) -> Any:
        return jnp.zeros([], jnp.int32)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda g: -0.1 * g, grads), state + 1.0

    optimizer = optax.GradientTransformation(init, update)

    def make() -> supervised.ManyExperiments:
        return supervised.ManyExperiments(
            lambda _: tiny.make_enn(),
            lambda *_: tiny.loss_fn,
            lambda _: optimizer,
            tiny.make_batches(),
            seeds=[0, 1],
            logger=MemoryLogger(),
        )

    many, resumed = make(), make()
    many.train(5)
    assert many.state.opt_state.dtype == jnp.float32
    assert many.state.opt_state.tolist() == [5.0, 5.0]
    many.save(tmp_path)
    resumed.restore(tmp_path)
    tiny.assert_identical(resumed.state, many.state)


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_a_resumed_sweep_has_the_same_bits(own: bool, tmp_path: pathlib.Path) -> None:
    def make() -> supervised.ManyExperiments:
        return (
            make_many(datasets=[own_batches(r) for r in RUNS]) if own else (make_many())
        )

    whole, killed, resumed = make(), make(), make()
    whole.train(25)
    killed.train(13, save_dir=tmp_path, save_every=6)
    assert supervised.saved_steps(tmp_path) == [6, 12, 13]
    resumed.restore(tmp_path, step=12)
    assert resumed.step == 12
    resumed.train(13)
    tiny.assert_identical(resumed.state, whole.state)
    rows = [row for row in whole.logger.rows if row["step"] > 12]
    assert resumed.logger.rows == rows


def test_a_save_of_other_hyperparameters_is_refused(tmp_path: pathlib.Path) -> None:
    make_many().save(tmp_path)
    scales = [0.0, 1.0, 2.0, 1.0]
    other = make_many(hypers={**HYPERS, "prior_scale": scales})
    with pytest.raises(ValueError, match="is of another network"):
        other.restore(tmp_path)
    with pytest.raises(ValueError, match="holds saves of another run"):
        other.train(1, save_dir=tmp_path)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.slow
def test_any_number_of_processors_gives_the_same_runs(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state(num_processors: int) -> Any:
        monkeypatch.setenv("NPROC", str(num_processors))
        data = {"datasets": list(map(own_batches, RUNS))} if own else {}
        many = make_many(None if own else make_batches(), **data)
        many.train(12)
        rows = [list(row.values()) for row in many.logger.rows]
        return many.state, [[v for v in row if not isinstance(v, str)] for row in rows]

    one = state(1)
    for num_processors in (2, 3, 16):  # 3: two runs each, the last ones twice.
        assert_close(state(num_processors), one)


@pytest.mark.slow
def test_one_run_that_diverges_changes_no_other() -> None:
    rates = [*HYPERS["learning_rate"][:3], np.inf]
    many = make_many(hypers={**HYPERS, "learning_rate": rates})
    with pytest.warns(RuntimeWarning, match=r"Runs \[3\] have a loss or parameters"):
        many.train(6)
    assert many.finite.tolist() == [True, True, True, False]
    alone = make_alone(1)
    alone.train(6)
    assert_close(many.run(1)[1], alone.state)


@pytest.mark.slow
def test_experiments_of_the_same_functions_compile_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = []

    def make_optimizer(hyper: Any) -> Any:
        traced.append(hyper)
        return many_cases.make_optimizer(hyper)

    monkeypatch.setenv("NPROC", "1")
    many = make_many(make_optimizer=make_optimizer)
    again = make_many(
        make_batches(3), seeds=[5, 6, 7, 8], make_optimizer=make_optimizer
    )
    before = len(traced)
    many.train(10)  # Evaluates, too.
    first = len(traced)
    again.train(200)
    assert len(traced) == first > before


def test_a_data_set_that_ends_stops_after_its_last_batch() -> None:
    batches = make_batches()
    many = make_many(itertools.islice(batches, 5), init_x=make_data().x)
    with pytest.raises(StopIteration, match="ended after step 5"):
        many.train(9)
    assert many.step == 5
    assert len(many.logger.rows) == 5 * 4


@pytest.mark.slow
def test_interrupting_saves_and_then_stops(tmp_path: pathlib.Path) -> None:
    def interrupted() -> Any:
        yield from itertools.islice(make_batches(), 4)
        raise KeyboardInterrupt

    many = make_many(interrupted())
    with (
        pytest.warns(UserWarning, match="cannot report its position"),
        pytest.raises(KeyboardInterrupt),
    ):
        many.train(9, save_dir=tmp_path)
    assert supervised.saved_steps(tmp_path) == [3]  # The first batch initialised.


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"seeds": [0, 1]},
            r"equally many .* got hypers\['l2'\] \[4\], .* seeds \[2\]",
        ),
        ({"hypers": None, "seeds": 0}, "got none of them"),
        ({"hypers": {"l2": 0.1}}, r"hypers\['l2'\] \[\]"),
        ({"hypers": None, "seeds": []}, "at least one"),
        ({"dataset": make_batches(), "datasets": [own_batches(0)] * 4}, "Give either"),
        ({"datasets": [own_batches(0)] * 4}, "must be different iterators"),
        (
            {"datasets": [*map(own_batches, range(3)), WIDE]},
            "same fields and shapes; those of run 3",
        ),
        ({"runs_at_once": 0}, "runs_at_once must be an integer >= 1"),
        ({"train_log_freq": -1}, "train_log_freq must be an integer >= 1"),
        ({"eval_enn_samples": 0}, "eval_enn_samples must be an integer >= 1"),
    ],
)
def test_wrong_arguments(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_many(**kwargs)


def test_wrong_labels_of_any_run_show_before_training() -> None:
    data = [own_batches(run) for run in RUNS]
    data[2].data.y[3] = 7
    with pytest.raises(ValueError, match=r"labels must be integers in \[0, 2\), got 7"):
        make_many(datasets=data)


def test_wrong_functions() -> None:
    def make(enn: Any, loss: Any) -> None:
        supervised.ManyExperiments(
            lambda _: enn,
            lambda *_: loss,
            lambda _: optax.sgd(0.1),
            tiny.make_batches(),
            seeds=[0, 1],
        )

    with pytest.raises(TypeError, match=r"enn must be an enn\.base\.Epistemic"):
        make("mlp", tiny.loss_fn)
    with pytest.raises(TypeError, match="is a loss at a single index"):
        make(tiny.make_enn(), losses.L2Loss())


@pytest.mark.slow
def test_a_run_out_of_range() -> None:
    with pytest.raises(ValueError, match="number must be one of 0, 1, 2, 3; got 4"):
        make_many().run(4)
    with pytest.raises(ValueError, match="num_batches must be an integer >= 0"):
        make_many().train(-1)
    with pytest.raises(ValueError, match="save_every needs save_dir"):
        make_many().train(1, save_every=2)


@pytest.mark.slow
@pytest.mark.xdist_group("mesh")
def test_a_mesh_trains_as_one_device(tmp_path: pathlib.Path) -> None:
    flags = "--xla_force_host_platform_device_count=4"
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    command = [sys.executable, "-m", "tests.supervised.many_cases", str(tmp_path)]
    subprocess.run(command, env=env, cwd=ROOT, check=True, timeout=240)
    results = json.loads((tmp_path / "results").read_text())
    assert results["on one device"] == 1
    assert "The 3 runs must divide over the 4 devices" in results["error"]
    shared = make_many()
    separate = make_many(datasets=[own_batches(run) for run in RUNS])
    for name, many in (("shared", shared), ("separate", separate)):
        many.train(12)
        expected = summary(many)
        for part in ("state", "prediction"):
            np.testing.assert_allclose(results[name][part], expected[part], 1e-5, 1e-5)
        losses = [
            [r["loss"] for r in s["rows"] if r["sgd"]]
            for s in (results[name], expected)
        ]
        np.testing.assert_allclose(*losses, 1e-5, 1e-5)
    assert results["resumed"]["state"] == results["shared"]["state"]


@pytest.mark.slow
def test_a_mesh_of_one_device_holds_all_runs() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ["data"])
    many = make_many(mesh=mesh)
    many.train(2)
    alone = make_alone(2)
    alone.train(2)
    assert_close(many.run(2)[1], alone.state)
