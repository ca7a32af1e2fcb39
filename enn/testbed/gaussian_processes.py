"""Problems whose truth is drawn from a Gaussian process, and how they are judged.

The process is the limit of the testbed's random networks as they grow wide, so that the
posterior is known in closed form.

Reference: Osband et al., 2021, Epistemic Neural Networks,
https://arxiv.org/abs/2107.08924, section 4; the kernel is that of Cho and Saul, 2009,
https://papers.nips.cc/paper/3628-kernel-methods-for-deep-learning.
"""

from collections.abc import Callable

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from enn import _checks, metrics
from enn.testbed.base import (
    Array,
    Data,
    ENNQuality,
    EpistemicSampler,
    PriorKnowledge,
    TestbedProblem,
    stream_name,
)
from enn.testbed.estimators import sample_logits
from enn.testbed.gaussian_estimators import gaussian_log_likelihood, gaussian_quality
from enn.testbed.generative import GenerativeDataSampler, sample_labels

KernelFn = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Inputs `[num_1, input_dim]` and `[num_2, input_dim]` to covariances `[num_1, num_2]`.

Called with float64 arrays. Kernels of scikit-learn are such functions.
"""

_BLOCK = 512  # Rows of a kernel matrix that are computed at once.


def linear_kernel(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Returns the covariances of random linear functions: (x₁ᵀx₂ + 1) / D.

    Weights and bias are normal with variance 1/D.

    >>> import numpy as np
    >>> from enn import testbed
    >>> x, y = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])
    >>> float(testbed.linear_kernel(x, y)[0, 0])
    6.0
    """
    return (x1 @ x2.T + 1) / x1.shape[1]


