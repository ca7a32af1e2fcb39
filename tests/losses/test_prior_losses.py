import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from enn import losses, networks, utils
from enn.losses import prior_losses
from tests.losses import cases
from tests.support import golden

PRIOR_LOSSES = [losses.RegressionPriorLoss, losses.ClassificationPriorLoss]
INDEXER = networks.GaussianWithUnitIndexer(4)
BATCH = cases.batch_of(np.zeros([4, 1]))


def _evaluate(loss_fn, enn, state, key):
    """Loss, state and metrics."""
    run = jax.jit(lambda state, key: loss_fn(enn, {}, state, BATCH, key))
    loss, (state, metrics) = run(state, key)
    return loss, state, metrics


def _sum_network(params, state, inputs, index):
    train = inputs @ jnp.ones([inputs.shape[1], 1])
    return networks.OutputWithPrior(train, jnp.zeros_like(train)), state


def _indexed(params, state, inputs, index):
    """Train is the index; the state scales it and is changed."""
    train = state["net"]["scale"] * jnp.ones([len(inputs), 3]) * index[1]
    extra = {"log_var": inputs[:, :1] + jnp.zeros([4, 3])}
    out = networks.OutputWithPrior(train, jnp.zeros_like(train), extra)
    return out, {"net": {"scale": jnp.nan}}


def test_golden_regression_prior():
    loss_fn = losses.RegressionPriorLoss(num_index_sample=4)
    batch = golden.batch("regression")
    report = cases.evaluate(loss_fn, cases.golden_ensemble(1), batch)
    golden.assert_matches("loss_regression_prior", report)


def test_golden_combination_with_data_loss():
    data = losses.average_single_index_loss(losses.XentLoss(3), 2)
    prior = losses.ClassificationPriorLoss(num_index_sample=3, scale=0.5)
    config = losses.CombineLossConfig(data, "data", 2.0)
    report = cases.evaluate(
        losses.combine_losses([config, prior]),
        cases.golden_ensemble(3),
        golden.batch("classification"),
    )
    golden.assert_matches("loss_combined", report)


@pytest.mark.parametrize("prior_loss", PRIOR_LOSSES)
def test_value_stated_for_the_original(prior_loss):
    enn = networks.EnnArray(_sum_network, None, networks.EnsembleIndexer(3))
    loss, state, metrics = _evaluate(prior_loss(3), enn, {}, golden.keys(0))
    np.testing.assert_allclose(loss, 3.0706925, rtol=1e-6)
    assert (state, metrics) == ({}, {})


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)])
def test_state_is_used_and_kept_and_keys_are_split(key):
    # Networks used to be given an empty state.
    state = {"net": {"scale": np.float32(2)}}
    enn = networks.EnnArray(_indexed, None, INDEXER)
    loss_fn = losses.RegressionPriorLoss(5, scale=10.0)
    loss, new_state, _ = _evaluate(loss_fn, enn, state, key)
    index_key, _ = jax.random.split(key)
    indices = np.asarray(utils.make_batch_indexer(INDEXER, 5)(index_key))[:, 1]
    np.testing.assert_allclose(loss, 10 * 0.5 * np.mean((2 * indices) ** 2), rtol=1e-5)
    assert new_state == state


@pytest.mark.parametrize("prior_loss", PRIOR_LOSSES)
def test_distillation_adds_terms_at_the_mean_index(prior_loss):
    # The network was called without its state, a TypeError.
    state = {"net": {"scale": np.float32(2)}}
    enn = networks.EnnArray(_indexed, None, INDEXER)
    args = (enn, state, golden.keys(1))
    plain, *_ = _evaluate(prior_loss(5, scale=10.0), *args)
    distilled = prior_loss(5, scale=10.0, distill_index=True)
    loss, new_state, _ = _evaluate(distilled, *args)
    kind = prior_loss.__name__.removesuffix("PriorLoss").lower()

    @jax.jit
    def distillation(state, key):
        index_key, data_key = jax.random.split(key)
        x = losses.MatchingGaussianData()(BATCH, data_key)
        outs = losses.generate_batched_forward_at_data_with_state(
            5, x, enn, {}, index_key, state
        )
        distill_out, _ = _indexed({}, state, x, INDEXER.mean_index)
        return [
            getattr(prior_losses, f"distill_{moment}_{kind}")(outs, distill_out)
            for moment in ("mean", "var")
        ]

    terms = distillation(state, golden.keys(1))
    np.testing.assert_allclose(loss - plain, sum(terms), rtol=1e-4)
    assert terms[1] > 0
    assert new_state == state


