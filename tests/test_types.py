"""What type checkers must accept of users' code; .ci/run has pyright read this file."""

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import base, losses, metrics, networks, supervised
from enn.datasets import ArrayBatch

pytestmark = pytest.mark.slow

BATCH = ArrayBatch(np.zeros([3, 2], np.float32), np.zeros([3, 1]))
ENN = networks.MLPEnsembleMatchedPrior([5, 1], num_ensemble=3)
LOSS = losses.average_single_index_loss(losses.L2Loss(), 2)


def _experiment(enn: networks.EnnArray, loss: losses.LossFnArray) -> Any:
    return supervised.Experiment(
        enn,
        loss,
        optax.adam(1e-3),
        BATCH,
        train_log_freq=None,
        eval_metrics={
            "mean": lambda outputs, targets: jnp.mean(jnp.subtract(outputs, targets))
        },
    )


def test_arguments_of_own_functions_may_have_other_names() -> None:
    def apply(p: Any, s: Any, x: Any, z: Any) -> tuple[jax.Array, Any]:
        return x @ p["w"], s

    def init(k: Any, x: Any, z: Any) -> tuple[Any, Any]:
        return {"w": jnp.ones([2, 1])}, {}

    def loss(
        net: networks.EnnArray, p: Any, s: Any, data: ArrayBatch, k: jax.Array
    ) -> base.LossOutput:
        out, s = net.apply(p, s, data.x, net.indexer(k))
        return jnp.mean(networks.parse_net_output(out)), (s, {})

    def single_loss(
        f: networks.ApplyArray, p: Any, s: Any, data: ArrayBatch, z: Any
    ) -> base.LossOutput:
        out, s = f(p, s, data.x, z)
        return jnp.mean(networks.parse_net_output(out)), (s, {})

    enn = networks.EnnArray(apply, init, lambda k: k)
    for loss_fn in (loss, losses.average_single_index_loss(single_loss, 2)):
        experiment = _experiment(enn, loss_fn)
        experiment.train(1)
        assert experiment.step == 1


def test_attributes_and_results_have_their_types() -> None:
    assert list(BATCH)[:2] == ["x", "y"]
    assert_type(BATCH.replace(y=np.ones([3, 1])), ArrayBatch)
    experiment = supervised.Experiment(ENN, LOSS, optax.adam(1e-3), BATCH)
    assert_type(experiment.state, supervised.TrainingState)
    assert_type(experiment.step, int)
    params, network_state = experiment.state.params, experiment.state.network_state
    outputs = networks.make_batch_fwd(ENN, 2)(params, network_state, BATCH.x)
    assert_type(outputs, jax.Array)
    assert_type(
        networks.predict_at_indices(ENN, params, network_state, BATCH.x, np.arange(2)),
        jax.Array,
    )
    assert_type(supervised.sample_predictions(experiment, BATCH.x, 2), jax.Array)
    key = jax.random.key(0)
    assert_type(networks.parse_net_output(experiment.predict(BATCH.x, key)), jax.Array)
    assert_type(experiment.loss(BATCH, key), jax.Array)
    nll = metrics.make_gaussian_nll_calculator(0.1)
    assert_type(nll(outputs, BATCH.y), jax.Array)
    assert nll(outputs, BATCH.y).at[()] is not None
