"""Calls the library under a mesh that the user has set, with an explicit axis.

Metrics, priorities and networks take rows sharded over it, and an experiment is given
the mesh, with this kind of axis and with an automatic one.

Run as a program with several devices, prints the names of calls that give other
numbers than on one device, or fail, as a JSON dict with the reasons.
"""

import json

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from enn import active_learning, metrics, networks, utils
from tests.networks.descriptors import DESCRIPTORS
from tests.support import tiny
from tests.support.batches import LABELS, LOGITS, normal

NUM_DEVICES = 4
# Those that look rows up in a table, or multiply by what is not sharded.
NETWORKS = ("bert_eval", "bert_shared_dropout", "index_mlp_gp_prior")
SCORES = normal(24, seed=3)
SAMPLES, TARGETS = normal(3, 24, 1, seed=4), normal(24, 1, seed=5)
CLASSIFICATION = {
    "accuracy": metrics.make_accuracy_calculator(),
    "aurc, streamed": metrics.make_aurc_aggregator(num_bits=10),
    "brier": metrics.calculate_brier_score,
    "ece": metrics.SingleBatchECE(5),
    "ece, streamed": metrics.ExpectedCalibrationError(5),
    "joint log-likelihood": metrics.calculate_joint_ll,
    "joint nll": metrics.make_nll_joint_calculator(4),
    "nll": metrics.make_nll_marginal_calculator(),
    "polyadic nll": metrics.make_nll_polyadic_calculator(4, 2),
    "zero-one loss": metrics.zero_one_loss,
}
REGRESSION = {
    "crps": metrics.calculate_crps,
    "gaussian joint nll": metrics.make_gaussian_nll_joint_calculator(0.1, 4),
    "gaussian nll": metrics.make_gaussian_nll_calculator(0.1),
}
AREAS = {
    "aupr": metrics.calculate_aupr,
    "aurc": metrics.calculate_aurc,
    "auroc": metrics.calculate_auroc,
    "binned histogram": metrics.binned_histogram,
}


def _calls():
    for name, metric in CLASSIFICATION.items():
        yield name, metric, (LOGITS, LABELS)
    for name in active_learning.get_implemented_priority_fn_ctors():
        yield name, _without_key(name), (LOGITS, LABELS)
    for name, metric in REGRESSION.items():
        yield name, metric, (SAMPLES, TARGETS)
    for name, area in AREAS.items():
        yield name, area, (SCORES, LABELS[:, 0] % 2)
    probs = np.exp(LOGITS[0])
    yield "categorical", metrics.categorical_log_likelihood, (probs, LABELS)

    for descriptor in DESCRIPTORS:
        if descriptor.name in NETWORKS:
            yield descriptor.name, *_forward(descriptor)


def _forward(descriptor):
    enn = descriptor.make()
    inputs = jax.tree.map(lambda x: np.concatenate([x, x])[:4], descriptor.inputs)
    index = enn.indexer(jax.random.key(0))
    variables = enn.init(jax.random.key(1), inputs, index)

    def apply(inputs):
        return networks.parse_net_output(enn.apply(*variables, inputs, index)[0])

    return jax.jit(apply), (inputs,)


def _without_key(name):
    priority = active_learning.get_per_example_priority(name)
    return lambda logits, labels: priority(logits, labels, jax.random.key(0))


def _train(mesh=None):
    """Returns parameters, loss and predictions after training."""
    batches = utils.make_batch_iterator(tiny.make_data(), batch_size=4)
    experiment = tiny.make_experiment(
        batches, eval_datasets={"test": batches}, mesh=mesh
    )
    experiment.train(20)
    batch, key = next(batches), jax.random.PRNGKey(1)
    return (
        experiment.state.params,
        experiment.loss(batch, key),
        experiment.predict(batch.x, key),
        [row["loss"] for row in experiment.logger.rows if row["sgd"]],
    )


def failures():
    """Returns the reasons by name of the call."""
    found = {}
    expected = jax.device_get(_train())
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((NUM_DEVICES,), ("data",), axis_types=(axis_type,))
        try:
            with jax.set_mesh(mesh):
                trained = jax.device_get(_train(mesh))
            jax.tree.map(_assert_close, trained, expected)
        except Exception as error:
            found[f"experiment, {axis_type}"] = f"{type(error).__name__}: {error}"
    mesh = jax.make_mesh((NUM_DEVICES,), ("data",))
    for name, fn, args in _calls():
        expected = jax.device_get(fn(*args))
        rows = jax.tree.map(lambda x: jax.device_put(x, _by_row(mesh, x)), args)
        try:
            with jax.set_mesh(mesh):
                value = jax.device_get(fn(*rows))
            jax.tree.map(_assert_close, value, expected)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _by_row(mesh, array):
    # Logits and samples of regression have a leading axis of indices.
    axes = [None] * (array.ndim == 3)
    return NamedSharding(mesh, PartitionSpec(*axes, "data"))


def _assert_close(value, expected):
    np.testing.assert_allclose(value, expected, 1e-5, 1e-6)


if __name__ == "__main__":
    print(json.dumps(failures()))
