"""The testbed's problems: their ids, their settings, and how to load them.

An id is `{sweep}/{index}`, such as `classification_2d/75`. What an id names depends on
JAX's random stream. With today's default the ids name other random problems, of the
same distribution, than in published results; inside `published_stream()` they name the
published ones.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import chex
import haiku as hk
import jax

from enn.testbed import gaussian_processes, generative
from enn.testbed.base import (
    Data,
    ENNQuality,
    EpistemicSampler,
    PriorKnowledge,
    TestbedProblem,
    similar_ones,
    stream_name,
)
from enn.testbed.estimators import (
    CategoricalClusterKL,
    CategoricalKLSampledXSampledY,
    RandomProjection,
    SampleBasedKL,
    add_classification_accuracy_ece,
)
from enn.testbed.gaussian_estimators import GaussianSampleKL

_HIDDEN = 50


@dataclasses.dataclass(frozen=True)
class ProblemConfig:
    """All that defines a problem.

    >>> from enn import testbed
    >>> config = testbed.SETTINGS["classification_2d/75"]
    >>> config.seed, config.meta_data["temperature"]
    (76, 0.1)

    Attributes:
      prior_knowledge: what agents may know.
      seed: draws the truth, the data, and the keys of the estimate.
      logit_ctor: makes the truth from a key; by default an MLP with two hidden layers.
      test_distribution: makes the generator of test inputs, of `input_dim`.
      num_test_seeds: number of test batches.
      num_enn_samples: number of functions drawn from an agent's posterior.
      num_test_cache: number of test inputs, in Gaussian-process problems.
      epistemic_only: whether the test measures the function alone, in these.
    """

    prior_knowledge: PriorKnowledge
    seed: int
    logit_ctor: Callable[[chex.PRNGKey], generative.LogitFn] | None = None
    test_distribution: Callable[[int], generative.XGenerator] = (
        generative.make_gaussian_sampler
    )
    num_test_seeds: int = 1000
    num_enn_samples: int = 1000
    num_test_cache: int = 1000
    epistemic_only: bool = False

    @property
    def meta_data(self) -> dict[str, Any]:
        """The fields of the problem and of its prior knowledge, in one dict."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.asdict(fields.pop("prior_knowledge")) | fields


@dataclasses.dataclass(frozen=True)
class ShiftConfig:
    """How the classes of training data differ from those of test data.

    Attributes:
      reject_prob: probability that a training row of a rejected class is dropped.
      fraction_rejected_classes: of all classes.
    """

    reject_prob: float
    fraction_rejected_classes: float


Sweep = Mapping[str, ProblemConfig]


def _sweep(name: str, configs: Any) -> Sweep:
    return {f"{name}/{i}": config for i, config in enumerate(configs)}


def _classification(
    dims: list[int],
    num_train: Callable[[int], list[int]],
    temperatures: list[float],
    taus: list[int],
    num_seed: int,
    initial_seed: int,
    **kwargs: Any,
) -> Any:
    for tau in taus:  # The seeds begin anew: taus differ in nothing but the test.
        seeds = itertools.count(initial_seed + 1)
        settings = [(d, n) for d in dims for n in num_train(d)]
        for (dim, num), temperature in itertools.product(settings, temperatures):
            prior = PriorKnowledge(
                dim, num, tau, num_classes=2, layers=2, temperature=temperature
            )
            for seed in itertools.islice(seeds, num_seed):
                yield ProblemConfig(prior, seed, **kwargs)


def classification_2d_sweep(num_seed: int = 10, initial_seed: int = 0) -> Sweep:
    """Returns problems in the plane, over tau, data, temperature and seeds.

    The Neural Testbed: Osband et al., 2022, https://arxiv.org/abs/2110.04629.

    >>> from enn import testbed
    >>> len(testbed.classification_2d_sweep())
    420
    >>> "classification_2d/75" in testbed.SETTINGS
    True
    """
    nums = [1, 3, 10, 30, 100, 300, 1000]
    configs = _classification(
        [2], lambda _: nums, [0.01, 0.1, 0.5], [1, 10], num_seed, initial_seed
    )
    return _sweep("classification_2d", configs)


def classification_sweep(num_seed: int = 5, initial_seed: int = 0) -> Sweep:
    """Returns problems of 2 to 100 dimensions, tested by dyadic sampling.

    The Neural Testbed: Osband et al., 2022, https://arxiv.org/abs/2110.04629.

    >>> from enn import testbed
    >>> problems = testbed.classification_sweep().values()
    >>> sorted({config.prior_knowledge.input_dim for config in problems}), len(problems)
    ([2, 10, 100], 360)
    """
    configs = _classification(
        [2, 10, 100],
        lambda dim: [ratio * dim for ratio in (1, 10, 100, 1000)],
        [0.01, 0.1, 0.5],
        [1, 10],
        num_seed,
        initial_seed,
        test_distribution=generative.make_polyadic_sampler,
    )
    return _sweep("classification", configs)


