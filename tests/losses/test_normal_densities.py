import hypothesis
import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import strategies as st

from enn.losses import normal_densities, vi_losses

X = np.array([-3.0, 0.2, 1.5])
LOG_SOFTPLUS = jax.jit(jax.value_and_grad(normal_densities.log_softplus))


def test_density_equals_scipy():
    got = vi_losses.log_normal_prob(X, 0.5, np.array([0.1, 1.0, 3.0]))
    wanted = scipy.stats.norm.logpdf(X, 0.5, [0.1, 1.0, 3.0])
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    standard = vi_losses.log_normal_prob(X)
    np.testing.assert_allclose(standard, scipy.stats.norm.logpdf(X), rtol=1e-6)


@pytest.mark.strict
@pytest.mark.parametrize("pi", [0.0, 0.3, 1.0])
def test_mixture_equals_scipy(pi):
    log_density = jax.jit(vi_losses.sum_log_scale_mixture_normal)
    got = log_density(X, 0.5, 2.0, -1.0, 1.0, pi)
    first = scipy.stats.norm(-1.0, 0.5).pdf(X)
    second = scipy.stats.norm(1.0, 2.0).pdf(X)
    wanted = np.log(pi * first + (1 - pi) * second).sum()
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.strict
def test_mixture_of_one_part_is_finite_far_out_with_its_gradient():
    x = np.array([100.0, -3.0])
    value, grad = jax.jit(jax.value_and_grad(vi_losses.sum_log_scale_mixture_normal))(
        x, 1.0, 0.1
    )
    np.testing.assert_allclose(value, scipy.stats.norm.logpdf(x).sum(), rtol=1e-6)
    np.testing.assert_allclose(grad, -x, rtol=1e-6)


def test_density_of_a_tree_is_a_sum_over_its_entries():
    tree = {"a": np.array([[0.1, 0.2]]), "b": [np.array(3.0)]}
    got = vi_losses.normal_log_prob(tree, 2.0, 0.5)
    wanted = scipy.stats.norm.logpdf([0.1, 0.2, 3.0], 0.5, 2.0).sum()
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.strict
@hypothesis.given(x=st.floats(-300, 300, width=32))
@hypothesis.settings(deadline=None, max_examples=30)
def test_log_softplus_is_accurate_everywhere(x):
    value, grad = LOG_SOFTPLUS(x)
    softplus = np.log1p(np.exp(np.float64(x)))
    slope = 1 / (1 + np.exp(-np.float64(x))) / softplus
    np.testing.assert_allclose(value, np.log(softplus), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(grad, slope, rtol=1e-5)
