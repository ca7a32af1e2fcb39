"""Estimates of the KL divergence between the truth and joint predictions.

For a test batch of `tau` rows, drawn from the truth P, an agent's predictions Q lose
log P(y₁…y_τ | x₁…x_τ) − log Q(y₁…y_τ | x₁…x_τ). The mean over test batches estimates
d_KL^τ, in nats per batch: a sum over its rows, not divided by `tau`.

Reference: Osband et al., 2022, The Neural Testbed, https://arxiv.org/abs/2110.04629,
section 2.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from enn import metrics
from enn.extra import kmeans
from enn.metrics.base import average_sampled_log_likelihood
from enn.testbed.base import Array, ENNQuality, EpistemicSampler
from enn.testbed.generative import GenerativeDataSampler

_BLOCK = 2**22  # Logits that exist at once.


class SampleBasedKL(Protocol):
    """Estimates the quality of a sampler on a problem's data."""

    def __call__(
        self, enn_sampler: EpistemicSampler, data_sampler: GenerativeDataSampler, /
    ) -> ENNQuality: ...


def sample_logits(
    enn_sampler: EpistemicSampler, x: Array, keys: chex.PRNGKey
) -> jax.Array:
    """Returns the sampler's logits for every key, `[num_keys, batch, num_classes]`.

    A sampler with a method `sample_many(x, keys)` gives them all at once. Others are
    called inside one compiled loop or, if JAX cannot trace them (NumPy, scikit-learn),
    once for each key, on all rows.

    Raises:
      ValueError: if logits are not `[batch, num_classes]`.
    """
    many = getattr(enn_sampler, "sample_many", None)
    if many is not None:
        logits = many(x, keys)
    else:
        try:
            logits = jax.jit(
                lambda x, keys: jax.lax.map(lambda key: enn_sampler(x, key), keys)
            )(x, keys)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            logits = np.stack([np.asarray(enn_sampler(x, key)) for key in keys])
    if logits.ndim != 3 or logits.shape[1] != len(x):
        raise ValueError(
            f"A sampler must return [batch, num_classes] for inputs {list(x.shape)}, "
            f"got {list(logits.shape[1:])}."
        )
    return jnp.asarray(logits)


def parse_kl_estimates(kl_estimates: chex.Array) -> ENNQuality:
    """Returns the mean of estimates over test batches, and how far to trust it.

    Infinite losses count as the largest finite one, which favours agents that are sure
    and wrong: `pct_finite_kl`, the share of finite estimates, tells. `kl_estimate_std`
    is the standard deviation of the estimates as they are.

    Args:
      kl_estimates: `[num_test_seeds]`.

    >>> import numpy as np
    >>> from enn import testbed
    >>> float(testbed.parse_kl_estimates([1.0, 2.0, np.inf, -1.0]).kl_estimate)
    1.0
    """
    kls = np.asarray(kl_estimates, np.float32)
    finite = np.isfinite(kls)
    most = kls[finite].max() if finite.any() else np.inf
    with np.errstate(invalid="ignore"):
        mean, std = np.minimum(kls, most).mean(), kls.std()
    extra = {"kl_estimate_std": float(std), "pct_finite_kl": float(finite.mean())}
    extra |= dict.fromkeys(("train_acc", "test_acc", "train_ece", "test_ece"))
    return ENNQuality(float(mean), extra)


@functools.partial(jax.jit, static_argnames="log_space")
def _log_likelihoods(logits: jax.Array, y: jax.Array, log_space: bool) -> jax.Array:
    """Joint log-likelihoods `[num_samples, num_batches]` of `[num_batches, tau, 1]`."""
    logits = logits.reshape(len(logits), *y.shape[:2], -1)
    log_probs = (
        jax.nn.log_softmax(logits) if log_space else jnp.log(jax.nn.softmax(logits))
    )
    return jnp.take_along_axis(log_probs, y[None], axis=-1)[..., 0].sum(-1)


