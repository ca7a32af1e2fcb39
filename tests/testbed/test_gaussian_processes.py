import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn import gaussian_process

from enn.testbed import base, problems
from enn.testbed import gaussian_processes as gp

KEY = jax.random.PRNGKey(0)


def rbf(x1, x2):
    return np.exp(-0.5 * np.square(x1[:, None] - x2[None]).sum(-1))


def inputs(num_train=5, input_dim=2, num_test=4):
    return gp.gaussian_data(jax.random.PRNGKey(1), num_train, input_dim, num_test)


def rows_of(x, x_test):
    """The rows of `x_test` that the rows of `x` are."""
    return [np.asarray(x_test).tolist().index(row) for row in np.asarray(x).tolist()]


def exact_sampler(problem_data):
    """Samples of the exact posterior at the cached inputs."""
    factor = jnp.linalg.cholesky(problem_data.test_cov)

    def sample(x, key):
        noise = jax.random.normal(key, problem_data.test_mean.shape)
        return problem_data.test_mean + factor @ noise

    return sample


def test_kernel_is_the_covariance_of_wide_networks():
    """Each layer averages relu(u) relu(v) over u and v: by quadrature, twice."""
    x = np.array([[0.3, -1.2], [1.0, 0.4]])
    cov = (x @ x.T + 1) / 2

    def layer(cov):
        factor = np.linalg.cholesky(cov)

        def product(angle, i, j):
            # In polar coordinates the radius integrates to 2 / (2π).
            u, v = (factor @ [np.cos(angle), np.sin(angle)])[[i, j]]
            return max(u, 0) * max(v, 0) / np.pi

        return np.array(
            [
                [
                    integrate.quad(product, 0, 2 * np.pi, (i, j), limit=200)[0]
                    for j in (0, 1)
                ]
                for i in (0, 1)
            ]
        )

    np.testing.assert_allclose(gp.mlp_kernel(x, x), layer(layer(cov)), rtol=1e-6)


def test_posterior_is_that_of_scikit_learn():
    x_train, x_test = inputs(30, 2, 7)
    y = jnp.sin(x_train[:, :1])
    mean, cov = gp.posterior(rbf, base.Data(x_train, y), x_test, 0.3)
    kernel = gaussian_process.kernels.RBF(1.0)
    regressor = gaussian_process.GaussianProcessRegressor(
        kernel, alpha=0.3, optimizer=None
    )
    regressor.fit(np.asarray(x_train, float), np.asarray(y[:, 0], float))
    expected = regressor.predict(np.asarray(x_test, float), return_cov=True)
    np.testing.assert_allclose(mean[:, 0], expected[0], atol=1e-10)
    np.testing.assert_allclose(cov, expected[1], atol=1e-10)
    # Kernels of scikit-learn serve as they are.
    np.testing.assert_allclose(
        gp.posterior(kernel, base.Data(x_train, y), x_test, 0.3)[0], mean, atol=1e-12
    )


def test_factor_in_blocks_is_that_of_the_whole_matrix(monkeypatch):
    x = np.random.default_rng(0).normal(size=(7, 2))
    expected = np.linalg.cholesky(rbf(x, x) + 0.1 * np.eye(7))
    for block in (3, 7, 512):
        monkeypatch.setattr(gp, "_BLOCK", block)
        np.testing.assert_allclose(gp._cholesky(rbf, x, 0.1), expected, atol=1e-14)


def test_training_data_are_drawn_from_the_kernel():
    """JAX's multivariate normal from the same keys, where float32 suffices."""
    x_train, x_test = inputs()
    data = gp.GPRegression(rbf, x_train, x_test, KEY, noise_std=0.5, kernel_ridge=0.1)
    key, fn_key = jax.random.split(KEY)
    noise_key = jax.random.split(key)[1]
    cov = jnp.asarray(rbf(np.asarray(x_train), np.asarray(x_train)) + 0.1 * np.eye(5))
    function = jax.random.multivariate_normal(fn_key, jnp.zeros(5), cov)
    noise = 0.5 * jax.random.normal(noise_key, [5, 1])
    np.testing.assert_allclose(data.train_data.y, function[:, None] + noise, atol=1e-5)
    np.testing.assert_array_equal(data.train_data.x, x_train)


