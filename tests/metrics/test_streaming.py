"""One contract for all metrics: batches give the value of all rows at once."""

import functools

import jax
import numpy as np
import pytest

from enn import metrics
from tests.support.batches import LABELS, LOGITS, normal

mean_over_rows = functools.partial(metrics.make_average_aggregator, weight_by_size=True)
CLASSIFICATION = {
    "accuracy": mean_over_rows(metrics.make_accuracy_calculator()),
    "brier": mean_over_rows(metrics.calculate_brier_score),
    "marginal nll": mean_over_rows(metrics.make_nll_marginal_calculator()),
    "joint nll": mean_over_rows(metrics.make_nll_joint_calculator(2)),
    "ece": metrics.ExpectedCalibrationError(10),
}
REGRESSION = {
    "crps": mean_over_rows(metrics.calculate_crps),
    "gaussian nll": mean_over_rows(metrics.make_gaussian_nll_calculator(0.1)),
    "gaussian joint nll": mean_over_rows(
        metrics.make_gaussian_nll_joint_calculator(0.5, 2)
    ),
}
HISTOGRAMS = {
    "auroc": metrics.make_auroc_aggregator(metrics.mutual_information, 12),
    "aupr": metrics.make_aupr_aggregator(metrics.predictive_entropy, 12),
    "aurc": metrics.make_aurc_aggregator(num_bits=12),
}
AGGREGATORS = CLASSIFICATION | REGRESSION | HISTOGRAMS


def _rows(name):
    if name in REGRESSION:
        return normal(9, 24, 1, seed=6), normal(24, 1, seed=7)
    return LOGITS, LABELS % 2 if name in HISTOGRAMS else LABELS


class Compiled:
    """An aggregator that notes for which batches it is compiled."""

    def __init__(self, aggregator):
        def noted(logits, labels, state):
            self.traces.append((len(labels), state is not None))
            return aggregator(logits, labels, state)

        self.traces, self.run = [], jax.jit(noted)


COMPILED = {name: Compiled(aggregator) for name, aggregator in AGGREGATORS.items()}


def _stream(name, ends):
    logits, labels = _rows(name)
    state = None
    for start, end in zip([0, *ends], [*ends, 24], strict=True):
        state = COMPILED[name].run(logits[:, start:end], labels[start:end], state)
    return state


@pytest.mark.strict
@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_cut_into_batches_does_not_matter(name):
    whole, parts = _stream(name, []), _stream(name, [4, 8])
    if name in HISTOGRAMS:
        assert float(parts.value) == float(whole.value)
    else:
        np.testing.assert_allclose(parts.value, whole.value, rtol=1e-5)
    sizes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(whole.extra)]
    assert sizes == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(parts.extra)]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_one_compilation_serves_all_later_batches(name):
    parts = _stream(name, [4, 8, 12, 16, 20])
    # The first batch has no state; the second makes it one of arrays.
    traces = [trace for trace in COMPILED[name].traces if trace[0] == 4]
    assert traces == [(4, False), (4, True)]
    np.testing.assert_allclose(parts.value, _stream(name, []).value, rtol=1e-5)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_value_of_one_batch_is_that_of_the_metric(name):
    single = {
        "accuracy": metrics.make_accuracy_calculator(),
        "brier": metrics.calculate_brier_score,
        "marginal nll": metrics.make_nll_marginal_calculator(),
        "joint nll": metrics.make_nll_joint_calculator(2),
        "ece": metrics.SingleBatchECE(10),
    }
    value = single[name](LOGITS, LABELS)
    np.testing.assert_allclose(_stream(name, []).value, value, rtol=1e-6)