class AtManyTaus:
    """A sampler to judge at several `tau`, smaller ones first, evaluating rows once.

    Test batches of one problem begin, in today's random stream, with the rows of those
    of a smaller `tau`, whose log-likelihoods are kept. For the exact estimate.

    Attributes:
      latest: inputs, labels, keys and log-likelihoods `[num_keys, num_batches]` of the
        last test batches.
    """

    def __init__(self, sampler: EpistemicSampler):
        """Takes the sampler, whose functions must stay as they are."""
        self._sampler = sampler
        self.latest: tuple[Any, Any, chex.PRNGKey, np.ndarray] | None = None

    def __call__(self, x: Array, key: chex.PRNGKey) -> Any:
        """Returns the logits of the sampler."""
        return self._sampler(x, key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def log_likelihoods(
        self, x: Any, y: Any, keys: chex.PRNGKey, evaluate: Callable[[int], np.ndarray]
    ) -> np.ndarray:
        """Returns log-likelihoods `[num_keys, num_batches]` of test batches.

        Args:
          x: inputs, `[num_batches, tau, input_dim]`.
          y: labels, `[num_batches, tau, 1]`.
          keys: draw the functions.
          evaluate: returns them for the rows of each batch from a number on.
        """
        known = self._num_known(x, y, keys)
        lls = evaluate(known)
        if known and self.latest is not None:
            lls = lls + self.latest[-1][:, : len(x)]
        self.latest = x, y, keys, lls
        return lls

    def _num_known(self, x: Any, y: Any, keys: chex.PRNGKey) -> int:
        """Returns the last `tau` if test batches begin with the last ones, else 0."""
        if self.latest is None or self.latest[0].shape[1] >= x.shape[1]:
            return 0
        *last, last_keys, _ = self.latest
        tau = last[0].shape[1]
        pairs = [(jax.random.key_data(keys), jax.random.key_data(last_keys))]
        for rows, last_rows in zip((x, y), last, strict=True):
            pairs.append((rows[:, :tau], last_rows[: len(rows)]))
        return tau if all(np.array_equal(a, b) for a, b in pairs) else 0


class CategoricalKLSampledXSampledY:
    """The exact joint likelihood of each test batch, for any `tau`.

    log Q = log (1/S) Σₛ Πₜ softmax(fₛ(xₜ))_yₜ. All test batches are evaluated with the
    same functions fₛ, so that each is evaluated once on all inputs; of a sampler with a
    method `distinct_keys(keys)`, such as an ensemble, only functions that differ. With
    constant logits the estimate is exactly mean(log P) + tau · log C.

    Osband et al., 2022, https://arxiv.org/abs/2110.04629, section 2.
    """

    def __init__(
        self,
        num_test_seeds: int,
        num_enn_samples: int,
        key: chex.PRNGKey,
        num_classes: int | None = None,
        log_space: bool = False,
    ):
        """Fixes test batches and samples by `key`.

        Args:
          num_test_seeds: number of test batches.
          num_enn_samples: number of functions S drawn from the posterior.
          key: draws both.
          num_classes: not used.
          log_space: whether to use log softmax, whose values stay finite. The published
            estimator takes the logarithm of a float32 probability, which is −∞ once
            the label's logit trails by about 100 nats.
        """
        del num_classes
        kl_key, enn_key = jax.random.split(key)
        self._kl_keys = jax.random.split(kl_key, num_test_seeds)
        self._enn_keys = jax.random.split(enn_key, num_enn_samples)
        self._log_space = log_space

    def __call__(
        self, enn_sampler: EpistemicSampler, data_sampler: GenerativeDataSampler
    ) -> ENNQuality:
        """Returns the estimate; `extra` also counts distinct functions."""
        (x, y), true_ll = data_sampler.test_batches(self._kl_keys)
        keys, which = self._enn_keys, slice(None)
        if hasattr(enn_sampler, "distinct_keys"):
            keys, which = enn_sampler.distinct_keys(keys)

        def evaluate(start: int) -> np.ndarray:
            blocks = _in_blocks(enn_sampler, x[:, start:], keys)
            lls = [
                _log_likelihoods(logits, y[part, start:], self._log_space)
                for part, logits in blocks
            ]
            return np.concatenate(lls, axis=1)

        if isinstance(enn_sampler, AtManyTaus):
            lls = enn_sampler.log_likelihoods(x, y, keys, evaluate)
        else:
            lls = evaluate(0)
        agent_ll = jax.vmap(average_sampled_log_likelihood, 1)(lls[which])
        quality = parse_kl_estimates(true_ll - agent_ll)
        assert quality.extra is not None
        quality.extra["num_distinct_samples"] = len(set(map(bytes, lls)))
        return quality


def _in_blocks(enn_sampler: EpistemicSampler, x: Array, keys: chex.PRNGKey) -> Any:
    """Yields slices of the test batches and their logits, of bounded size."""
    num_batches, tau, input_dim = x.shape
    most = max(_BLOCK // (len(keys) * tau * 2), 1)
    size = -(-num_batches // -(-num_batches // most))  # Blocks of about one size.
    for start in range(0, num_batches, size):
        part = slice(start, start + size)
        flat = x[part].reshape(-1, input_dim)
        yield part, sample_logits(enn_sampler, flat, keys)


def add_classification_accuracy_ece(
    kl_fn: SampleBasedKL,
    num_test_seeds: int,
    num_enn_samples: int,
    num_bins: int = 10,
    key: chex.PRNGKey | None = None,
) -> SampleBasedKL:
    """Returns `kl_fn` with accuracy and calibration error of the marginal predictions.

    Args:
      kl_fn: the estimator.
      num_test_seeds: number of test batches, which make one test set.
      num_enn_samples: number of functions drawn.
      num_bins: bins of the expected calibration error.
      key: draws test data and functions; `PRNGKey(0)` if None.
    """

    def estimate(
        enn_sampler: EpistemicSampler, data_sampler: GenerativeDataSampler
    ) -> ENNQuality:
        quality = kl_fn(enn_sampler, data_sampler)
        data_key, enn_key = jax.random.split(
            jax.random.PRNGKey(0) if key is None else key
        )
        test, _ = data_sampler.test_batches(jax.random.split(data_key, num_test_seeds))
        enn_keys = jax.random.split(enn_key, num_enn_samples)
        train = data_sampler.train_data
        x = jnp.concatenate([train.x, test.x.reshape(-1, train.x.shape[1])])
        y = jnp.concatenate([train.y, test.y.reshape(-1, 1)])
        # Few shapes, whatever the number of training data: each compiles a program.
        padded = jnp.pad(x, [(0, -len(x) % 1024), (0, 0)])
        logits = sample_logits(enn_sampler, padded, enn_keys)
        accuracy = metrics.make_accuracy_calculator()
        ece = metrics.SingleBatchECE(num_bins)
        extra = dict(quality.extra or {})
        for name, rows in (
            ("train", slice(None, len(train.x))),
            ("test", slice(len(train.x), len(x))),
        ):
            extra[f"{name}_acc"] = float(accuracy(logits[:, rows], y[rows]))
            extra[f"{name}_ece"] = float(ece(logits[:, rows], y[rows]))
        return ENNQuality(quality.kl_estimate, extra)

    return estimate


ClusterAlg = Callable[[jax.Array, jax.Array, chex.PRNGKey], tuple[jax.Array, jax.Array]]
"""Probits `[S, tau, C]`, labels `[tau, 1]` and a key to weights and probabilities.

These are `[J]` and `[J, tau]`. The weights of the clusters of samples sum to 1; the
probabilities are the mean ones of the labels within each cluster.
"""


def _features(
    probits: jax.Array, labels: jax.Array, only_correct: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the labels' probits `[S, tau]`, and what to cluster, `[S, width]`."""
    correct = jnp.take_along_axis(probits, labels[None], axis=-1)[..., 0]
    return correct, correct if only_correct else probits.reshape(len(probits), -1)


def _means(
    probs: jax.Array, clusters: jax.Array, num: int, eps: float, count_eps: float
) -> tuple[jax.Array, jax.Array]:
    members = jax.nn.one_hot(clusters, num)
    counts = members.sum(0)
    return counts / len(probs), (members.T @ probs + eps) / (
        counts[:, None] + count_eps
    )


@dataclasses.dataclass(frozen=True)
class RandomProjection:
    """Clusters samples by the signs of random projections of their probits.

    For `CategoricalClusterKL` (Osband et al., 2022, https://arxiv.org/abs/2110.04629).

    >>> import jax, numpy as np
    >>> from enn import testbed
    >>> probits = np.ones([10, 2, 2])  # Samples that agree are one cluster.
    >>> cluster, labels = testbed.RandomProjection(dimension=3), np.array([[0], [1]])
    >>> weights, _ = cluster(probits, labels, jax.random.key(0))
    >>> float(weights.max()), len(weights)
    (1.0, 8)

    Attributes:
      dimension: number of projections; there are up to 2^dimension clusters.
      cluster_only_correct_class: whether to use the labels' probits alone.
      normalize: whether to whiten the probits first.
    """

    dimension: int
    cluster_only_correct_class: bool = False
    normalize: bool = False

    def __call__(
        self, probits: jax.Array, labels: jax.Array, key: chex.PRNGKey
    ) -> tuple[jax.Array, jax.Array]:
        """Returns weights and mean probabilities of the labels; see `ClusterAlg`."""
        correct, f = _features(probits, labels, self.cluster_only_correct_class)
        if self.normalize:
            u, _, v = jnp.linalg.svd(f - f.mean(0, keepdims=True), full_matrices=False)
            f = u @ v
        a_key, b_key = jax.random.split(key)
        a = jax.random.normal(a_key, [self.dimension, f.shape[1]])
        b = jax.random.normal(b_key, [1, self.dimension])
        signs = f @ a.T + b > 0
        codes = signs @ (2 ** jnp.arange(self.dimension)[::-1])
        return _means(norm.cdf(correct), codes, 2**self.dimension, 1e-6, 1e-6)


@dataclasses.dataclass(frozen=True)
class KmeansCluster:
    """Clusters samples by K-means of their probits.

    For `CategoricalClusterKL` (Osband et al., 2022, https://arxiv.org/abs/2110.04629).

    >>> import jax, numpy as np
    >>> from enn import testbed
    >>> probits = np.repeat([1.0, -1.0], [3, 1])[:, None, None] * np.ones([2, 2])
    >>> cluster, labels = testbed.KmeansCluster(num_centroids=2), np.array([[0], [1]])
    >>> weights, _ = cluster(probits, labels, jax.random.key(0))
    >>> sorted(weights.tolist())  # One sample of four differs.
    [0.25, 0.75]

    Attributes:
      num_centroids: number of clusters.
      max_iter: number of iterations.
      cluster_only_correct_class: whether to use the labels' probits alone.
    """

    num_centroids: int
    max_iter: int = 10
    cluster_only_correct_class: bool = False

    def __call__(
        self, probits: jax.Array, labels: jax.Array, key: chex.PRNGKey
    ) -> tuple[jax.Array, jax.Array]:
        """Returns weights and mean probabilities of the labels; see `ClusterAlg`."""
        correct, f = _features(probits, labels, self.cluster_only_correct_class)
        k_means = kmeans.KMeansCluster(self.num_centroids, self.max_iter, key)
        clusters = k_means.fit(f).classes
        return _means(norm.cdf(correct), clusters, self.num_centroids, 5e-10, 1e-9)


def log_sum_prod(weights: jax.Array, probs: jax.Array) -> jax.Array:
    """Returns log Σⱼ weightsⱼ Πₜ probsⱼₜ, `[J]` and `[J, tau]` to a scalar."""
    probs = jnp.where(weights[:, None] == 0, 1e-9, probs)
    return jax.scipy.special.logsumexp(jnp.log(probs).sum(1), b=weights)


class JointLLCalculatorProjection:
    """Joint log-likelihood by clusters of samples, as a metric.

    Within a cluster, the product over rows of mean probabilities stands in for the mean
    of products: few samples then serve a large `tau`, at the price of a bias that can
    be large. `enn.metrics.calculate_joint_ll` is exact.

    Osband et al., 2022, https://arxiv.org/abs/2110.04629.

    >>> import jax, numpy as np
    >>> from enn import testbed
    >>> clusters = testbed.RandomProjection(dimension=3)
    >>> joint_ll = testbed.JointLLCalculatorProjection(clusters, 5.0, jax.random.key(0))
    >>> logits, labels = np.zeros([10, 2, 2]), np.array([[0], [1]])
    >>> round(float(joint_ll(logits, labels)), 3)  # 2 log ½
    -1.386
    """

    def __init__(
        self, cluster_alg: ClusterAlg, clip_probits: float, cluster_key: chex.PRNGKey
    ):
        """Sets the clusters.

        Args:
          cluster_alg: clusters the samples.
          clip_probits: probits are clipped to ± this.
          cluster_key: key for `cluster_alg`.
        """
        self._alg, self._clip, self._key = cluster_alg, clip_probits, cluster_key

    def __call__(self, logits: chex.Array, labels: chex.Array) -> jax.Array:
        """Returns a scalar for logits `[S, tau, C]` and labels `[tau, 1]`."""
        probits = norm.ppf(jax.nn.softmax(jnp.asarray(logits)))
        probits = jnp.clip(probits, -self._clip, self._clip)
        return log_sum_prod(*self._alg(probits, jnp.asarray(labels), self._key))


class CategoricalClusterKL:
    """Estimates by clusters of samples, the published choice above `tau` = 10.

    log Q = log Σⱼ wⱼ Πₜ p̄ⱼₜ over clusters j of weight wⱼ and mean probability p̄ⱼₜ of
    label t (Osband et al., 2022, https://arxiv.org/abs/2110.04629).
    """

    def __init__(
        self,
        cluster_alg: ClusterAlg,
        num_enn_samples: int,
        num_test_seeds: int,
        key: chex.PRNGKey,
        clip_probits: float = 5.0,
    ):
        """Fixes test batches, samples and clusters by `key`.

        Args:
          cluster_alg: clusters the samples.
          num_enn_samples: number of functions drawn from the posterior.
          num_test_seeds: number of test batches.
          key: draws them.
          clip_probits: see `JointLLCalculatorProjection`.
        """
        kl_key, enn_key, cluster_key = jax.random.split(key, 3)
        self._kl_keys = jax.random.split(kl_key, num_test_seeds)
        self._enn_keys = jax.random.split(enn_key, num_enn_samples)
        self._joint_lls = functools.partial(
            _clustered_log_likelihoods, cluster_alg, clip_probits, cluster_key
        )

    def __call__(
        self, enn_sampler: EpistemicSampler, data_sampler: GenerativeDataSampler
    ) -> ENNQuality:
        """Returns the estimate."""
        (x, y), true_ll = data_sampler.test_batches(self._kl_keys)
        blocks = _in_blocks(enn_sampler, x, self._enn_keys)
        agent_ll = np.concatenate(
            [self._joint_lls(logits, y[part]) for part, logits in blocks]
        )
        return parse_kl_estimates(true_ll - agent_ll)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _clustered_log_likelihoods(
    alg: ClusterAlg, clip: float, key: chex.PRNGKey, logits: jax.Array, y: jax.Array
) -> jax.Array:
    """Joint log-likelihoods `[num_batches]` of labels `[num_batches, tau, 1]`."""
    joint_ll = JointLLCalculatorProjection(alg, clip, key)
    batches = logits.reshape(len(logits), *y.shape[:2], -1).swapaxes(0, 1)
    return jax.lax.map(lambda args: joint_ll(*args), (batches, y))


def compute_discrete_kl(p: chex.Array, q: chex.Array) -> jax.Array:
    """Returns Σ p (log p − log q); terms that are NaN, as of p = 0, count as 0.

    >>> import numpy as np
    >>> from enn import testbed
    >>> p, q = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    >>> round(float(testbed.compute_discrete_kl(p, q)), 4)  # log 2
    0.6931
    """
    return jnp.nansum(p * (jnp.log(p) - jnp.log(q)))
