"""The fused loop against the same training written one step at a time."""

import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import base, losses, metrics, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from enn.supervised import chunks
from tests.support import tiny
from tests.support.fast import compiled_init

NUM_STEPS = 50


@functools.cache
def make_enn() -> Any:
    """Logits x·w, with the index as the prior."""

    def apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
        train = inputs @ params["linear"]["w"]
        prior = jnp.broadcast_to(index[None], train.shape)
        return networks.OutputWithPrior(train, prior), state

    def init(key: Any, inputs: Any, index: Any) -> Any:
        return {"linear": {"w": jax.random.normal(key, [3, 2])}}, {}

    return base.EpistemicNetwork(apply, init, networks.GaussianIndexer(2))


def make_data(num_data: int = 12, seed: int = 0) -> ArrayBatch:
    rng = np.random.default_rng(seed)
    return ArrayBatch(
        x=rng.normal(size=(num_data, 3)), y=rng.integers(0, 2, (num_data, 1))
    )


LOSS = losses.average_single_index_loss(losses.XentLoss(2), 2)
OPTIMIZER = optax.adam(1e-2)


class Counted:
    """An iterator that counts what is pulled from it."""

    def __init__(self, batches: Iterator[Any]):
        self.batches, self.count = batches, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self.batches)
        self.count += 1
        return batch


@functools.cache
def step_functions(enn: Any) -> tuple[Any, Any]:
    """One update, and the predictions of four samples."""

    @jax.jit
    def update(params: Any, state: Any, opt_state: Any, batch: Any, key: Any) -> Any:
        (loss, (state, _)), grads = jax.value_and_grad(
            lambda p: LOSS(enn, p, state, batch, key), has_aux=True
        )(params)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

    @jax.jit
    def forward(params: Any, state: Any, x: Any, key: Any) -> Any:
        indices = [enn.indexer(k) for k in jax.random.split(key, 4)]
        outs = [enn.apply(params, state, x, z)[0] for z in indices]
        return jnp.stack([networks.parse_net_output(out) for out in outs])

    return update, forward


def one_step_at_a_time(
    enn: Any,
    batches: Iterator[ArrayBatch],
    num_steps: int,
    train_log_freq: int | None = 1,
    eval_dataset: Iterator[ArrayBatch] | None = None,
    eval_log_freq: int | None = 1,
) -> tuple[Any, list[dict[str, Any]]]:
    """The specification of training, as plainly as it can be written."""
    rng = hk.PRNGSequence(0)
    init_x = next(batches).x
    index = enn.indexer(next(rng))
    params, state = enn.init(next(rng), init_x, index)
    opt_state = OPTIMIZER.init(params)
    rows: list[dict[str, Any]] = []
    update, forward = step_functions(enn)
    for step in range(1, num_steps + 1):
        batch = next(batches)
        params, state, opt_state, loss = update(
            params, state, opt_state, batch, next(rng)
        )
        if train_log_freq and step % train_log_freq == 0:
            rows.append({"dataset": "train", "step": step, "sgd": True, "loss": loss})
        if eval_dataset and eval_log_freq and step % eval_log_freq == 0:
            batch = next(eval_dataset)
            logits = forward(params, state, batch.x, next(rng))
            nll = metrics.make_nll_marginal_calculator()(logits, batch.y)
            rows.append({"dataset": "test", "step": step, "sgd": False, "nll": nll})
    return params, rows


def assert_same_rows(rows: list[Any], expected: list[Any]) -> None:
    assert len(rows) == len(expected)
    for row, want in zip(rows, expected, strict=True):
        assert set(row) == set(want)
        for name, value in want.items():
            if isinstance(value, (str, bool, int)):
                assert row[name] == value
            else:
                np.testing.assert_allclose(row[name], value, rtol=1e-5, atol=1e-6)


def assert_same_params(params: Any, expected: Any) -> None:
    for leaf, want in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(leaf, want, rtol=1e-4, atol=1e-6)


def make_experiment(dataset: Any, **kwargs: Any) -> tuple[Any, MemoryLogger]:
    logger = MemoryLogger()
    experiment = supervised.Experiment(
        make_enn(), LOSS, optax.adam(1e-2), dataset, seed=0, logger=logger, **kwargs
    )
    return experiment, logger


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train_log_freq", "eval_log_freq", "in_memory"),
    [
        (train, evaluate, (i + j) % 2 == 0)
        for i, train in enumerate([1, 3, 0])
        for j, evaluate in enumerate([1, 7, 20, None])
    ],
)
def test_fused_training_equals_one_step_at_a_time(
    train_log_freq: int, eval_log_freq: int | None, in_memory: bool
) -> None:
    def dataset() -> Iterator[ArrayBatch]:
        batches = utils.make_batch_iterator(make_data(), batch_size=5)
        return batches if in_memory else itertools.chain(batches)

    def eval_dataset() -> Iterator[ArrayBatch]:
        return utils.make_batch_iterator(make_data(seed=1), batch_size=6)

    experiment, logger = make_experiment(
        dataset(),
        train_log_freq=train_log_freq,
        eval_datasets={"test": eval_dataset()},
        eval_metrics={"nll": metrics.make_nll_marginal_calculator()},
        eval_enn_samples=4,
        eval_log_freq=eval_log_freq,
    )
    experiment.train(NUM_STEPS - 23)
    experiment.train(23)
    params, rows = one_step_at_a_time(
        make_enn(), dataset(), NUM_STEPS, train_log_freq, eval_dataset(), eval_log_freq
    )
    assert experiment.step == NUM_STEPS
    assert_same_params(experiment.state.params, params)
    assert_same_rows(logger.rows, rows)


