import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import strategies as st

from enn import losses, networks
from enn.losses import vi_losses
from tests.losses import cases

W, B = np.array([0.1, 0.2]), np.array([1.0, 2.0])
OUT = np.array([[0.5], [2.0]])
Y = np.array([[1.0], [4.0]])


def _params(w, b):
    return {"m": {"w": np.asarray(w), "b": np.asarray(b)}}


def _extra(**extra):
    return networks.OutputWithPrior(OUT, extra=extra)


def _value(kl_fn, params, out=OUT):
    return jax.jit(kl_fn)(out, params, None)


def test_values_stated_for_the_original():
    sampled = losses.get_sample_based_model_prior_kl_fn(10, 1.0)
    out = _extra(hyper_index=np.array([0.3, 0.4]))
    stated = -0.18058221
    np.testing.assert_allclose(_value(sampled, _params(W, B), out), stated, rtol=1e-5)
    diagonal = losses.get_analytical_diagonal_linear_model_prior_kl_fn(10, 2.0)
    np.testing.assert_allclose(_value(diagonal, _params(W, B)), 0.16808425, rtol=1e-5)
    linear = losses.get_analytical_linear_model_prior_kl_fn(10, 2.0)
    params = _params([[0.1, 0.2, 0.3], [0.5, 0.1, 0.2]], [1.0, 2.0, 3.0])
    np.testing.assert_allclose(_value(linear, params), 0.28124237, rtol=1e-5)
    flow = losses.get_analytical_hyperflow_model_prior_kl_fn(10, 2.0)
    out = _extra(log_prob=np.array([-3.0]), latent=np.ones(5))
    np.testing.assert_allclose(_value(flow, {}, out), 0.56854284, rtol=1e-5)


def test_gaussian_likelihood_is_a_mean_without_constants():
    likelihood = losses.get_awgn_loglike_fn(0.5)
    got = likelihood(OUT, cases.batch_of(Y))
    np.testing.assert_allclose(got, -0.5 * (0.25 + 4) / 2 / 0.25, rtol=1e-6)


@pytest.mark.parametrize(
    ("out", "y", "name"), [(OUT[:, 0], Y, "network output"), (OUT, Y[:1], "batch.y")]
)
def test_gaussian_likelihood_does_not_broadcast(out, y, name):
    # [batch] against [batch, 1] used to give [batch, batch].
    with pytest.raises(
        ValueError, match=rf"{name} must have shape \[batch, (1|num_outputs)\]"
    ):
        losses.get_awgn_loglike_fn(0.5)(out, cases.batch_of(y))


def test_categorical_likelihood_is_the_mean_log_probability():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    labels = np.array([[0], [2], [1], [2]])
    likelihood = losses.get_categorical_loglike_fn(3)
    log_probs = scipy.special.log_softmax(logits, axis=1)
    wanted = np.mean(log_probs[np.arange(4), labels[:, 0]])
    got = likelihood(logits, cases.batch_of(labels))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="labels must be integers"):
        likelihood(logits, cases.batch_of(labels + 1))


def test_sampled_divergence_is_the_log_ratio_of_densities_at_the_sample():
    u, rho, mu = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    posterior = scipy.stats.norm.pdf(u, mu, np.log1p(np.exp(rho)))
    narrow, wide = scipy.stats.norm.pdf(u, 0, 0.5), scipy.stats.norm.pdf(u, 0, 2.0)
    log_ratios = np.log(posterior) - np.log(0.4 * narrow + 0.6 * wide)
    kl_fn = losses.get_sample_based_model_prior_kl_fn(10, 0.5, 2.0, 0.4)
    got = _value(kl_fn, _params(rho, mu), _extra(hyper_index=u))
    np.testing.assert_allclose(got, log_ratios.sum() / 10, rtol=1e-4)


def test_diagonal_divergence_equals_its_integral():
    s, b, sigma_0 = np.log1p(np.exp(0.3)), -0.7, 1.4
    q, p = scipy.stats.norm(b, s), scipy.stats.norm(0, sigma_0)
    wanted = q.expect(lambda u: q.logpdf(u) - p.logpdf(u))
    kl_fn = losses.get_analytical_diagonal_linear_model_prior_kl_fn(1, sigma_0)
    np.testing.assert_allclose(_value(kl_fn, _params([0.3], [b])), wanted, rtol=1e-5)


@pytest.mark.strict
@pytest.mark.parametrize("w", [200.0, -200.0])
def test_extreme_spreads_give_finite_values_and_gradients(w):
    # log(1 + exp(w)) overflowed to infinity or underflowed to 0.
    log_softplus = {200.0: np.log(200), -200.0: -200.0}[w]
    square = max(w, 0) ** 2
    params = _params([w], [0.5])

    value, grad = jax.jit(jax.value_and_grad(lambda p: _value(DIAGONAL, p)))(params)
    np.testing.assert_allclose(
        value, 0.5 * (square + 0.25 - 1 - 2 * log_softplus), rtol=1e-6
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))

    out = _extra(hyper_index=np.array([0.5]))
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: _value(SAMPLED, p, out)))
    value, grad = value_and_grad(params)
    np.testing.assert_allclose(value, -log_softplus + 0.125, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad))


def test_linear_divergence_joins_weights_of_sorted_modules():
    rng = np.random.default_rng(3)
    w, b = rng.normal(size=(2, 5)), rng.normal(size=5)
    split = {
        "b_second": {"b": b[3:], "w": w[:, 3:]},
        "a_first": {"w": w[:, :3], "b": b[:3]},
    }
    kl_fn = losses.get_analytical_linear_model_prior_kl_fn(7, 0.8)
    gram = w @ w.T + 1e-6 * np.eye(2)
    projected = w @ b
    distance = projected @ np.linalg.inv(gram) @ projected / 0.8**2
    wanted = np.trace(gram) - 2 - np.log(np.linalg.det(gram)) + distance
    np.testing.assert_allclose(_value(kl_fn, split), 0.5 * wanted / 7, rtol=1e-4)