def regression_sweep(
    num_seed: int = 10, initial_seed: int = 0, epistemic_only: bool = False
) -> Sweep:
    """Returns Gaussian-process problems, over dimension, number of data and noise.

    Those of Osband et al., 2021, https://arxiv.org/abs/2107.08924, section 4.

    >>> from enn import testbed
    >>> sweep = testbed.regression_sweep()
    >>> len(sweep), sweep["regression/0"].prior_knowledge.noise_std
    (270, 0.01)
    """
    settings = itertools.product(
        [1, 10, 100], [1, 10, 100], [0.01, 0.1, 1.0], range(num_seed)
    )
    configs = (
        ProblemConfig(
            PriorKnowledge(dim, ratio * dim, tau=1, layers=1, noise_std=noise_std),
            seed=initial_seed + 1 + i,
            num_enn_samples=100,
            epistemic_only=epistemic_only,
        )
        for i, (dim, ratio, noise_std, _) in enumerate(settings)
    )
    return _sweep("enn_paper" if epistemic_only else "regression", configs)


def _kept(sweep: Sweep, keep: Callable[[PriorKnowledge], bool]) -> Sweep:
    """Returns the problems that are kept, numbered anew, as a sweep for tests."""
    name = sweep_name(next(iter(sweep)))
    configs = (c for c in sweep.values() if keep(c.prior_knowledge))
    return _sweep(f"{name}_test", configs)


def sweep_name(problem_id: str) -> str:
    """Returns the sweep of an id."""
    return problem_id.partition("/")[0]


def _make_settings() -> Sweep:
    plane, classification = classification_2d_sweep(), classification_sweep()
    regression = regression_sweep()
    enn_paper = regression_sweep(epistemic_only=True)
    tests = [
        _kept(
            classification_2d_sweep(1), lambda p: (p.tau, p.temperature) == (1, 0.01)
        ),
        _kept(
            classification_sweep(1),
            lambda p: (p.tau, p.input_dim, p.temperature) == (1, 2, 0.01),
        ),
        _kept(
            regression_sweep(1),
            lambda p: (p.input_dim, p.num_train, p.noise_std) == (10, 10, 0.1),
        ),
        _kept(regression_sweep(1, epistemic_only=True), lambda p: p.noise_std == 0.1),
    ]
    sweeps = [plane, classification, regression, enn_paper, *tests]
    return MappingProxyType(functools.reduce(lambda a, b: {**a, **b}, sweeps))


SETTINGS: Sweep = _make_settings()
"""The configuration of every id."""


SWEEPS: Mapping[str, tuple[str, ...]] = {
    name: tuple(ids) for name, ids in itertools.groupby(SETTINGS, sweep_name)
}
"""The ids of every sweep."""

CLASSIFICATION_2D = SWEEPS["classification_2d"]
CLASSIFICATION_2D_TEST = SWEEPS["classification_2d_test"]
CLASSIFICATION = SWEEPS["classification"]
CLASSIFICATION_TEST = SWEEPS["classification_test"]
REGRESSION = SWEEPS["regression"]
REGRESSION_TEST = SWEEPS["regression_test"]
ENN_PAPER = SWEEPS["enn_paper"]
ENN_PAPER_TEST = SWEEPS["enn_paper_test"]


class SampleBasedTestbed(TestbedProblem):
    """A problem whose data come from a sampler, judged by samples of predictions.

    Attributes:
      data_sampler: the truth.
    """

    def __init__(
        self,
        data_sampler: generative.GenerativeDataSampler,
        sample_based_kl: SampleBasedKL,
        prior_knowledge: PriorKnowledge,
    ):
        """Takes the parts of the problem."""
        self.data_sampler = data_sampler
        self._kl, self._prior = sample_based_kl, prior_knowledge

    @property
    def train_data(self) -> Data:
        """The data to train on."""
        return self.data_sampler.train_data

    @property
    def prior_knowledge(self) -> PriorKnowledge:
        """What the agent may know."""
        return self._prior

    def evaluate_quality(self, enn_sampler: EpistemicSampler) -> ENNQuality:
        """Returns the KL estimate; `extra` holds figures and names the stream."""
        quality = self._kl(enn_sampler, self.data_sampler)
        return ENNQuality(
            quality.kl_estimate, {**(quality.extra or {}), "stream": stream_name()}
        )