def test_indexer_without_a_mean_has_nothing_to_distil():
    enn = networks.EnnArray(_sum_network, None, networks.EnsembleIndexer(3))
    args = (enn, {}, golden.keys(0))
    distilled = _evaluate(losses.RegressionPriorLoss(3, distill_index=True), *args)
    assert distilled == _evaluate(losses.RegressionPriorLoss(3), *args)


@pytest.mark.parametrize("prior_loss", PRIOR_LOSSES)
@pytest.mark.parametrize("num_index_sample", [0, 2.5])
def test_number_of_indices_is_checked(prior_loss, num_index_sample):
    with pytest.raises(ValueError, match="num_index_sample must be an integer >= 1"):
        prior_loss(num_index_sample)


def test_plain_outputs_have_no_prior_loss_and_say_so(caplog):
    with caplog.at_level(logging.WARNING):
        penalty = prior_losses.l2_training_penalty(jnp.ones([2, 3, 1]))
    assert penalty == 0
    assert "does not return an OutputWithPrior" in caplog.text


def test_forward_stacks_every_part_of_the_output():
    def apply(params, inputs, index):
        return {"out": inputs * params + index, "index": index}

    enn = networks.EnnNoState(apply, None, networks.EnsembleIndexer(10))
    outs = losses.generate_batched_forward_at_data(
        4, jnp.ones([2, 1]), enn, 10.0, golden.keys(0)
    )
    indices = utils.make_batch_indexer(enn.indexer, 4)(golden.keys(0))
    np.testing.assert_array_equal(outs["index"], indices)
    wanted = np.broadcast_to(10 + np.array(indices)[:, None, None], [4, 2, 1])
    np.testing.assert_array_equal(outs["out"], wanted)


def test_gaussian_data_match_the_shape_of_the_batch():
    batch = cases.batch_of(np.zeros([2, 1])).replace(x=np.zeros([2, 3, 4], np.uint8))
    x = losses.MatchingGaussianData(scale=3.0)(batch, golden.keys(7))
    np.testing.assert_allclose(x, 3 * golden.normal(2, 3, 4, seed=7), rtol=1e-6)
    first, second = losses.RegressionPriorLoss(1), losses.RegressionPriorLoss(1)
    assert first.input_generator is not second.input_generator


def test_gaussian_dataset_is_endless_and_fixed_by_its_seed():
    batches = list(itertools.islice(losses.make_gaussian_dataset(2, 3, 0), 3))
    stated = [-2.4424558, -2.0356805, 0.20554423]
    np.testing.assert_allclose(batches[0].x[0], stated, rtol=1e-6)
    np.testing.assert_array_equal(batches[2].y, [[1.0], [1.0]])
    assert not np.allclose(batches[0].x, batches[1].x)
    again = next(losses.make_gaussian_dataset(2, 3, 0))
    np.testing.assert_array_equal(again.x, batches[0].x)
    other = next(losses.make_gaussian_dataset(2, 3, 1))
    assert not np.allclose(other.x, batches[0].x)


TINY = float(jnp.finfo(jnp.float32).tiny)
distill_mean_regression = jax.jit(prior_losses.distill_mean_regression)
distill_mean_classification = jax.jit(prior_losses.distill_mean_classification)
distill_var_regression = jax.jit(prior_losses.distill_var_regression)
distill_var_classification = jax.jit(prior_losses.distill_var_classification)
LOGITS = np.array(golden.normal(5, 4, 3))


def _with_log_var(train, log_var):
    return networks.OutputWithPrior(train, extra={"log_var": log_var})


def test_variance_kl_equals_its_integral():
    var, log_var = 0.6, 0.3
    p = scipy.stats.norm(0, np.sqrt(var))
    q = scipy.stats.norm(0, np.exp(log_var / 2))
    wanted = p.expect(lambda u: p.logpdf(u) - q.logpdf(u))
    got = prior_losses.variance_kl(np.array([var]), np.array([log_var]))
    np.testing.assert_allclose(got, [wanted], rtol=1e-5)


def test_variance_kl_of_zero_variance_is_finite_with_a_finite_gradient():
    # It was infinite, as for a single index sample.
    value, grad = jax.jit(jax.value_and_grad(prior_losses.variance_kl))(0.0, 0.5)
    np.testing.assert_allclose(value, 0.5 * (0.5 - np.log(TINY) - 1), rtol=1e-6)
    assert grad == 0