def test_flow_divergence_takes_any_tree_of_latents():
    kl_fn = losses.get_analytical_hyperflow_model_prior_kl_fn(4, 1.5)
    out = _extra(log_prob=np.array([[-2.0]]), latent={"a": B, "b": W[0]})
    log_prior = scipy.stats.norm.logpdf([1.0, 2.0, 0.1], 0, 1.5).sum()
    wanted = (-2 - log_prior) / 4
    np.testing.assert_allclose(_value(kl_fn, {}, out), wanted, rtol=1e-6)


DIAGONAL = losses.get_analytical_diagonal_linear_model_prior_kl_fn(1, 1.0)
LINEAR = losses.get_analytical_linear_model_prior_kl_fn(1, 1.0)
SAMPLED = losses.get_sample_based_model_prior_kl_fn(1, 1.0)
FLOW = losses.get_analytical_hyperflow_model_prior_kl_fn(1, 1.0)


@pytest.mark.parametrize(
    ("kl_fn", "params", "out", "message"),
    [
        (DIAGONAL, _params(W[None], B), OUT, r"must have shape \[n\], got \[1, 2\]"),
        (DIAGONAL, _params(W, B[:1]), OUT, "same size, got {'w': 2, 'b': 1}"),
        (DIAGONAL, {"m": {"b": B}}, OUT, r"leaves 'w' and others, got \['b'\]"),
        (LINEAR, _params(W, B), OUT, r"w must have shape .* got \[2\]"),
        (LINEAR, _params(W[None], B[:1]), OUT, r"b must have shape \[2\] of the"),
        # Without extras it used to be an AttributeError.
        (SAMPLED, _params(W, B), OUT, "OutputWithPrior with extra.'hyper_index'"),
        (SAMPLED, _params(W, B), _extra(x=W), r"'hyper_index'.*\['x'\]"),
        (SAMPLED, _params(W, B), _extra(hyper_index=W[0]), "'hyper_index': 1"),
        (FLOW, {}, _extra(log_prob=W), "'latent'"),
    ],
)
def test_wrong_parameters_and_outputs_are_named(kl_fn, params, out, message):
    with pytest.raises(ValueError, match=message):
        _value(kl_fn, params, out)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: losses.get_awgn_loglike_fn(0.0), "sigma_w"),
        (lambda: losses.get_sample_based_model_prior_kl_fn(0, 1.0), "num_samples"),
        (lambda: losses.get_sample_based_model_prior_kl_fn(1, -1.0), "sigma_1"),
        (lambda: losses.get_sample_based_model_prior_kl_fn(1, 1.0, 0.0), "sigma_2"),
        (
            lambda: losses.get_analytical_linear_model_prior_kl_fn(1, float("nan")),
            "sigma_0",
        ),
    ],
)
def test_scales_must_be_positive(make, name):
    with pytest.raises(ValueError, match=f"{name} must be > 0, got"):
        make()


X = np.array([-3.0, 0.2, 1.5])
LOG_SOFTPLUS = jax.jit(jax.value_and_grad(vi_losses.log_softplus))


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_log_softplus_is_accurate_over_the_range_of_its_type(dtype):
    # At exactly -20 the gradient was 0.5; in float16 the value was -inf from -17 on.
    info = jnp.finfo(dtype)
    x = jnp.array([info.min, -200, -20, -17, -1, 0, 3, info.max], dtype)
    value, grad = jax.vmap(jax.value_and_grad(vi_losses.log_softplus))(x)
    exact = np.asarray(x, np.float64)
    low = exact <= -17
    small = np.exp(np.where(low, exact, 0))
    softplus = np.logaddexp(0, np.where(low, 0, exact))
    slope = scipy.special.expit(np.where(low, 0, exact)) / softplus
    rtol = 4 * float(info.eps)
    wanted = np.where(low, exact - small / 2, np.log(softplus))
    np.testing.assert_allclose(np.float64(value), wanted, rtol=rtol)
    wanted = np.where(low, 1 - small / 2, slope)
    np.testing.assert_allclose(
        np.float64(grad), wanted, rtol=rtol, atol=float(info.tiny)
    )
    assert value.dtype == grad.dtype == jnp.dtype(dtype)


def test_divergence_close_to_the_prior_is_not_rounded_away():
    # s²/σ₀² - 1 - 2 log(s/σ₀), from numbers close to 1, was 0 or negative.
    sigma_0 = np.float32(np.log1p(np.exp(0.5)))
    rho = np.float32(0.5 + 1e-3)
    u = np.log(np.log1p(np.exp(np.float64(rho))) / np.float64(sigma_0))
    kl_fn = losses.get_analytical_diagonal_linear_model_prior_kl_fn(1, sigma_0)
    got = _value(kl_fn, _params([rho], [0.0]))
    np.testing.assert_allclose(got, 0.5 * (np.expm1(2 * u) - 2 * u), rtol=2e-3)


def test_small_errors_are_scaled_before_they_are_squared():
    # (1e-25)² underflows in float32.
    likelihood = losses.get_awgn_loglike_fn(1e-25)
    got = likelihood(np.float32([[2e-25]]), cases.batch_of(np.float32([[0]])))
    np.testing.assert_allclose(got, -2, rtol=1e-5)