def mlp_kernel(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Returns the covariances of wide random ReLU networks with two hidden layers.

    Each layer maps a kernel k to √(k₁₁k₂₂) / (2π) · (sin θ + (π − θ) cos θ), with
    cos θ = k₁₂ / √(k₁₁k₂₂) (Cho and Saul, 2009, eq. 3 to 6, at degree 1); the first
    starts from `linear_kernel`.

    >>> import numpy as np
    >>> from enn import testbed
    >>> x = np.array([[1.0, 2.0]])  # Each layer halves the variance, (1 + 4 + 1) / 2.
    >>> round(float(testbed.mlp_kernel(x, x)[0, 0]), 6)
    0.75
    """
    variances = [(np.square(x).sum(1) + 1) / x.shape[1] for x in (x1, x2)]
    scale = np.sqrt(np.multiply.outer(*variances))
    cos = linear_kernel(x1, x2) / scale
    for _ in range(2):
        cos = np.clip(cos, -1, 1)
        cos = (np.sqrt(1 - cos**2) + (np.pi - np.arccos(cos)) * cos) / np.pi
        scale /= 2
    return scale * cos


def gaussian_data(
    key: chex.PRNGKey, num_train: int, input_dim: int, num_test: int
) -> tuple[jax.Array, jax.Array]:
    """Returns standard normal inputs to train and to test on.

    >>> import jax
    >>> from enn import testbed
    >>> train, test = testbed.gaussian_data(jax.random.PRNGKey(0), 3, 2, 5)
    >>> train.shape, test.shape
    ((3, 2), (5, 2))
    """
    train_key, test_key = jax.random.split(key)
    x_train = jax.random.normal(train_key, [num_train, input_dim])
    return x_train, jax.random.normal(test_key, [num_test, input_dim])


def _cholesky(kernel_fn: KernelFn, x: Array, ridge: float) -> np.ndarray:
    """Returns the lower Cholesky factor of the kernel matrix of `x` plus `ridge` · I.

    In float64: the smallest eigenvalues are below float32's rounding. In place and in
    blocks: the matrix of the largest problem alone takes 1 GB.
    """
    x = np.asarray(x, np.float64)
    matrix = np.zeros((len(x), len(x)))
    for start in range(0, len(x), _BLOCK):
        stop = start + _BLOCK
        matrix[start:stop, :stop] = kernel_fn(x[start:stop], x[:stop])
    matrix.flat[:: len(x) + 1] += ridge
    # LAPACK stores columns first, so to it the transpose is contiguous.
    factor = scipy.linalg.cholesky(matrix.T, overwrite_a=True, check_finite=False)
    return np.asarray(factor).T


def _draw(key: chex.PRNGKey, factor: np.ndarray) -> jax.Array:
    """Returns values `[n, 1]` of one function, from the factor of their covariance."""
    noise = np.asarray(jax.random.normal(key, [len(factor)]), np.float64)
    return jnp.asarray((factor @ noise)[:, None])


def posterior(
    kernel_fn: KernelFn,
    data: Data,
    x_test: Array,
    noise_variance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact posterior of a function, given noisy values.

    The mean is K_*ₙ(Kₙₙ + σ²I)⁻¹y and the covariance K_** − K_*ₙ(Kₙₙ + σ²I)⁻¹Kₙ_*
    (Rasmussen and Williams, 2006, http://gaussianprocess.org/gpml, eq. 2.23 and 2.24).

    Args:
      kernel_fn: the prior covariance; the prior mean is 0.
      data: inputs `[num_train, input_dim]` and values `[num_train, 1]`.
      x_test: inputs `[num_test, input_dim]`.
      noise_variance: σ².

    Returns:
      Mean `[num_test, 1]` and covariance `[num_test, num_test]`, in float64.

    >>> import numpy as np
    >>> from enn import testbed
    >>> from enn.testbed.gaussian_processes import posterior
    >>> data = testbed.Data(np.ones((1, 1)), np.ones((1, 1)))
    >>> mean, cov = posterior(
    ...     testbed.linear_kernel, data, np.ones((1, 1)), noise_variance=2.0
    ... )
    >>> mean.round(6).tolist(), cov.round(6).tolist()  # 2 / (2 + 2), 2 - 2² / (2 + 2)
    ([[0.5]], [[1.0]])
    """
    x_train, x_test = (np.asarray(x, np.float64) for x in (data.x, x_test))
    factor = _cholesky(kernel_fn, x_train, noise_variance)

    def whiten(values: np.ndarray) -> np.ndarray:
        return np.asarray(scipy.linalg.solve_triangular(factor, values, lower=True))

    cross = whiten(kernel_fn(x_train, x_test))
    mean = cross.T @ whiten(np.asarray(data.y, np.float64))
    return mean, kernel_fn(x_test, x_test) - cross.T @ cross


def _semidefinite_cholesky(cov: jax.Array) -> jax.Array:
    """Returns the lower Cholesky factor, 0 in columns that depend on earlier ones.

    Test inputs may repeat, and the covariance then is singular.
    """
    rows = jnp.arange(len(cov))
    tiny = len(cov) * jnp.finfo(cov.dtype).eps * jnp.diag(cov)

    def add_column(j: jax.Array, factor: jax.Array) -> jax.Array:
        rest = jnp.where(rows >= j, cov[:, j] - factor @ factor[j], 0)
        column = rest / jnp.sqrt(rest[j])
        return factor.at[:, j].set(jnp.where(rest[j] > tiny[j], column, 0))

    return jax.lax.fori_loop(0, len(cov), add_column, jnp.zeros_like(cov))


def _check(x_train: Array, x_test: Array, noise_std: float) -> None:
    _checks.shape("x_train", x_train, (None, None), "[num_train, input_dim]")
    dim = x_train.shape[1]
    _checks.shape("x_test", x_test, (None, dim), f"[num_test, {dim}]")
    if not noise_std > 0:
        raise ValueError(f"noise_std must be > 0, got {noise_std!r}.")


class GPRegression(GenerativeDataSampler):
    """Noisy values of a function, tested by its exact posterior.

    Test data are drawn from the posterior given the training data, and so are new
    functions, not the one trained on: no agent can do better than the posterior.

    Attributes:
      x_test: the test inputs, `[num_test, input_dim]`.
      test_mean: exact posterior mean there, `[num_test, 1]`.
      test_cov: exact posterior covariance, plus `kernel_ridge` · I.
    """

    def __init__(
        self,
        kernel_fn: KernelFn,
        x_train: Array,
        x_test: Array,
        key: chex.PRNGKey,
        tau: int = 1,
        noise_std: float = 1.0,
        kernel_ridge: float = 1e-6,
        relative_noise: bool = True,
    ):
        """Draws the training data.

        Args:
          kernel_fn: prior covariance of the function.
          x_train: inputs to train on, `[num_train, input_dim]`.
          x_test: inputs to test at, `[num_test, input_dim]`.
          key: draws function and noise.
          tau: number of rows of each batch of test data.
          noise_std: standard deviation of the noise.
          kernel_ridge: added to variances.
          relative_noise: whether the posterior takes `noise_std`² times the mean prior
            variance of the training inputs for the variance of the noise, as published
            results do, which is about a quarter to a half of it; else `noise_std`².
        """
        _check(x_train, x_test, noise_std)
        rng = hk.PRNGSequence(key)
        factor = _cholesky(kernel_fn, x_train, kernel_ridge)
        function = _draw(next(rng), factor)
        # The squares of the factor add up to the trace of the matrix.
        mean_variance = np.vdot(factor, factor) / len(factor) - kernel_ridge
        del factor  # Up to .8 GB.
        noise = noise_std * jax.random.normal(next(rng), function.shape)
        self._train_data = Data(jnp.asarray(x_train), function + noise)
        mean, cov = posterior(
            kernel_fn,
            self._train_data,
            x_test,
            noise_std**2 * (mean_variance if relative_noise else 1),
        )
        cov.flat[:: len(cov) + 1] += kernel_ridge
        self.x_test = jnp.asarray(x_test)
        self.test_mean, self.test_cov = jnp.asarray(mean), jnp.asarray(cov)
        self._tau, self._noise_std = tau, noise_std

    @property
    def train_data(self) -> Data:
        """The data to train on."""
        return self._train_data

    def test_data(self, key: chex.PRNGKey) -> tuple[Data, jax.Array]:
        """Returns `tau` test rows and their joint log-likelihood, in nats.

        The likelihood is that under the posterior and the noise.
        """
        x_key, fn_key, y_key = jax.random.split(key, 3)
        rows = jax.random.randint(x_key, [self._tau], 0, len(self.x_test))
        mean, cov = self.test_mean[rows], self.test_cov[jnp.ix_(rows, rows)]
        function = _semidefinite_cholesky(cov) @ jax.random.normal(fn_key, mean.shape)
        noise = self._noise_std * jax.random.normal(y_key, mean.shape)
        cov += self._noise_std**2 * jnp.eye(self._tau)
        log_likelihood = gaussian_log_likelihood(function + noise, cov)[0]
        return Data(self.x_test[rows], mean + function + noise), log_likelihood


class GPRegressionEnvLikelihood(GenerativeDataSampler):
    """Noisy values of a function, tested by the same function.

    Attributes:
      x_test: the test inputs, `[num_test, input_dim]`.
      test_function: the values of the function there, `[num_test, 1]`.
    """

    def __init__(
        self,
        kernel_fn: KernelFn,
        x_train: Array,
        x_test: Array,
        key: chex.PRNGKey,
        tau: int = 1,
        noise_std: float = 1.0,
        kernel_ridge: float = 1e-5,
    ):
        """Draws the function at training and test inputs; see `GPRegression`."""
        _check(x_train, x_test, noise_std)
        rng = hk.PRNGSequence(key)
        x = np.concatenate([x_train, x_test])
        function = _draw(next(rng), _cholesky(kernel_fn, x, kernel_ridge))
        train, self.test_function = jnp.split(function, [len(x_train)])
        noise = noise_std * jax.random.normal(next(rng), train.shape)
        self._train_data = Data(jnp.asarray(x_train), train + noise)
        self.x_test = jnp.asarray(x_test)
        self._tau, self._noise_std = tau, noise_std

    @property
    def train_data(self) -> Data:
        """The data to train on."""
        return self._train_data

    def test_data(self, key: chex.PRNGKey) -> tuple[Data, jax.Array]:
        """Returns `tau` test rows and the log-likelihood of their noise, in nats."""
        x_key, y_key = jax.random.split(key)
        rows = jax.random.randint(x_key, [self._tau], 0, len(self.x_test))
        noise = self._noise_std * jax.random.normal(y_key, [self._tau, 1])
        cov = self._noise_std**2 * jnp.eye(self._tau)
        log_likelihood = gaussian_log_likelihood(noise, cov)[0]
        return Data(self.x_test[rows], self.test_function[rows] + noise), log_likelihood


class GPClassificationEnvLikelihood(GenerativeDataSampler):
    """Classes whose logits are values of functions, one a class.

    Attributes:
      test_x: the test inputs, `[num_test, input_dim]`.
      probabilities: their true class probabilities, `[num_test, num_classes]`.
    """

    def __init__(
        self,
        kernel_fn: KernelFn,
        x_train: Array,
        x_test: Array,
        key: chex.PRNGKey,
        tau: int = 1,
        num_classes: int = 2,
        temperature: float = 1.0,
        kernel_ridge: float = 1e-6,
    ):
        """Draws the functions at training and test inputs.

        Args:
          kernel_fn: prior covariance of each function.
          x_train: inputs to train on, `[num_train, input_dim]`.
          x_test: inputs to test at, `[num_test, input_dim]`.
          key: draws functions and labels.
          tau: number of rows of each batch of test data.
          num_classes: number of classes.
          temperature: logits are divided by it.
          kernel_ridge: added to variances.
        """
        _check(x_train, x_test, noise_std=1.0)
        rng = hk.PRNGSequence(key)
        factor = _cholesky(kernel_fn, np.concatenate([x_train, x_test]), kernel_ridge)
        keys = jax.random.split(next(rng), num_classes)
        logits = jnp.concatenate([_draw(key, factor) for key in keys], axis=1)
        probs = jax.nn.softmax(logits / temperature)
        train, self.probabilities = jnp.split(probs, [len(x_train)])
        self._train_data = Data(
            jnp.asarray(x_train), jax.jit(sample_labels)(next(rng), train)
        )
        self.test_x, self._tau = jnp.asarray(x_test), tau

    @property
    def train_data(self) -> Data:
        """The data to train on."""
        return self._train_data

    def test_data(self, key: chex.PRNGKey) -> tuple[Data, jax.Array]:
        """Returns `tau` test rows and their joint log-likelihood, in nats."""
        x_key, y_key = jax.random.split(key)
        rows = jax.random.randint(x_key, [self._tau], 0, len(self.test_x))
        probs = self.probabilities[rows]
        y = sample_labels(y_key, probs)
        log_likelihood = metrics.categorical_log_likelihood(probs, y)
        return Data(self.test_x[rows], y), log_likelihood


class TestbedGPRegression(TestbedProblem):
    """Judges the function's mean and standard deviation at every test input.

    The quality is the mean over inputs of KL(exact posterior ‖ samples), both as
    univariate Gaussians without noise: log(σ₂/σ₁) + (σ₁² + (μ₁ − μ₂)²) / 2σ₂² − ½.

    Attributes:
      data_sampler: the truth.
    """

    __test__ = False

    def __init__(
        self,
        data_sampler: GPRegression,
        prior: PriorKnowledge,
        key: chex.PRNGKey,
        num_enn_samples: int = 100,
        std_ridge: float = 1e-3,
    ):
        """Takes the parts of the problem.

        Args:
          data_sampler: the truth.
          prior: what agents may know.
          key: draws functions from an agent's posterior.
          num_enn_samples: how many.
          std_ridge: added to both standard deviations.

        Raises:
          ValueError: unless `tau` is 1.
        """
        if prior.tau != 1:
            raise ValueError(f"Marginal predictions have tau = 1, got {prior.tau}.")
        self.data_sampler, self._prior = data_sampler, prior
        self._keys = jax.random.split(key, num_enn_samples)
        self._ridge = std_ridge

    @property
    def train_data(self) -> Data:
        """The data to train on."""
        return self.data_sampler.train_data

    @property
    def prior_knowledge(self) -> PriorKnowledge:
        """What the agent may know."""
        return self._prior

    def evaluate_quality(self, enn_sampler: EpistemicSampler) -> ENNQuality:
        """Returns the mean KL over test inputs; `extra` names the random stream."""
        truth = self.data_sampler
        mean, std = truth.test_mean[:, 0], jnp.sqrt(jnp.diag(truth.test_cov))
        samples = sample_logits(enn_sampler, truth.x_test, self._keys)
        _checks.shape("A sample", samples[0], (len(mean), 1), "[batch, 1]")
        enn_mean, enn_std = samples[..., 0].mean(0), samples[..., 0].std(0)
        std, enn_std = std + self._ridge, enn_std + self._ridge
        variance = jnp.square(std) + jnp.square(mean - enn_mean)
        kl = jnp.log(enn_std / std) + variance / (2 * jnp.square(enn_std)) - 0.5
        quality = gaussian_quality(kl)
        return ENNQuality(
            quality.kl_estimate, {**(quality.extra or {}), "stream": stream_name()}
        )
