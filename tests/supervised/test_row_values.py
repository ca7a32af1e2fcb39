"""What does not change in training is computed once for each row of data in memory."""

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import numpy as np
import optax
import pytest

from enn import _known_rows, base, losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from enn.networks.ensembles import make_random_gp_ensemble_prior_fns
from enn.supervised import loop, row_values
from tests.support import cost
from tests.support.fast import abstract_variables, compiled, compiled_init

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3)).astype(np.float32)
DATA = ArrayBatch(x=X, y=RNG.integers(2, size=(11, 1)))
LOSS = losses.average_single_index_loss(losses.XentLoss(2), 4)


def _batch_norm(is_training: bool) -> hk.TransformedWithState:
    def net(x: Any) -> Any:
        return hk.Linear(2)(hk.BatchNorm(True, True, 0.9)(x, is_training))

    return hk.without_apply_rng(hk.transform_with_state(net))


def _on_frozen(is_training: bool) -> base.EpistemicNetwork:
    variables = compiled(_batch_norm(True).init)(jax.random.key(0), X)
    return networks.epinet.add_epinet(
        _batch_norm(is_training), *variables, features="linear", num_outputs=2
    )


def _linear_prior() -> base.EpistemicNetwork:
    epinet = networks.epinet.make_mlp_epinet([4, 2], [3], 2)
    priors = networks.make_mlp_ensemble_prior_fns([3, 2], X, 2)
    prior_fn = networks.combine_functions_linear_in_index(priors)
    return networks.EnnWithAdditivePrior(epinet, prior_fn)


def _einsum_prior() -> base.EpistemicNetwork:
    epinet = networks.epinet.make_mlp_epinet([4, 2], [3], 2)
    prior_fn = networks.make_ensemble_prior([3, 2], 2, X)
    return networks.EnnWithAdditivePrior(epinet, prior_fn)


def _einsum_ensemble() -> base.EpistemicNetwork:
    return networks.make_ensemble_mlp_with_prior_enn([4, 2], X, 3)


def _chosen_prior() -> base.EpistemicNetwork:
    ensemble = networks.MLPEnsembleMatchedPrior([4, 2], num_ensemble=2)
    gps = make_random_gp_ensemble_prior_fns(3, 2, 4, 1.0, 2)
    prior_fn = networks.combine_functions_choice_via_index(gps)
    return networks.EnnWithAdditivePrior(ensemble, prior_fn)


NETWORKS = [
    pytest.param(
        lambda: networks.MLPEnsembleMatchedPrior([4, 2], None, 3), 1, id="MLPs"
    ),
    pytest.param(lambda: _on_frozen(False), 1, id="frozen base"),
    pytest.param(lambda: _on_frozen(True), 0, id="frozen base that sees the batch"),
    *(
        pytest.param(make, num_fixed, id=make.__name__, marks=pytest.mark.slow)
        for make, num_fixed in [
            (_chosen_prior, 2),
            (_linear_prior, 1),
            (_einsum_prior, 1),
            (_einsum_ensemble, 1),
        ]
    ),
]


def _train(enn: Any, dataset: Any, loss: Any = LOSS) -> supervised.Experiment:
    experiment = supervised.Experiment(
        enn, loss, optax.sgd(0.1), dataset, logger=MemoryLogger()
    )
    experiment.train(7)
    return experiment


def _batches(data: ArrayBatch = DATA) -> Any:
    return utils.make_batch_iterator(data, 4)


def _fixed(experiment: supervised.Experiment) -> int:
    (values,) = experiment._run._reader._values
    return len(values.on_device()) if values else 0


