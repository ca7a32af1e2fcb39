"""Random classification problems: networks that generate data, and their inputs.

The truth is a random MLP with two hidden layers, whose logits are divided by a
temperature; labels are drawn from its class probabilities.

Reference: Osband et al., 2022, The Neural Testbed, https://arxiv.org/abs/2110.04629,
section 3.
"""

import abc
import functools
import math
from collections.abc import Callable

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import base, metrics
from enn.testbed.base import Data

LogitFn = Callable[[base.AnyArray], chex.Array]
"""Inputs `[batch, input_dim]` to logits `[batch, num_classes]`."""

XGenerator = Callable[[chex.PRNGKey, int], jax.Array]
"""A key and a number of rows to inputs `[num_rows, input_dim]`."""

_NUM_CANONICAL = 1000


@functools.cache
def _mlp(
    input_dim: int,
    hidden: int,
    num_classes: int,
    activation: Callable[[jax.Array], jax.Array],
) -> hk.Transformed:
    b_init = hk.initializers.RandomNormal(1 / math.sqrt(input_dim))

    def forward(x: chex.Array) -> jax.Array:
        x = activation(hk.Linear(hidden, b_init=b_init)(x))
        x = activation(hk.Linear(hidden)(x))
        return hk.Linear(num_classes)(x)

    return hk.without_apply_rng(hk.transform(forward))


@functools.cache
def _tempered(net: hk.Transformed) -> Callable[..., jax.Array]:
    return lambda params, temperature, x: net.apply(params, x) / temperature