def test_aggregators_follow_the_protocol():
    for aggregator in AGGREGATORS.values():
        assert isinstance(aggregator, metrics.AggregateMetricCalculator)
        assert callable(aggregator)
    state = AGGREGATORS["auroc"](LOGITS, LABELS % 2)
    assert isinstance(state, metrics.MetricsState)
    assert np.shape(state.value) == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "aggregator",
    [
        mean_over_rows(lambda logits, labels: logits[0, :, 0].mean()),
        metrics.make_average_aggregator(lambda logits, labels: logits[0, 0, 0]),
        metrics.make_aurc_aggregator(
            lambda logits: logits[0, :, 0], lambda logits, labels: logits[0, :, 0], 9
        ),
    ],
    ids=["by size", "by batch", "aurc"],
)
def test_many_batches_of_half_precision_do_not_overflow_or_stall(aggregator, dtype):
    # 50 x 1000 rows of 3: the sum, 150000, is infinite in float16, and in bfloat16
    # adding 3 to 1024 changes nothing.
    logits, labels = jax.numpy.full([1, 1000, 1], 3, dtype), np.zeros([1000, 1])
    state = None
    for _ in range(50):
        state = aggregator(logits, labels, state)
    np.testing.assert_allclose(float(state.value), 3, rtol=1e-6)


@pytest.mark.parametrize("axis", ["samples", "rows"])
@pytest.mark.parametrize("name", sorted({*CLASSIFICATION, *REGRESSION} - {"ece"}))
def test_means_of_nothing_are_errors(name, axis):
    # Were NaN, which then stays in the running mean, or an accuracy of 1.
    logits, labels = _rows(name)
    if axis == "samples":
        logits = logits[:0]
    else:
        logits, labels = logits[:, :0], labels[:0]
    with pytest.raises(ValueError, match="must not be empty, got shape"):
        AGGREGATORS[name](logits, labels)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.SingleBatchECE(10),
        metrics.calculate_joint_ll,
        metrics.make_nll_polyadic_calculator(),
    ],
)
def test_other_metrics_of_nothing_are_errors(metric):
    with pytest.raises(ValueError, match="must not be empty"):
        metric(LOGITS[:, :0], LABELS[:0])


def _as_nan(name, rows):
    logits, labels = (np.array(values) for values in _rows(name))
    logits[:, rows] = np.nan
    return logits, labels


@pytest.mark.parametrize("rows", [slice(None), slice(5, 6)], ids=["all", "one"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_nan_is_no_class_and_no_number(name, rows):
    # Logits of NaN counted as right where the label was class 0.
    logits, labels = _as_nan(name, rows)
    state = COMPILED[name].run(logits, labels, None)
    assert np.isnan(state.value)
    later = COMPILED[name].run(*_rows(name), state)
    assert np.isnan(later.value)
    if name in HISTOGRAMS:
        with pytest.raises(ValueError, match="scores must not be NaN"):
            AGGREGATORS[name](logits, labels)
    else:
        assert np.isnan(AGGREGATORS[name](logits, labels).value)


def test_areas_of_nan_scores_are_nan_under_jit():
    scores, values = np.array([0.0, np.nan, 1.0]), np.array([0, 1, 1])
    for area in [
        metrics.calculate_auroc,
        metrics.calculate_aupr,
        metrics.calculate_aurc,
    ]:
        assert np.isnan(jax.jit(area)(scores, values))


def test_losses_of_nan_logits_are_nan():
    logits, labels = _as_nan("aurc", slice(3, 5))
    losses = metrics.zero_one_loss(logits, labels)
    np.testing.assert_array_equal(np.isnan(losses), np.isin(np.arange(24), [3, 4]))
    aurc = metrics.make_aurc_aggregator(lambda logits: np.arange(24.0))
    assert np.isnan(aurc(logits, labels).value)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_one_sample_gives_what_two_equal_ones_give(name):
    logits, labels = _rows(name)
    logits = logits[:1] if name in CLASSIFICATION or name == "aupr" else logits
    twice = np.concatenate([logits, logits])
    one, two = (AGGREGATORS[name](x, labels).value for x in (logits, twice))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_areas_do_not_depend_on_the_order_of_rows_also_where_scores_are_tied(name):
    area = {
        "auroc": metrics.calculate_auroc,
        "aupr": metrics.calculate_aupr,
        "aurc": metrics.calculate_aurc,
    }[name]
    rng = np.random.default_rng(0)
    scores, values = rng.integers(4, size=24), rng.integers(2, size=24)
    expected = float(area(scores, values))
    for _ in range(5):
        order = rng.permutation(24)
        assert float(area(scores[order], values[order])) == expected
    assert float(area(scores, 0 * values + values.min())) in (0, 0.5)