def _assert_same(one: supervised.Experiment, other: supervised.Experiment) -> None:
    for a, b in zip(*map(jax.tree.leaves, (one.state, other.state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "num_fixed"), NETWORKS)
def test_known_values_change_no_numbers(
    make: Callable[[], base.EpistemicNetwork], num_fixed: int
) -> None:
    enn = compiled_init(make())
    known = _train(enn, _batches())
    computed = _train(enn, (batch for batch in _batches()))
    assert (_fixed(known), _fixed(computed)) == (num_fixed, 0)
    _assert_same(known, computed)


@pytest.mark.slow
def test_other_inputs_than_the_batch_are_computed() -> None:
    def shifted(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
        moved = ArrayBatch(x=batch.x + 1, y=batch.y)
        loss, (state, metrics) = LOSS(enn, params, state, batch, key)
        other, _ = LOSS(enn, params, state, moved, key)
        return loss + other, (state, metrics)

    enn = compiled_init(networks.MLPEnsembleMatchedPrior([4, 2], num_ensemble=3))
    known = _train(enn, _batches(), shifted)
    assert _fixed(known) == 1
    _assert_same(known, _train(enn, (batch for batch in _batches()), shifted))


@pytest.mark.slow
def test_a_step_does_not_run_the_priors() -> None:
    x = np.ones((8, 32), np.float32)
    batch = ArrayBatch(x=x, y=np.zeros((8, 1), int))

    def flops(enn: Any, known: bool) -> float:
        variables = abstract_variables(enn, x)
        key = jax.random.key(0)
        pure_loss = loop.purify(enn, LOSS)
        state = loop.TrainingState(*variables, ())
        _, fixed = loop.check_loss(pure_loss, state, batch, key)
        data: Any = batch
        if known:
            data = batch, tuple(jax.eval_shape(fn, x) for fn in fixed)
            pure_loss = loop.with_known_rows(pure_loss, tuple(fixed))
        return cost.flops(jax.grad(pure_loss, has_aux=True), *variables, data, key)

    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([64, 2])(x)))
    plain = flops(networks.EnsembleWithState(hk.with_empty_state(model), 3), False)
    with_priors = networks.MLPEnsembleMatchedPrior([64, 2], num_ensemble=3)
    priors = 3 * cost.mlp_flops(8, 32, 64, 2)
    known, computed = flops(with_priors, True), flops(with_priors, False)
    assert known < plain + 0.05 * priors
    assert computed > plain + 0.95 * priors


def test_rows_are_computed_when_they_are_first_met() -> None:
    computed: list[float] = []

    def squares(inputs: Any) -> Any:
        jax.debug.callback(lambda x: computed.extend(x[:, 0].tolist()), inputs)
        return {"squares": inputs**2}

    numbers = np.arange(11.0, dtype=np.float32)[:, None]
    data = ArrayBatch(x=jax.numpy.asarray(numbers), y=DATA.y)
    _, make = row_values.of_functions([squares], _batches(data))
    assert make is not None
    values = make(data)
    values.learn(np.array([[3, 1, 5, 1]]))
    (known,) = values.on_device()
    expected = np.zeros((11, 1))
    expected[[1, 3, 5]] = [[1], [9], [25]]
    np.testing.assert_array_equal(known["squares"], expected)
    values.learn(np.array([[3, 1, 5, 5], [1, 7, 9, 3]]))
    values.learn(np.array([[9, 7, 5, 3]]))
    jax.effects_barrier()
    assert sorted(set(computed[:4])) == [1, 3, 5]
    assert sorted(set(computed[4:])) == [7, 9]
    assert len(computed) == 8  # Blocks of the size of a batch.
    (known,) = values.on_device()
    np.testing.assert_array_equal(known["squares"][[7, 9], 0], [49, 81])


def test_only_rows_are_kept_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outputs(inputs: Any) -> Any:
        return inputs[:, :1]

    def more(inputs: Any) -> Any:
        return inputs

    def of_the_batch(inputs: Any) -> Any:
        return inputs.sum()

    def fitting(*fns: Any) -> tuple[int, ...]:
        inputs = row_values.batch_inputs(DATA, 4)
        return row_values.fitting(fns, inputs, num_rows=11)

    assert fitting(of_the_batch, more) == (1,)
    monkeypatch.setattr(row_values, "MAX_BYTES", 11 * 4 * 4)
    assert fitting(outputs, more) == (0, 1)
    monkeypatch.setattr(row_values, "MAX_BYTES", 11 * 4 * 4 - 1)
    assert fitting(outputs, more) == (0,)
    monkeypatch.setattr(row_values, "MAX_BYTES", 11 * 4 - 1)
    assert fitting(outputs, more) == ()


def test_values_are_known_for_an_object_and_inside_only() -> None:
    def double(inputs: Any) -> Any:
        return 2 * inputs

    assert _known_rows.look_up(double, X) is None
    with _known_rows.known_at(X, {double: "known"}) as asked:
        assert _known_rows.look_up(double, X.copy()) is None
        assert asked == []
        assert _known_rows.look_up(double, X) == "known"
        with _known_rows.known_at(DATA.y, {}):
            assert _known_rows.look_up(double, X) is None
        assert _known_rows.look_up(double, X) == "known"
    assert asked == [double]
    assert _known_rows.look_up(double, X) is None
