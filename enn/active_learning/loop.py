"""The active learning loop: train, ask for labels, train again."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from enn import _checks, base, metrics
from enn.active_learning import priorities
from enn.active_learning.base import PriorityFnCtor
from enn.active_learning.prioritized import PrioritizedBatcher, get_at_index
from enn.datasets.base import ArrayBatch
from enn.datasets.in_memory import make_batch_iterator
from enn.networks.forwarders import EnnBatchFwd, make_batch_fwd


class LearningCurvePoint(NamedTuple):
    """How good a network is that was trained on the labels so far.

    Attributes:
      num_labels: number of labelled rows.
      accuracy: fraction of evaluation rows that the marginal prediction gets right.
      nll: marginal negative log-likelihood of the evaluation rows, mean, in nats.
      acquired: rows of the pool that were labelled last, `[num_acquired]`.
    """

    num_labels: int
    accuracy: float
    nll: float
    acquired: np.ndarray


class TrainableExperiment(Protocol):
    """What `run` trains, such as an `enn.supervised.Experiment`."""

    @property
    def enn(self) -> base.EpistemicNetwork[Any, Any]:
        """The network."""
        ...

    @property
    def state(self) -> Any:
        """Has the attributes `params` and `network_state`."""
        ...

    def train(self, num_batches: int) -> None:
        """Trains for `num_batches` steps."""
        ...


def run(
    make_experiment: Callable[[ArrayBatch], TrainableExperiment],
    pool: ArrayBatch,
    eval_data: ArrayBatch,
    *,
    priority: str | PriorityFnCtor = "bald",
    initial_size: int = 64,
    acquisition_size: int = 64,
    num_acquisitions: int = 10,
    num_batches: int = 1000,
    num_enn_samples: int = 100,
    seed: int = 0,
) -> list[LearningCurvePoint]:
    """Trains on a few rows of a pool, then again and again on more of them.

    The first rows are drawn at random. After each training, the rows that have the
    highest priority under the network join those to train the next experiment on. A
    row joins at most once, and when all have, the loop ends.

    For epinets on language models: Osband et al., 2022,
    https://arxiv.org/abs/2211.01568.

    >>> import optax
    >>> from enn import active_learning, losses, networks, utils
    >>> from enn.supervised import Experiment
    >>> enn = networks.make_einsum_ensemble_mlp_enn([20, 2], num_ensemble=5)
    >>> loss = losses.average_single_index_loss(losses.XentLoss(2), 5)
    >>> def train_on(rows):
    ...     return Experiment(enn, loss, optax.adam(0.1), rows, train_log_freq=None)
    >>> pool = next(utils.make_test_data(100))
    >>> curve = active_learning.run(train_on, pool, pool, num_batches=20)
    >>> [point.num_labels for point in curve]
    [64, 100]

    Args:
      make_experiment: makes a fresh experiment from the labelled rows, in the order
        in which they were labelled; `data_index` says which rows of the pool they
        are, unless the pool has one of its own.
      pool: the rows to choose from, with their labels. These count as unknown until
        acquired, but some priorities, such as `"nll"`, look at them all the same.
      eval_data: the rows to evaluate on after each training.
      priority: a name of `get_implemented_priority_fn_ctors()`, or what makes the
        priority function from the forward pass of the network.
      initial_size: number of rows labelled before the first training.
      acquisition_size: number of rows to label after each training; the last time,
        as many as are left.
      num_acquisitions: how many times to label more rows, at most.
      num_batches: number of training steps of each experiment.
      num_enn_samples: number of indices to predict at, the same all along.
      seed: fixes the first rows, the indices and the random priorities.

    Returns:
      One point for each training. With the same arguments, and experiments that
      depend on nothing but the labelled rows, the points are the same.

    Raises:
      ValueError: if a size or number is not an integer >= 1, the pool or evaluation
        data have no rows or labels that are not classes, the pool has fewer rows than
        `initial_size`, or the priority is unknown; all before any training.
    """
    _checks.positive_int("initial_size", initial_size)
    _checks.positive_int("acquisition_size", acquisition_size)
    _checks.positive_int("num_acquisitions", num_acquisitions)
    _checks.positive_int("num_batches", num_batches)
    _checks.positive_int("num_enn_samples", num_enn_samples)
    _checks.non_negative_int("seed", seed)
    if not callable(priority):
        names = priorities.get_implemented_priority_fn_ctors()
        _checks.one_of("priority", priority, names)
        priority = priorities.get_priority_fn_ctor(priority)
    pool, eval_data = _rows("pool", pool), _rows("eval_data", eval_data)
    if initial_size > len(pool.y):
        raise ValueError(
            f"initial_size must be at most the {len(pool.y)} rows of the pool, got "
            f"{initial_size}."
        )

    rng = np.random.default_rng(seed)
    acquired = rng.choice(len(pool.y), initial_size, replace=False)
    index_seed = _draw_seed(rng)
    # Compiled once where the experiments share a network.
    batch_fwd_of = functools.lru_cache(maxsize=1)(
        lambda enn: make_batch_fwd(enn, num_enn_samples, index_seed)
    )
    labelled = np.empty(0, int)
    curve: list[LearningCurvePoint] = []
    while True:
        labelled = np.concatenate([labelled, acquired])
        experiment = make_experiment(get_at_index(pool, labelled))
        batch_fwd = batch_fwd_of(experiment.enn)
        if not curve:
            _check_labels(experiment, batch_fwd, pool=pool, eval_data=eval_data)
        experiment.train(num_batches)
        params, state = experiment.state.params, experiment.state.network_state
        scores = _evaluate(batch_fwd(params, state, eval_data.x), eval_data.y)
        curve.append(LearningCurvePoint(len(labelled), *scores, acquired))
        unlabelled = np.setdiff1d(np.arange(len(pool.y)), labelled)
        if len(curve) > num_acquisitions or not len(unlabelled):
            return curve
        batcher = PrioritizedBatcher(batch_fwd, acquisition_size, priority)
        key = jax.random.PRNGKey(_draw_seed(rng))
        candidates = get_at_index(pool, unlabelled)
        acquired = unlabelled[batcher.select(params, state, candidates, key)]


def _evaluate(logits: Any, labels: Any) -> tuple[float, float]:
    """Accuracy and marginal negative log-likelihood."""
    labels = labels.astype(np.int32)
    accuracy = metrics.make_accuracy_calculator()(logits, labels)
    nll = metrics.make_nll_marginal_calculator()(logits, labels)
    return float(accuracy), float(nll)


def _rows(name: str, data: ArrayBatch) -> ArrayBatch:
    """The data with `y` as `[num_rows, 1]`, and with row numbers."""
    if not np.size(data.y):
        raise ValueError(f"{name} must have rows, got y of shape {np.shape(data.y)}.")
    return make_batch_iterator(data).data


def _check_labels(
    experiment: TrainableExperiment, batch_fwd: EnnBatchFwd[Any], **data: ArrayBatch
) -> None:
    """Raises ValueError unless labels are classes of the network.

    Those of the pool would show only once they are acquired, trainings later.
    """
    params, state = experiment.state.params, experiment.state.network_state
    logits = jax.eval_shape(batch_fwd, params, state, data["eval_data"].x)
    for name, rows in data.items():
        _checks.shape(f"{name}.y", rows.y, (None, 1), "[num_rows, 1]")
        try:
            _checks.class_labels(rows.y, logits.shape[-1])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