def test_perfectly_distilled_mean_scores_zero():
    # [batch] against [batch, 1] used to broadcast to [batch, batch]: 2.5 here.
    outs = np.arange(8.0).reshape(2, 4, 1)
    distilled = np.mean(outs, axis=0)
    assert distill_mean_regression(outs, distilled) == 0
    assert distill_mean_regression(outs, distilled + 3) == 9


def test_distilled_mean_counts_the_prior():
    outs = networks.OutputWithPrior(np.zeros([2, 3, 1]), prior=np.ones([2, 3, 1]))
    assert distill_mean_regression(outs, np.full([3, 1], 3.0)) == 4


@pytest.mark.strict
def test_distilled_probabilities_are_compared_by_divergence():
    distilled = np.asarray(golden.normal(4, 3, seed=9))
    got = distill_mean_classification(LOGITS, distilled)
    mean = scipy.special.softmax(LOGITS, axis=-1).mean(axis=0)
    q = scipy.special.softmax(distilled, axis=-1)
    np.testing.assert_allclose(got, scipy.stats.entropy(mean, q, axis=1).mean(), 1e-5)


@pytest.mark.strict
def test_vanishing_probabilities_are_distilled_to_a_finite_value():
    # A mean probability that underflows to 0 gave NaN.
    outs = np.broadcast_to(np.array([0.0, -300.0]), [5, 4, 2])
    value, grad = jax.jit(jax.value_and_grad(prior_losses.distill_mean_classification))(
        outs, np.zeros([4, 2])
    )
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.isfinite(grad).all()
    impossible = np.broadcast_to(np.array([0.0, -np.inf]), [5, 4, 2])
    value = distill_mean_classification(impossible, np.zeros([4, 2]))
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    ("distil", "values"),
    [
        (distill_var_regression, LOGITS),
        # The variance used to be one number over indices, batch and classes.
        (
            distill_var_classification,
            scipy.special.softmax(LOGITS, axis=-1),
        ),
    ],
)
def test_distilled_variance_is_over_indices(distil, values):
    log_var = np.asarray(golden.normal(4, 3, seed=9))
    got = distil(LOGITS, _with_log_var(np.zeros([4, 3]), log_var))
    var = values.var(axis=0)
    wanted = 0.5 * (log_var - np.log(var) + var / np.exp(log_var) - 1).mean()
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    perfect = _with_log_var(np.zeros([4, 3]), np.log(var))
    np.testing.assert_allclose(distil(LOGITS, perfect), 0, atol=1e-6)


def test_shapes_and_extras_are_checked():
    with pytest.raises(ValueError, match=r"distill_out must .*\[4, 3\], got \[4\]"):
        distill_mean_regression(LOGITS, np.zeros([4]))
    with pytest.raises(ValueError, match=r"distill_out must .*\[4, 3\], got \[1, 3\]"):
        distill_mean_classification(LOGITS, np.zeros([1, 3]))
    with pytest.raises(ValueError, match=r"'log_var'\] must .*\[4, 3\], got \[4, 1\]"):
        distill_var_regression(
            LOGITS, _with_log_var(np.zeros([4, 3]), np.zeros([4, 1]))
        )
    with pytest.raises(ValueError, match="must return an OutputWithPrior"):
        distill_var_classification(LOGITS, np.zeros([4, 3]))


def test_distilled_variance_of_sure_networks_is_that_of_the_other_class():
    # Probabilities that differ by 1e-8 rounded to 1, of variance 0.
    gaps = np.array([18.0, 19.0, 20.0])
    outs = np.stack([gaps, np.zeros(3)], axis=-1)[:, None]
    var = np.var(1 / (1 + np.exp(gaps)))
    perfect = _with_log_var(np.zeros([1, 2]), np.full([1, 2], np.log(var)))
    np.testing.assert_allclose(distill_var_classification(outs, perfect), 0, atol=1e-6)


def test_distilled_mean_of_sure_networks_is_compared_in_its_small_class():
    outs, distilled = np.array([[[30.0, 0.0]]]), np.array([[28.0, 0.0]])
    m, q = np.exp(-30), np.exp(-28)
    wanted = m * np.log(m / q) - np.log1p(m) + np.log1p(q)
    got = distill_mean_classification(outs, distilled)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
