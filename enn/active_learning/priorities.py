"""Priorities of rows, from the logits at several epistemic indices.

Below, pₛ = softmax(logitsₛ) and p̄ = (1/S) Σₛ pₛ. All scores are higher for rows more
wanted, all logarithms natural.
"""

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, _sharding
from enn.active_learning.base import (
    PerExamplePriority,
    PriorityFn,
    PriorityFnCtor,
    PriorityOutput,
)
from enn.datasets.base import ArrayBatch
from enn.metrics import uncertainty
from enn.metrics.base import (
    log_mean_exp,
    pairwise_mean,
    pairwise_sum,
    root_mean_square,
)
from enn.metrics.likelihood import (
    class_probs,
    label_log_likelihoods,
    marginal_probs,
)
from enn.networks.forwarders import EnnBatchFwd


def uniform_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Uniform random scores: every row alike."""
    return jax.random.uniform(key, labels.shape[:1], jnp.float32)


@_sharding.allow_explicit_axes
@jax.jit
def variance_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Variance of the class probabilities over indices: Σ_c varₛ pₛ(c)."""
    squares = uncertainty.deviations(class_probs(logits)) ** 2
    return pairwise_sum(pairwise_mean(squares), -1)


def nll_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Marginal negative log-likelihood of the label: −log p̄(y).

    Raises:
      ValueError: if a label is out of range.
    """
    return -log_mean_exp(_log_probs(logits, labels))


def joint_nll_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Log-likelihood of ten repeats of the label, averaged: −(1/S) Σₛ 10 log pₛ(y).

    Numbers follow the original `enn`. The joint negative log-likelihood of ten repeats
    would be −log (1/S) Σₛ pₛ(y)¹⁰, which may rank the rows differently.

    Raises:
      ValueError: if a label is out of range.
    """
    return -10 * pairwise_mean(_log_probs(logits, labels))