def make_2layer_mlp_logit_fn(
    input_dim: int,
    temperature: float,
    hidden: int,
    num_classes: int,
    key: chex.PRNGKey,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> LogitFn:
    """Returns a random MLP with two hidden layers, as a function of its inputs.

    Weights are truncated normal times 1/√fan_in, the first bias is normal with standard
    deviation 1/√`input_dim`, the others are 0.

    The Neural Testbed's generative model: Osband et al., 2022,
    https://arxiv.org/abs/2110.04629, section 3.

    Args:
      input_dim: number of inputs.
      temperature: logits are divided by it; lower is less noise in the labels.
      hidden: number of units of each hidden layer.
      num_classes: number of logits.
      key: draws the parameters.
      activation: of the hidden units.

    Returns:
      The network, a pytree: compiled functions that take it as an argument serve all
      networks of one shape.

    >>> import jax, jax.numpy as jnp
    >>> from enn import testbed
    >>> fn = testbed.make_2layer_mlp_logit_fn(2, 0.1, 50, 2, jax.random.PRNGKey(0))
    >>> fn(jnp.ones([3, 2])).shape
    (3, 2)
    """
    net = _mlp(input_dim, hidden, num_classes, activation)
    params = net.init(key, jnp.zeros([1, input_dim]))
    return jax.tree_util.Partial(_tempered(net), params, jnp.float32(temperature))


@functools.cache
def make_gaussian_sampler(input_dim: int) -> XGenerator:
    """Returns the generator of independent standard normal inputs.

    >>> import jax
    >>> from enn import testbed
    >>> x = testbed.make_gaussian_sampler(3)(jax.random.PRNGKey(0), 1000)
    >>> x.shape, round(float(x.std()))
    ((1000, 3), 1)
    """
    return lambda key, num: jax.random.normal(key, [num, input_dim])


@functools.cache
def make_polyadic_sampler(input_dim: int, kappa: int = 2) -> XGenerator:
    """Returns the generator of batches that repeat `kappa` normal anchor points.

    With `kappa` 2 it is dyadic sampling (Osband et al., 2022,
    https://arxiv.org/abs/2202.13509): labels of repeated inputs, drawn independently,
    show what joint predictions know.

    >>> import jax
    >>> from enn import testbed
    >>> x = testbed.make_polyadic_sampler(3)(jax.random.PRNGKey(0), 100)
    >>> len(set(map(tuple, x.tolist())))
    2
    """
    if kappa < 1:
        raise ValueError(f"kappa must be >= 1, got {kappa}.")

    def generate(key: chex.PRNGKey, num: int) -> jax.Array:
        anchor_key, sample_key = jax.random.split(key)
        anchors = jax.random.normal(anchor_key, [kappa, input_dim])
        return anchors[jax.random.randint(sample_key, [num], 0, kappa)]

    return generate


@functools.cache
def make_weibull_sampler(input_dim: int) -> XGenerator:
    """Returns the generator of points around one normal centre, itself the first.

    Distances are normal times a heavy-tailed Weibull radius, so that some points are
    near and some are far.

    >>> import jax, numpy as np
    >>> from enn import testbed
    >>> x = testbed.make_weibull_sampler(2)(jax.random.PRNGKey(0), 100)
    >>> distances = np.linalg.norm(x - x[:1], axis=1)
    >>> bool(np.max(distances) > 10 * np.median(distances))
    True
    """
    concentration = math.log10(math.log2(10))
    scale = 1 / math.log(10) ** (1 / concentration)

    def generate(key: chex.PRNGKey, num: int) -> jax.Array:
        centre_key, radius_key, direction_key = jax.random.split(key, 3)
        centre = jax.random.normal(centre_key, [input_dim])
        radii = jax.random.weibull_min(radius_key, scale, concentration, [num - 1])
        radii = jnp.concatenate([jnp.zeros(1), radii])
        directions = jax.random.normal(direction_key, [num, input_dim])
        return centre[None] + directions * radii[:, None]

    return generate


def sample_labels(key: chex.PRNGKey, probs: jax.Array) -> jax.Array:
    """Draws a class for each row of `[num, num_classes]`, as `[num, 1]`."""

    def draw(key: chex.PRNGKey, p: jax.Array) -> jax.Array:
        return jax.random.choice(key, len(p), (1,), p=p)

    return jax.vmap(draw)(jax.random.split(key, len(probs)), probs)


@functools.partial(jax.jit, static_argnames=("x_generator", "num"))
def _sample(
    logit_fn: LogitFn, x_generator: XGenerator, num: int, key: chex.PRNGKey
) -> tuple[Data, jax.Array]:
    x_key, y_key = jax.random.split(key)
    x = x_generator(x_key, num)
    probs = jax.nn.softmax(logit_fn(x))
    y = sample_labels(y_key, probs)
    return Data(x, y), metrics.categorical_log_likelihood(probs, y)


@functools.partial(jax.jit, static_argnames=("x_generator", "num"))
def _sample_many(
    logit_fn: LogitFn, x_generator: XGenerator, num: int, keys: chex.PRNGKey
) -> tuple[Data, jax.Array]:
    return jax.vmap(lambda key: _sample(logit_fn, x_generator, num, key))(keys)


def sample_gaussian_data(
    logit_fn: LogitFn, x_generator: XGenerator, num: int, key: chex.PRNGKey
) -> tuple[Data, jax.Array]:
    """Draws inputs, and labels from the class probabilities of `logit_fn`.

    >>> import jax, jax.numpy as jnp
    >>> from enn import testbed
    >>> def sure(x):  # Of class 1
    ...     return jnp.tile(jnp.array([-50.0, 50.0]), (len(x), 1))
    >>> inputs, key = testbed.make_gaussian_sampler(input_dim=2), jax.random.PRNGKey(0)
    >>> data, log_likelihood = testbed.sample_gaussian_data(sure, inputs, 4, key)
    >>> data.y.ravel().tolist(), abs(float(log_likelihood))
    ([1, 1, 1, 1], 0.0)

    Args:
      logit_fn: the truth.
      x_generator: draws inputs.
      num: number of rows.
      key: draws both.

    Returns:
      The data, and the log-likelihood of all labels under the truth: Σ log p(y|x).
    """
    return _sample(_pytree(logit_fn), x_generator, num, key)


def _pytree(logit_fn: LogitFn) -> jax.tree_util.Partial:
    is_one = isinstance(logit_fn, jax.tree_util.Partial)
    return logit_fn if is_one else jax.tree_util.Partial(logit_fn)


def make_filtered_gaussian_data(
    input_dim: int,
    logit_fn: LogitFn,
    reject_prob: float,
    fraction_rejected_classes: float,
    num_samples: int,
    key: chex.PRNGKey,
    max_itr: int = 30,
) -> Data:
    """Draws normal inputs of which some classes are rarer than the truth has them.

    >>> import jax, jax.numpy as jnp
    >>> from enn import testbed
    >>> def truth(x):  # Class 0 where the first input is positive
    ...     return jnp.stack([50 * x[:, 0], -50 * x[:, 0]], axis=1)
    >>> key = jax.random.PRNGKey(0)
    >>> data = testbed.make_filtered_gaussian_data(2, truth, 1.0, 0.5, 20, key)
    >>> len(set(data.y.ravel().tolist()))  # One of two classes is rejected.
    1

    Args:
      input_dim: number of inputs.
      logit_fn: the truth.
      reject_prob: probability that a row of a rejected class is dropped.
      fraction_rejected_classes: of all classes; they are drawn with replacement.
      num_samples: number of rows.
      key: draws rejected classes and data.
      max_itr: how many draws of `2 * num_samples` rows to make at most.

    Raises:
      ValueError: if these do not hold `num_samples` rows to keep.
    """
    rng = hk.PRNGSequence(key)
    generator = make_gaussian_sampler(input_dim)
    num_classes = jax.eval_shape(logit_fn, jnp.zeros([1, input_dim])).shape[-1]
    num_rejected = int(fraction_rejected_classes * num_classes)
    if num_rejected == 0 or reject_prob == 0:
        return sample_gaussian_data(logit_fn, generator, num_samples, next(rng))[0]
    rejected = jax.random.randint(next(rng), (num_rejected,), 0, num_classes)
    kept: list[Data] = []
    for _ in range(max_itr):
        size = 2 * num_samples
        data, _ = sample_gaussian_data(logit_fn, generator, size, next(rng))
        is_dropped = jax.random.uniform(next(rng), (size,)) < reject_prob
        keep = ~(is_dropped & jnp.isin(data.y[:, 0], rejected))
        kept.append(Data(data.x[keep], data.y[keep]))
        if sum(len(part.x) for part in kept) >= num_samples:
            x, y = (jnp.concatenate(parts) for parts in zip(*kept, strict=True))
            return Data(x[:num_samples], y[:num_samples])
    raise ValueError(
        f"After {max_itr} draws of {2 * num_samples} rows fewer than {num_samples} are "
        f"left: reject_prob={reject_prob} is too high."
    )


class GenerativeDataSampler(abc.ABC):
    """Training data, and test data with their likelihood under the truth."""

    @property
    @abc.abstractmethod
    def train_data(self) -> Data:
        """The data to train on."""

    @abc.abstractmethod
    def test_data(self, key: chex.PRNGKey) -> tuple[Data, jax.Array]:
        """Returns `tau` test rows and their joint log-likelihood, in nats."""

    def test_batches(self, keys: chex.PRNGKey) -> tuple[Data, jax.Array]:
        """Returns what `test_data` gives for each of `keys`, stacked."""
        return jax.jit(jax.vmap(self.test_data))(keys)


class ClassificationEnvLikelihood(GenerativeDataSampler):
    """Data of a classification problem with a known truth.

    Attributes:
      test_x: 1000 test inputs, for plots.
      probabilities: their true class probabilities, `[1000, num_classes]`.
    """

    def __init__(
        self,
        logit_fn: LogitFn,
        x_train_generator: XGenerator,
        x_test_generator: XGenerator,
        num_train: int,
        key: chex.PRNGKey,
        override_train_data: Data | None = None,
        tau: int = 1,
    ):
        """Draws the training data.

        Args:
          logit_fn: the truth.
          x_train_generator: draws training inputs.
          x_test_generator: draws test inputs.
          num_train: number of training rows.
          key: draws training data and the inputs for plots.
          override_train_data: training data to use instead.
          tau: number of rows of each batch of test data.
        """
        rng = hk.PRNGSequence(key)
        self.logit_fn = logit_fn
        self._generate, self._tau = x_test_generator, tau
        if override_train_data is None:
            self._train_data, _ = sample_gaussian_data(
                logit_fn, x_train_generator, num_train, next(rng)
            )
        else:
            self._train_data = override_train_data
        self.test_x = x_test_generator(next(rng), _NUM_CANONICAL)
        self.probabilities = jax.nn.softmax(logit_fn(self.test_x))

    @property
    def train_data(self) -> Data:
        """The data to train on."""
        return self._train_data

    def test_data(self, key: chex.PRNGKey) -> tuple[Data, jax.Array]:
        """Returns `tau` test rows and their joint log-likelihood, in nats."""
        return sample_gaussian_data(self.logit_fn, self._generate, self._tau, key)

    def test_batches(self, keys: chex.PRNGKey) -> tuple[Data, jax.Array]:
        """Returns what `test_data` gives for each of `keys`, stacked.

        Problems of one shape share the compiled program.
        """
        return _sample_many(_pytree(self.logit_fn), self._generate, self._tau, keys)
