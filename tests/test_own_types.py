"""Own functions in the annotations that users write; type checkers read this too.

Those that say `jax.Array`, `chex.Array` or `np.ndarray` are all accepted, though the
library calls them with arrays of JAX or of NumPy. Each is also called here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import active_learning, base, data_noise, losses, metrics, networks, supervised
from enn.datasets import ArrayBatch

pytestmark = pytest.mark.slow

X, Y = np.ones([3, 2], np.float32), np.full([3, 1], 2.0, np.float32)
KEY = jax.random.key(0)


def jax_metric(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean((outputs.mean(0) - targets) ** 2)


def chex_metric(outputs: chex.Array, targets: chex.Array) -> chex.Array:
    return jnp.mean(jnp.subtract(jnp.mean(outputs, 0), targets) ** 2)


def numpy_metric(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.asarray(np.mean((outputs.mean(0) - targets) ** 2))


def float_metric(outputs: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean((outputs.mean(0) - targets) ** 2))


METRICS: list[metrics.MetricCalculator] = [
    jax_metric,
    chex_metric,
    numpy_metric,
    float_metric,
]


@pytest.mark.parametrize("metric", METRICS)
def test_metrics(metric: metrics.MetricCalculator) -> None:
    state = metrics.make_average_aggregator(metric)(np.zeros([4, 3, 1]), Y)
    assert float(state.value) == 4


def jax_rows(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(outputs.mean(0) - targets), jnp.float32(len(targets))


def numpy_rows(outputs: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
    return float(np.sum(outputs.mean(0) - targets)), len(targets)


def test_sums_over_rows() -> None:
    for sums in (jax_rows, numpy_rows):
        mean_error = metrics.make_sum_aggregator(sums, lambda s: s[0] / s[1])
        assert float(mean_error(np.zeros([4, 3, 1]), Y).value) == -2


def jax_parse(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    return outputs, jnp.ones_like(outputs)


def chex_parse(outputs: chex.Array) -> tuple[chex.Array, chex.Array]:
    return outputs, jnp.ones_like(outputs)


def test_parts_of_a_predictive_mixture() -> None:
    for parse in (jax_parse, chex_parse):
        nll = metrics.make_mixture_nll_calculator(parse)(np.zeros([4, 3, 1]), Y)
        np.testing.assert_allclose(nll, 0.5 * np.log(2 * np.pi) + 2, 1e-6)


def jax_prior(inputs: jax.Array, index: jax.Array) -> jax.Array:
    return inputs[:, :1] * index


def chex_prior(inputs: chex.Array, index: chex.Array) -> chex.Array:
    return jnp.asarray(inputs)[:, :1] * index


def numpy_prior(inputs: np.ndarray, index: np.ndarray) -> np.ndarray:
    return inputs[:, :1] * index


PRIORS: list[networks.PriorFn] = [jax_prior, chex_prior, numpy_prior]


def jax_features(inputs: jax.Array) -> jax.Array:
    return inputs[:, :1]


def chex_features(inputs: chex.Array) -> chex.Array:
    return jnp.asarray(inputs)[:, :1]


def numpy_features(inputs: np.ndarray) -> np.ndarray:
    return inputs[:, :1]


def test_priors() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: 0 * hk.Linear(1)(x))
    variables = enn.init(KEY, X, 0)
    for prior in PRIORS:
        with_prior = networks.EnnWithAdditivePrior(enn, prior, 0.5)
        out, _ = with_prior.apply(*variables, X, 4)
        np.testing.assert_allclose(networks.parse_net_output(out), Y)
    choice = networks.combine_functions_choice_via_index(
        [jax_features, chex_features, numpy_features]
    )
    np.testing.assert_allclose(choice(X, np.int32(2)), np.ones([3, 1]))
    for forward in (jax_features, chex_features):
        enn = networks.wrap_net_fn_as_enn(forward)
        assert networks.make_batch_fwd(enn, 2)({}, {}, X).shape == (2, 3, 1)


def jax_indexer(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, [1, 1])


def chex_indexer(key: chex.PRNGKey) -> chex.Array:
    return jax.random.normal(key, [1, 1])


def jax_apply(
    params: dict[str, jax.Array], state: dict, inputs: jax.Array, index: jax.Array
) -> tuple[jax.Array, dict]:
    return inputs @ params["w"] + index, state


def chex_apply(
    params: hk.Params, state: hk.State, inputs: chex.Array, index: chex.Array
) -> tuple[chex.Array, hk.State]:
    return jnp.matmul(inputs, params["linear"]["w"]) + index, state


def prior_apply(
    params: Any, state: Any, inputs: np.ndarray, index: np.ndarray
) -> tuple[networks.OutputWithPrior, Any]:
    hidden: dict[str, jax.Array] = {"hidden": jnp.asarray(inputs)}
    train = inputs @ params["w"]
    return networks.OutputWithPrior(train, 0 * train + index, hidden), state


def jax_init(
    key: jax.Array, inputs: jax.Array, index: jax.Array
) -> tuple[dict[str, jax.Array], dict]:
    return {"w": jnp.ones([inputs.shape[1], 1])}, {}


def chex_init(
    key: chex.PRNGKey, inputs: chex.Array, index: chex.Array
) -> tuple[hk.Params, hk.State]:
    return {"linear": {"w": jnp.ones([jnp.shape(inputs)[1], 1])}}, {}


def numpy_init(
    key: jax.Array, inputs: np.ndarray, index: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return {"w": np.ones([inputs.shape[1], 1], np.float32)}, {}


JAX_ENN = base.EpistemicNetwork(jax_apply, jax_init, jax_indexer)
CHEX_ENN = base.EpistemicNetwork(chex_apply, chex_init, chex_indexer)
PRIOR_ENN = networks.EnnArray(prior_apply, numpy_init, jax_indexer)
ENNS: list[networks.EnnArray] = [JAX_ENN, CHEX_ENN, PRIOR_ENN]


def jax_single_loss(
    apply: networks.ApplyArray,
    params: dict[str, jax.Array],
    state: dict,
    batch: ArrayBatch,
    index: jax.Array,
) -> tuple[jax.Array, tuple[dict, dict[str, jax.Array]]]:
    output, state = apply(params, state, batch.x, index)
    loss = jnp.mean((networks.parse_net_output(output) - batch.y) ** 2)
    return loss, (state, {"mse": loss})


def chex_single_loss(
    apply: networks.ApplyArray,
    params: hk.Params,
    state: hk.State,
    batch: ArrayBatch,
    index: chex.Array,
) -> tuple[chex.Array, tuple[hk.State, dict[str, chex.Array]]]:
    output, state = apply(params, state, batch.x, index)
    loss = jnp.mean((networks.parse_net_output(output) - batch.y) ** 2)
    return loss, (state, {"mse": loss})


def jax_loss(
    enn: networks.EnnArray,
    params: dict[str, jax.Array],
    state: dict,
    batch: ArrayBatch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[dict, dict[str, jax.Array]]]:
    return jax_single_loss(enn.apply, params, state, batch, enn.indexer(key))


def chex_loss(
    enn: networks.EnnArray,
    params: hk.Params,
    state: hk.State,
    batch: ArrayBatch,
    key: chex.PRNGKey,
) -> base.LossOutput:
    return chex_single_loss(enn.apply, params, state, batch, enn.indexer(key))


LOSSES: list[losses.LossFnArray] = [
    losses.average_single_index_loss(jax_single_loss, 2),
    losses.average_single_index_loss(chex_single_loss, 2),
    jax_loss,
    chex_loss,
]


def jax_pairs() -> Iterator[tuple[jax.Array, jax.Array]]:
    while True:
        yield jnp.asarray(X), jnp.asarray(Y)


def numpy_pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while True:
        yield X, Y


def batches() -> Iterator[ArrayBatch]:
    while True:
        yield ArrayBatch(jnp.asarray(X), Y)


def dicts() -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield {"x": X, "y": Y}


@pytest.mark.parametrize("enn", ENNS)
def test_networks_train(enn: networks.EnnArray) -> None:
    data: list[Iterator[Any]] = [jax_pairs(), numpy_pairs(), batches(), dicts()]
    for loss, batch_iterator in zip(LOSSES, data, strict=True):
        experiment = supervised.Experiment(
            enn,
            loss,
            optax.sgd(0.1),
            batch_iterator,
            train_log_freq=None,
            eval_datasets={"test": ArrayBatch(X, Y)},
            eval_metrics={"mse": jax_metric, "squares": chex_metric},
            eval_log_freq=None,
        )
        experiment.train(1)
        assert networks.make_batch_fwd(enn, 2)(
            experiment.state.params, experiment.state.network_state, X
        ).shape == (2, 3, 1)


def jax_likelihood(output: jax.Array, batch: ArrayBatch) -> jax.Array:
    return -jnp.mean((output - batch.y) ** 2)


def chex_likelihood(output: chex.Array, batch: ArrayBatch) -> chex.Array:
    return -jnp.mean(jnp.subtract(output, batch.y) ** 2)


def no_divergence(output: jax.Array, params: dict, index: jax.Array) -> jax.Array:
    return jnp.zeros([])


def test_likelihoods_of_variational_losses() -> None:
    params, state = JAX_ENN.init(KEY, jnp.asarray(X), np.zeros([1, 1]))
    for likelihood in (jax_likelihood, chex_likelihood):
        loss = losses.ElboLoss(likelihood, no_divergence)
        value, _ = loss(JAX_ENN.apply, params, state, ArrayBatch(X, Y), np.ones([1, 1]))
        assert float(value) == 1  # (2 + 1 - 2)²


def jax_noise(data: ArrayBatch, index: jax.Array) -> ArrayBatch:
    return data.replace(y=data.y + index)


def numpy_noise(data: ArrayBatch, index: np.ndarray) -> ArrayBatch:
    return data.replace(y=data.y + index)


def test_noise() -> None:
    noises: list[data_noise.DataNoise] = [jax_noise, numpy_noise]
    params, state = JAX_ENN.init(KEY, jnp.asarray(X), np.zeros([1, 1]))
    for noise in noises:
        loss = losses.add_data_noise(losses.L2Loss(), noise)
        value, _ = loss(JAX_ENN.apply, params, state, ArrayBatch(X, Y), np.ones([1, 1]))
        assert float(value) == 0  # Prediction and target both move by the index.


def jax_scores(logits: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
    return logits[0, :, 0]


def chex_scores(
    logits: chex.Array, labels: chex.Array, key: chex.PRNGKey
) -> chex.Array:
    return jnp.asarray(logits)[0, :, 0]


def numpy_scores(logits: np.ndarray, labels: np.ndarray, key: Any) -> np.ndarray:
    return logits[0, :, 0]


def test_priorities() -> None:
    def forward(params: Any, state: Any, inputs: Any, key: Any = None) -> jax.Array:
        return jnp.asarray(inputs)[None]

    def own_priority(
        params: dict, state: dict, batch: ArrayBatch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return jnp.asarray(batch.x)[:, 0], {}

    def same(forward: Callable[..., jax.Array]) -> active_learning.PriorityFn:
        return own_priority

    pool = ArrayBatch(np.array([[1.0, 0], [3, 0], [2, 0]], np.float32), np.zeros(3))
    scores: list[active_learning.PerExamplePriority]
    scores = [jax_scores, chex_scores, numpy_scores]
    makers = [active_learning.make_priority_fn_ctor(score) for score in scores]
    makers.append(same)
    for make_priority in makers:
        batcher = active_learning.PrioritizedBatcher(forward, 1, make_priority)
        assert batcher.sample_batch({}, {}, pool, KEY).x[0, 0] == 3