def entropy_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Entropy of the marginal prediction, H(p̄).

    Equation: −Σ_c p̄(c) log p̄(c) (maximum entropy, Gal et al., 2017,
    https://arxiv.org/abs/1703.02910).
    """
    return uncertainty.predictive_entropy(logits)


@jax.jit
def margin_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Minus the gap between the two most probable classes of p̄.

    Equation: −(max_c p̄(c) − second largest p̄(c)) (Scheffer et al., 2001, Active
    hidden Markov models for information extraction).

    >>> import jax, numpy as np
    >>> from enn.active_learning import priorities
    >>> logits, labels = np.log([[[0.9, 0.1]], [[0.5, 0.5]]]), np.array([[0]])
    >>> score = priorities.margin_per_example(logits, labels, jax.random.key(0))
    >>> round(float(score[0]), 3)  # 0.3 - 0.7
    -0.4

    Raises:
      ValueError: if there is only one class.
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"margin needs at least 2 classes, got {logits.shape[-1]}.")
    top, _ = jax.lax.top_k(marginal_probs(logits), 2)
    return top[:, 1] - top[:, 0]


def bald_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Mutual information of label and index: H(p̄) − (1/S) Σₛ H(pₛ).

    Bayesian active learning by disagreement (Houlsby et al., 2011,
    https://arxiv.org/abs/1112.5745). Each row is scored by itself: the k rows of
    highest score are a greedy choice, and may be redundant. The k rows that are
    jointly most informative are those of BatchBALD (Kirsch et al., 2019,
    https://arxiv.org/abs/1906.08158), which is not implemented here.

    >>> import jax, numpy as np
    >>> from enn.active_learning import priorities
    >>> logits = np.array([[[50.0, 0.0], [0.0, 0.0]], [[0.0, 50.0], [0.0, 0.0]]])
    >>> labels = np.zeros([2, 1], int)
    >>> scores = priorities.bald_per_example(logits, labels, jax.random.key(0))
    >>> [round(float(score), 3) for score in scores]  # Disagreement, and noise
    [0.693, 0.0]
    """
    return uncertainty.mutual_information(logits)


def var_ratios_per_example(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> jax.Array:
    """Variation ratio: 1 − max_c p̄(c).

    As in Gal et al., 2017, https://arxiv.org/abs/1703.02910.
    """
    return uncertainty.variation_ratio(logits)


def make_ucb_per_example(
    ucb_factor: float = 1.0, class_values: chex.Array | None = None
) -> PerExamplePriority:
    """Returns the upper confidence bound meanₛ v + ucb_factor · stdₛ v.

    v = Σ_c pₛ(c) · class_values(c) is the value that index s expects of a row. The rule
    is that of GP-UCB (Srinivas et al., 2010, https://arxiv.org/abs/0912.3995).

    >>> import jax, numpy as np
    >>> from enn.active_learning import make_ucb_per_example
    >>> ucb = make_ucb_per_example(ucb_factor=2.0)
    >>> logits, labels = np.log([[[0.9, 0.1]], [[0.5, 0.5]]]), np.array([[0]])
    >>> round(float(ucb(logits, labels, jax.random.key(0))[0]), 3)  # 0.7 + 2 · 0.2
    1.1

    Args:
      ucb_factor: weight of the standard deviation.
      class_values: value of each class, `[num_classes]`. If None, class 0 is worth 1
        and the others nothing.

    Returns:
      A priority; raises ValueError if `class_values` has a wrong shape.
    """

    @jax.jit
    def ucb_per_example(
        logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
    ) -> jax.Array:
        mean = _expected_values(marginal_probs(logits), class_values)
        return mean + ucb_factor * _std_of_values(logits, class_values)

    return ucb_per_example


def make_scaled_mean_per_example(
    class_values: chex.Array | None = None,
) -> PerExamplePriority:
    """Returns meanₛ v of the expected value v; see `make_ucb_per_example`.

    >>> import jax, numpy as np
    >>> from enn.active_learning import make_scaled_mean_per_example
    >>> mean = make_scaled_mean_per_example(class_values=np.array([0.0, 10.0]))
    >>> logits, labels = np.log([[[0.9, 0.1]], [[0.5, 0.5]]]), np.array([[0]])
    >>> round(float(mean(logits, labels, jax.random.key(0))[0]), 3)  # 10 · 0.3
    3.0

    Args:
      class_values: as for `make_ucb_per_example`.
    """
    return make_ucb_per_example(0.0, class_values)


def make_scaled_std_per_example(
    class_values: chex.Array | None = None,
) -> PerExamplePriority:
    """Returns stdₛ v of the expected value v; see `make_ucb_per_example`.

    >>> import jax, numpy as np
    >>> from enn.active_learning import make_scaled_std_per_example
    >>> std = make_scaled_std_per_example(class_values=np.array([0.0, 10.0]))
    >>> logits, labels = np.log([[[0.9, 0.1]], [[0.5, 0.5]]]), np.array([[0]])
    >>> round(float(std(logits, labels, jax.random.key(0))[0]), 3)  # 10 · 0.2
    2.0

    Args:
      class_values: as for `make_ucb_per_example`.
    """

    @jax.jit
    def scaled_std_per_example(
        logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
    ) -> jax.Array:
        return _std_of_values(logits, class_values)

    return scaled_std_per_example


_PRIORITIES: dict[str, PerExamplePriority] = {
    "uniform": uniform_per_example,
    "variance": variance_per_example,
    "nll": nll_per_example,
    "joint_nll": joint_nll_per_example,
    "entropy": entropy_per_example,
    "margin": margin_per_example,
    "bald": bald_per_example,
    "var_ratios": var_ratios_per_example,
    "ucb": make_ucb_per_example(),
    "scaled_mean": make_scaled_mean_per_example(),
    "scaled_std": make_scaled_std_per_example(),
}


def make_priority_fn_ctor(per_example_priority: PerExamplePriority) -> PriorityFnCtor:
    """Returns a constructor of the priority function that scores each row by itself.

    >>> import jax, numpy as np
    >>> from enn.active_learning import make_priority_fn_ctor
    >>> from enn.datasets import ArrayBatch
    >>> ctor = make_priority_fn_ctor(lambda logits, labels, key: logits[0, :, 0])
    >>> priority_fn = ctor(lambda params, state, x: x[None])  # A network's forward pass
    >>> batch = ArrayBatch(x=np.array([[1.0], [3.0]]), y=np.zeros([2, 1], int))
    >>> print(priority_fn({}, {}, batch, jax.random.key(0))[0])
    [1. 3.]

    Args:
      per_example_priority: scores the rows from the network's predictions; it gets
        labels as `[batch, 1]`, and the key as it is.
    """

    def make_priority_fn(enn_batch_fwd: EnnBatchFwd[chex.Array]) -> PriorityFn:
        def priority_fn(
            params: hk.Params, state: hk.State, batch: ArrayBatch, key: chex.PRNGKey
        ) -> PriorityOutput:
            logits = enn_batch_fwd(params, state, batch.x)
            labels = batch.y[:, None] if batch.y.ndim == 1 else batch.y
            return per_example_priority(logits, labels, key), {}

        return priority_fn

    return make_priority_fn


def get_implemented_per_example_priorities() -> list[str]:
    """Returns the names that `get_per_example_priority` knows."""
    return list(_PRIORITIES)


def get_per_example_priority(name: str) -> PerExamplePriority:
    """Returns the priority of that name.

    >>> import jax, numpy as np
    >>> from enn.active_learning import get_per_example_priority
    >>> entropy = get_per_example_priority("entropy")
    >>> scores = entropy(np.zeros([5, 1, 2]), np.array([[0]]), jax.random.key(0))
    >>> round(float(scores[0]), 3)  # log 2
    0.693

    Raises:
      ValueError: if the name is unknown.
    """
    _checks.one_of("name", name, _PRIORITIES)
    return _PRIORITIES[name]


def get_implemented_priority_fn_ctors() -> list[str]:
    """Returns the names that `get_priority_fn_ctor` knows."""
    return list(_PRIORITIES)


def get_priority_fn_ctor(name: str) -> PriorityFnCtor:
    """Returns the constructor of the priority function of that name.

    >>> from enn import active_learning
    >>> active_learning.get_priority_fn_ctor("bold")
    Traceback (most recent call last):
        ...
    ValueError: name must be one of 'uniform', 'variance', 'nll', 'joint_nll', ...

    Raises:
      ValueError: if the name is unknown.
    """
    return make_priority_fn_ctor(get_per_example_priority(name))


def _log_probs(logits: chex.Array, labels: chex.Array) -> jax.Array:
    return label_log_likelihoods(logits, jnp.asarray(labels, jnp.int32))


def _expected_values(probs: jax.Array, class_values: chex.Array | None) -> jax.Array:
    if class_values is None:
        return probs[..., 0]
    _checks.shape("class_values", class_values, probs.shape[-1:], "[num_classes]")
    values = jnp.asarray(class_values, probs.dtype)
    # Not as a product of matrices, which accelerators compute in fewer bits.
    return pairwise_sum(probs * jnp.expand_dims(values, range(probs.ndim - 1)), -1)


def _std_of_values(logits: chex.Array, class_values: chex.Array | None) -> jax.Array:
    changes = uncertainty.deviations(class_probs(logits))
    return root_mean_square(_expected_values(changes, class_values))