@pytest.mark.parametrize("relative", [True, False])
def test_noise_of_the_posterior_is_relative_to_the_kernel_by_default(relative):
    x_train, x_test = inputs()
    data = gp.GPRegression(
        gp.mlp_kernel, x_train, x_test, KEY, noise_std=0.5, relative_noise=relative
    )
    scale = np.trace(gp.mlp_kernel(*[np.asarray(x_train, float)] * 2)) / 5
    assert 0.2 < scale < 0.5
    mean, cov = gp.posterior(
        gp.mlp_kernel, data.train_data, x_test, 0.25 * (scale if relative else 1)
    )
    np.testing.assert_allclose(data.test_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(data.test_cov, cov + 1e-6 * np.eye(4), rtol=1e-5)


@pytest.mark.parametrize("make", [gp.GPRegression, gp.GPRegressionEnvLikelihood])
def test_many_close_inputs_give_no_nan(make):
    """Factors in float32 were NaN: eigenvalues of the kernel are below its rounding."""
    x_train, x_test = inputs(100, 1, 200)
    data = make(gp.mlp_kernel, x_train, x_test, KEY, noise_std=0.01)
    test, ll = data.test_batches(jax.random.split(KEY, 50))
    for values in (data.train_data.y, test.y, ll):
        assert np.isfinite(values).all()
    matrix = np.asarray(gp.mlp_kernel(x_test, x_test) + 1e-6 * np.eye(200), np.float32)
    assert np.linalg.eigvalsh(matrix)[0] < 1e-5


@pytest.mark.slow
def test_likelihood_of_test_rows_is_that_of_posterior_and_noise():
    x_train, x_test = inputs()
    data = gp.GPRegression(rbf, x_train, x_test, KEY, tau=3, noise_std=0.5)
    (x, y), ll = data.test_data(KEY)
    rows = rows_of(x, x_test)
    cov = np.asarray(data.test_cov, float)[np.ix_(rows, rows)] + 0.25 * np.eye(3)
    expected = stats.multivariate_normal(np.asarray(data.test_mean)[rows, 0], cov)
    assert ll.shape == ()
    np.testing.assert_allclose(ll, expected.logpdf(y[:, 0]), rtol=1e-4)


def test_test_rows_may_repeat():
    """The covariance of the function is then singular, and was factored to NaN."""
    x_train, x_test = inputs(num_test=2)
    data = gp.GPRegression(rbf, x_train, x_test, KEY, tau=8, noise_std=0.1)
    test, ll = data.test_batches(jax.random.split(KEY, 4000))
    assert np.isfinite(ll).all()
    first = (np.asarray(test.x) == np.asarray(x_test[0])).all(-1)
    values = np.asarray(test.y[..., 0])[first]
    np.testing.assert_allclose(values.mean(), data.test_mean[0, 0], atol=0.05)
    std = np.sqrt(data.test_cov[0, 0] + 0.01)
    np.testing.assert_allclose(values.std(), std, rtol=0.05)
    # Within a batch rows of one input differ by their noise alone.
    within = [
        np.var(y[f, 0], ddof=1)
        for y, f in zip(np.asarray(test.y), first, strict=True)
        if f.sum() > 1
    ]
    np.testing.assert_allclose(np.mean(within), 0.01, rtol=0.1)


def test_semidefinite_factor_is_cholesky_where_that_exists():
    a = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    factor = gp._semidefinite_cholesky(jnp.asarray(a @ a.T))
    np.testing.assert_allclose(
        factor, np.linalg.cholesky(a @ a.T), rtol=2e-4, atol=1e-4
    )


@pytest.mark.slow
def test_one_function_serves_training_and_test():
    x_train, x_test = inputs(40, 2, 30)
    data = gp.GPRegressionEnvLikelihood(rbf, x_train, x_test, KEY, tau=6, noise_std=0.1)
    (x, y), ll = data.test_data(KEY)
    noise = y - data.test_function[jnp.array(rows_of(x, x_test))]
    expected = stats.norm(scale=0.1).logpdf(noise).sum()
    np.testing.assert_allclose(ll, expected, rtol=1e-4)
    predicted, _ = gp.posterior(rbf, data.train_data, x_test, 0.01)
    errors = predicted - data.test_function
    assert np.square(errors).mean() < 0.2 * np.square(data.test_function).mean()


@pytest.mark.slow
def test_classes_have_the_probabilities_of_their_logits():
    x_train, x_test = inputs(800, 1, 3)
    data = gp.GPClassificationEnvLikelihood(
        gp.linear_kernel, x_train, x_test, KEY, tau=5, num_classes=3, temperature=0.5
    )
    assert data.probabilities.shape == (3, 3)
    np.testing.assert_allclose(data.probabilities.sum(1), 1, rtol=1e-5)
    (x, y), ll = data.test_data(KEY)
    assert y.shape == (5, 1)
    rows = rows_of(x, x_test)
    expected = np.log(np.asarray(data.probabilities)[rows, y[:, 0]]).sum()
    np.testing.assert_allclose(ll, expected, rtol=1e-4)
    # Training labels near a test input are distributed as its labels.
    x, y = data.train_data
    assert y.shape == (800, 1)
    near = np.abs(np.asarray(x)[:, 0] - float(x_test[0, 0])) < 0.2
    frequencies = np.bincount(np.asarray(y)[near, 0], minlength=3) / near.sum()
    assert near.sum() > 50
    np.testing.assert_allclose(frequencies, data.probabilities[0], atol=0.15)


def regression(num_enn_samples=100, tau=1, **kwargs):
    x_train, x_test = inputs(num_test=20)
    data = gp.GPRegression(rbf, x_train, x_test, KEY, noise_std=0.1, **kwargs)
    prior = base.PriorKnowledge(2, 5, tau, noise_std=0.1)
    return gp.TestbedGPRegression(data, prior, KEY, num_enn_samples)


def test_the_exact_posterior_has_no_kl():
    problem = regression(4000)
    quality = problem.evaluate_quality(exact_sampler(problem.data_sampler))
    assert 0 <= quality.kl_estimate < 2e-3
    assert quality.extra["stream"] == "default"


@pytest.mark.slow
def test_marginal_kl_is_that_of_gaussians():
    """By numerical integration, at one input and two functions, 1 and 2."""
    x_train, x_test = inputs(num_test=1)
    data = gp.GPRegression(rbf, x_train, x_test, KEY)
    prior = base.PriorKnowledge(2, 5, 1, noise_std=1.0)
    problem = gp.TestbedGPRegression(data, prior, KEY, num_enn_samples=2)
    first = jax.random.split(KEY, 2)[0]

    def sample(x, key):
        return jnp.where((key == first).all(), 1.0, 2.0) * jnp.ones([1, 1])

    std = float(jnp.sqrt(data.test_cov[0, 0])) + 1e-3
    p, q = stats.norm(data.test_mean[0, 0], std), stats.norm(1.5, 0.5 + 1e-3)
    expected = p.expect(lambda y: p.logpdf(y) - q.logpdf(y))
    assert problem.evaluate_quality(sample).kl_estimate == pytest.approx(
        expected, rel=1e-4
    )


def test_marginal_kl_has_tau_one_and_one_output():
    with pytest.raises(ValueError, match="tau = 1, got 2"):
        regression(tau=2)
    with pytest.raises(ValueError, match=r"\[batch, 1\], got \[20, 2\]"):
        regression().evaluate_quality(lambda x, key: jnp.zeros([20, 2]))


def test_wrong_inputs_are_named():
    x_train, x_test = inputs()
    with pytest.raises(ValueError, match=r"x_test must have shape \[num_test, 2\]"):
        gp.GPRegression(rbf, x_train, x_test[:, :1], KEY)
    with pytest.raises(ValueError, match="noise_std must be > 0, got 0"):
        gp.GPRegressionEnvLikelihood(rbf, x_train, x_test, KEY, noise_std=0)
    prior = base.PriorKnowledge(2, 5, 1)
    with pytest.raises(ValueError, match="needs noise_std, got None"):
        problems.problem_from_config(problems.ProblemConfig(prior, 1))


def constant(data, prior):
    return lambda x, key: jnp.zeros([len(x), 1])


@pytest.mark.slow
def test_regression_id_is_judged_by_noise_alone():
    problem = problems.problem_from_id("regression/15")
    config = problems.SETTINGS["regression/15"]
    assert (config.seed, config.prior_knowledge.noise_std) == (16, 0.1)
    keys = [jax.random.split(jax.random.PRNGKey(16))[1]]
    train_key, _ = jax.random.split(keys[0])
    np.testing.assert_array_equal(
        problem.train_data.x, jax.random.normal(train_key, [1, 1])
    )
    data = problem.data_sampler
    assert data.test_function.shape == (1000, 1)
    # E[log p / q] = E f² / 2σ², over 1001 test rows.
    expected = float(jnp.square(data.test_function).mean()) / (2 * 0.1**2)
    quality = base.run(constant, problem)
    assert quality.kl_estimate == pytest.approx(expected, rel=0.15)
    assert quality.extra["stream"] == "default"


@pytest.mark.slow
def test_enn_paper_id_is_judged_by_the_posterior():
    problem = problems.problem_from_id("enn_paper/15")
    data = problem.data_sampler
    quality = base.run(constant, problem)
    std = np.sqrt(np.diag(data.test_cov)) + 1e-3
    mean = np.asarray(data.test_mean[:, 0])
    expected = np.log(1e-3 / std) + (std**2 + mean**2) / (2 * 1e-3**2) - 0.5
    assert quality.kl_estimate == pytest.approx(expected.mean(), rel=1e-4)
    exact = problems.problem_from_config(problems.SETTINGS["enn_paper/15"], exact=True)
    np.testing.assert_array_equal(exact.train_data.y, problem.train_data.y)
    x, y = (np.asarray(a, float) for a in problem.train_data)
    variance = gp.mlp_kernel(x, x)
    cross = gp.mlp_kernel(np.asarray(data.x_test, float), x)
    for mean, noise in (
        (data.test_mean, 0.01 * variance),
        (exact.data_sampler.test_mean, 0.01),
    ):
        np.testing.assert_allclose(mean, cross @ y / (variance + noise), rtol=1e-4)


@pytest.mark.slow
def test_ids_of_both_sweeps_share_inputs():
    regression, paper = (
        problems.problem_from_id(f"{name}/120") for name in ("regression", "enn_paper")
    )
    assert regression.train_data.x.shape == (100, 10)
    np.testing.assert_array_equal(regression.train_data.x, paper.train_data.x)
    assert np.isfinite(regression.train_data.y).all()
    assert np.isfinite(paper.train_data.y).all()
