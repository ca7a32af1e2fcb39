import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from enn import networks
from enn.losses import prior_losses
from tests import golden

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