def published_stream() -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which ids name the problems of published results.

    Load, train and evaluate inside it. Results name the stream in `extra["stream"]`.

    >>> from enn import testbed
    >>> with testbed.published_stream():
    ...     testbed.stream_name()
    'published'
    >>> testbed.stream_name()
    'default'
    """
    return jax.threefry_partitionable(False)


def make_categorical_kl_estimator(
    config: ProblemConfig, key: chex.PRNGKey, exact: bool = False
) -> SampleBasedKL:
    """Returns the estimator of a classification problem.

    Args:
      config: the problem.
      key: draws test data and samples.
      exact: whether to use the exact joint likelihood above `tau` = 10 too, where
        published results use random projections.
    """
    tau = config.prior_knowledge.tau
    kl: SampleBasedKL
    if tau > 10 and not exact:
        kl = CategoricalClusterKL(
            RandomProjection(7), config.num_enn_samples, config.num_test_seeds, key
        )
    else:
        kl = CategoricalKLSampledXSampledY(
            config.num_test_seeds, config.num_enn_samples, key
        )
    return add_classification_accuracy_ece(kl, int(1000 / tau) + 1, 100)


def problem_from_id(problem_id: str) -> TestbedProblem:
    """Returns the problem of an id.

    Raises:
      ValueError: for an unknown id; names those that are similar.

    >>> from enn import testbed
    >>> testbed.problem_from_id("classification_2d/75").prior_knowledge.num_train
    10
    """
    return problem_from_config(config_from_id(problem_id))


def config_from_id(problem_id: str) -> ProblemConfig:
    """Returns the configuration of an id; raises as `problem_from_id` does."""
    if problem_id not in SETTINGS:
        near = similar_ones(problem_id, SETTINGS)
        raise ValueError(f"Unknown problem {problem_id!r}; {near}.")
    return SETTINGS[problem_id]


def problem_from_config(config: ProblemConfig, exact: bool = False) -> TestbedProblem:
    """Returns the problem of a configuration.

    >>> import dataclasses
    >>> from enn import testbed
    >>> config = testbed.SETTINGS["classification_2d/75"]
    >>> other = testbed.problem_from_config(dataclasses.replace(config, seed=1234))
    >>> other.train_data.x.shape
    (10, 2)

    Args:
      config: the configuration.
      exact: see `make_categorical_kl_estimator`; in Gaussian-process problems, whether
        the posterior knows the noise (`relative_noise` of `GPRegression`).
    """
    if config.prior_knowledge.num_classes == 1:
        return _load_regression(config, exact)
    return problem_with_distribution_shift(config, None, exact)


def _load_regression(config: ProblemConfig, exact: bool) -> TestbedProblem:
    prior = config.prior_knowledge
    if prior.noise_std is None:
        raise ValueError("Regression needs noise_std, got None.")
    rng = hk.PRNGSequence(jax.random.PRNGKey(config.seed, impl="threefry2x32"))
    inputs = gaussian_processes.gaussian_data(
        next(rng), prior.num_train, prior.input_dim, config.num_test_cache
    )
    settings = (*inputs, next(rng), prior.tau, prior.noise_std)
    if config.epistemic_only:
        return gaussian_processes.TestbedGPRegression(
            gaussian_processes.GPRegression(
                gaussian_processes.mlp_kernel, *settings, relative_noise=not exact
            ),
            prior,
            next(rng),
            config.num_enn_samples,
        )
    data_sampler = gaussian_processes.GPRegressionEnvLikelihood(
        gaussian_processes.mlp_kernel, *settings
    )
    kl = GaussianSampleKL(
        int(config.num_test_seeds / prior.tau) + 1,
        config.num_enn_samples,
        prior.noise_std,
        next(rng),
    )
    return SampleBasedTestbed(data_sampler, kl, prior)


def problem_with_distribution_shift(
    problem_config: ProblemConfig,
    shift_config: ShiftConfig | None,
    exact: bool = False,
) -> TestbedProblem:
    """Returns a problem with other frequencies of the classes in training than in test.

    >>> from enn import testbed
    >>> config = testbed.SETTINGS["classification/30"]
    >>> shift = testbed.ShiftConfig(reject_prob=1.0, fraction_rejected_classes=0.5)
    >>> problem = testbed.problem_with_distribution_shift(config, shift)
    >>> len(set(problem.train_data.y[:, 0].tolist()))  # One of two classes is left.
    1

    Args:
      problem_config: the configuration.
      shift_config: which rows training lacks; None for no shift.
      exact: see `make_categorical_kl_estimator`.

    Raises:
      ValueError: for a regression problem.
    """
    prior = problem_config.prior_knowledge
    if prior.num_classes < 2:
        raise ValueError(
            f"Classification needs num_classes >= 2, got {prior.num_classes}."
        )
    rng = hk.PRNGSequence(jax.random.PRNGKey(problem_config.seed, impl="threefry2x32"))
    if problem_config.logit_ctor is None:
        temperature = 1.0 if prior.temperature is None else prior.temperature
        logit_fn = generative.make_2layer_mlp_logit_fn(
            prior.input_dim, temperature, _HIDDEN, prior.num_classes, next(rng)
        )
    else:
        logit_fn = problem_config.logit_ctor(next(rng))
    override = None
    if shift_config is not None:
        override = generative.make_filtered_gaussian_data(
            prior.input_dim,
            logit_fn,
            shift_config.reject_prob,
            shift_config.fraction_rejected_classes,
            prior.num_train,
            next(rng),
        )
    data_sampler = generative.ClassificationEnvLikelihood(
        logit_fn,
        generative.make_gaussian_sampler(prior.input_dim),
        problem_config.test_distribution(prior.input_dim),
        prior.num_train,
        next(rng),
        override,
        prior.tau,
    )
    kl = make_categorical_kl_estimator(problem_config, next(rng), exact)
    return SampleBasedTestbed(data_sampler, kl, prior)