@pytest.mark.slow
def test_batches_whose_shape_changes_midway() -> None:
    def dataset() -> Iterator[ArrayBatch]:
        sizes = [5] * 9 + [3] * 2 + [5] + [3] + [5] * (NUM_STEPS - 12)
        return iter([make_data(size, seed) for seed, size in enumerate(sizes)])

    counted = Counted(dataset())
    experiment, logger = make_experiment(counted)
    experiment.train(NUM_STEPS)
    params, rows = one_step_at_a_time(make_enn(), dataset(), NUM_STEPS)
    assert_same_params(experiment.state.params, params)
    assert_same_rows(logger.rows, rows)
    assert counted.count == NUM_STEPS + 1


@pytest.mark.slow
def test_an_iterator_that_ends_early_leaves_exactly_the_steps_done() -> None:
    def dataset() -> Iterator[ArrayBatch]:
        return itertools.islice(utils.make_batch_iterator(make_data(), 5), 38)

    experiment, logger = make_experiment(dataset())
    with pytest.raises(StopIteration, match="ended after step 37"):
        experiment.train(NUM_STEPS)
    params, rows = one_step_at_a_time(make_enn(), dataset(), 37)
    assert experiment.step == 37
    assert_same_params(experiment.state.params, params)
    assert_same_rows(logger.rows, rows)


def test_an_error_of_the_data_is_raised_after_the_batches_before_it() -> None:
    def dataset() -> Iterator[ArrayBatch]:
        yield from itertools.islice(utils.make_batch_iterator(make_data(), 5), 10)
        raise OSError("disk")

    experiment = tiny.make_experiment(dataset())
    with pytest.raises(OSError, match="disk"):
        experiment.train(NUM_STEPS)
    assert experiment.step == 9
    assert [row["step"] for row in experiment.logger.rows] == list(range(1, 10))


def test_never_pulls_more_batches_than_it_trains() -> None:
    counted = Counted(itertools.chain(utils.make_batch_iterator(make_data(), 5)))
    experiment = tiny.make_experiment(counted)
    assert counted.count == 1
    for num_steps in (11, 14):
        before = counted.count
        experiment.train(num_steps)
        assert counted.count == before + num_steps


def test_in_memory_iterator_stands_where_training_left_it() -> None:
    dataset = tiny.make_batches()
    tiny.make_experiment(dataset).train(17)
    assert dataset.state()["position"] == 18 * 5


def test_chunks_stay_within_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(64)
    row_bytes = 3 * 8 + 8 + 8 + 8  # x, y, data_index, weights
    monkeypatch.setattr(chunks, "MAX_BYTES", 5 * 32 * row_bytes)
    batches = utils.make_batch_iterator(data, 32)
    generic = chunks.ChunkReader([chunks.Stream(itertools.chain(batches))])
    chunk = generic.read(1, 50)
    assert chunk.num_steps == 4
    assert chunk.batches[0].x.shape == (4, 32, 3)
    assert batches.state()["position"] == 4 * 32
    # Of data in memory a chunk holds the numbers of rows alone.
    batches = utils.make_batch_iterator(data, 32)
    chunk = chunks.ChunkReader([chunks.Stream(batches)]).read(1, 50)
    assert chunk.batches[0].shape == (32, 32)
    expected = utils.make_batch_iterator(data, 32).take(32)
    np.testing.assert_allclose(chunk.data[0].x[chunk.batches[0]], expected.x, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="concerns CPU alone")
def test_convolutions_train_outside_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a loop XLA runs them up to 30 times slower on CPU."""

    def net(x: jax.Array) -> jax.Array:
        return hk.nets.MLP([2])(hk.Flatten()(hk.Conv2D(2, 2)(x)))

    def batches() -> Iterator[ArrayBatch]:
        x = np.random.default_rng(0).normal(size=(8, 3, 3, 1)).astype(np.float32)
        data = ArrayBatch(x=x, y=np.arange(8)[:, None] % 2)
        return utils.make_batch_iterator(data, 4)

    enn = compiled_init(networks.wrap_net_fn_as_enn(net))
    params, rows = one_step_at_a_time(enn, batches(), 5)
    monkeypatch.delattr(jax.lax, "fori_loop")
    logger = MemoryLogger()
    experiment = supervised.Experiment(enn, LOSS, OPTIMIZER, batches(), logger=logger)
    experiment.train(5)
    assert_same_params(experiment.state.params, params)
    assert_same_rows(logger.rows, rows)


def test_metrics_other_than_scalars_are_logged_by_step() -> None:
    def loss_fn(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
        loss, (state, _) = tiny.loss_fn(enn, params, state, batch, key)
        return loss, (state, {"key": key, "constant": 2.0})

    experiment = tiny.make_experiment(loss_fn=loss_fn, seed=3)
    experiment.train(6)
    rng = hk.PRNGSequence(3)
    keys = [next(rng) for _ in range(8)][2:]
    for row, key in zip(experiment.logger.rows, keys, strict=True):
        np.testing.assert_array_equal(row["key"], key)
        assert row["constant"] == 2.0


def test_optimizers_that_need_the_parameters_work() -> None:
    experiment = tiny.make_experiment(optimizer=optax.adamw(1e-2, weight_decay=20.0))
    before = np.linalg.norm(experiment.state.params["linear"]["w"])
    experiment.train(100)
    assert np.linalg.norm(experiment.state.params["linear"]["w"]) < 0.5 * before


@pytest.mark.slow
def test_integer_network_state_keeps_its_type_and_counts_steps() -> None:
    def net(x: jax.Array) -> jax.Array:
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), is_training=True)
        return x

    model = hk.without_apply_rng(hk.transform_with_state(net))
    experiment = supervised.Experiment(
        compiled_init(networks.EnsembleWithState(model, 1)),
        LOSS,
        optax.adam(1e-2),
        utils.make_batch_iterator(make_data()),
        logger=MemoryLogger(),
    )
    experiment.train(9)
    counters = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            experiment.state.network_state
        )
        if "counter" in jax.tree_util.keystr(path)
    ]
    assert counters
    for counter in counters:
        assert counter.dtype == jnp.int32
        np.testing.assert_array_equal(counter, 9)


def test_predict_uses_the_index_of_the_key() -> None:
    enn = make_enn()
    experiment = supervised.Experiment(
        enn, LOSS, optax.adam(1e-2), utils.make_batch_iterator(make_data())
    )
    key, x = jax.random.key(5), make_data(4).x
    params, network_state, _ = experiment.state
    expected, _ = jax.jit(enn.apply)(params, network_state, x, enn.indexer(key))
    out = experiment.predict(x, key)
    np.testing.assert_allclose(out.train, expected.train, rtol=1e-6)
    np.testing.assert_allclose(out.prior, expected.prior, rtol=1e-6)


def test_loss_is_the_loss_at_the_current_state() -> None:
    experiment, batch = tiny.make_experiment(), next(tiny.make_batches())
    experiment.train(3)
    params, network_state, _ = experiment.state
    key = jax.random.PRNGKey(1)
    loss_fn = jax.jit(functools.partial(tiny.loss_fn, experiment.enn))
    expected, _ = loss_fn(params, network_state, batch, key)
    np.testing.assert_allclose(experiment.loss(batch, key), expected, rtol=1e-6)


def test_experiments_compare_and_hash_by_identity() -> None:
    dataset = tiny.make_batches()
    first, second = tiny.make_experiment(dataset), tiny.make_experiment(dataset)
    assert first != second
    assert len({first, second}) == 2


def test_progress_bar_counts_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = tiny.make_experiment()
    experiment.train(7, progress=True)
    assert "7/7" in capsys.readouterr().err
    experiment.train(5)
    assert capsys.readouterr().err == ""


class _OneLineLogger:
    """Writes each row as JSON, which knows no arrays."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, data: Any) -> None:
        self.lines.append(json.dumps(data))


@pytest.mark.parametrize("make", [tiny.make_experiment, tiny.make_multiloss_experiment])
def test_rows_are_plain_for_training_and_evaluation(make: Any) -> None:
    experiment = make()
    experiment.logger = logger = _OneLineLogger()
    experiment.train(20)
    rows = [json.loads(line) for line in logger.lines]
    assert [row["step"] for row in rows if row["dataset"] == "test"]
    assert all(
        type(value) in (int, float, str, bool) for row in rows for value in row.values()
    )


def test_optimiser_state_that_changes_its_type_trains_as_one_step_at_a_time() -> None:
    # The trace of rmsprop is bfloat16 at first, and float32 after the first step.
    optimizer = optax.rmsprop(jnp.float32(1e-3), momentum=0.9)
    enn = tiny.make_bfloat16_enn()
    together, apart = (
        tiny.make_experiment(enn=enn, optimizer=optimizer) for _ in range(2)
    )
    together.train(12)
    for _ in range(12):
        apart.train(1)
    tiny.assert_same_training(together, apart)
    types = {leaf.dtype for leaf in jax.tree.leaves(together.state.opt_state)}
    assert jnp.dtype(jnp.float32) in types
    params = jax.tree.leaves(together.state.params)
    assert {leaf.dtype for leaf in params} == {jnp.dtype(jnp.bfloat16)}
    assert np.isfinite(
        [row["loss"] for row in together.logger.rows if row["sgd"]]
    ).all()
