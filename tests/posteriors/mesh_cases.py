"""Sampling on a mesh, for a process that `test_mesh` starts with eight devices.

python -m tests.posteriors.mesh_cases OUT
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import losses, networks, posteriors, supervised, utils
from enn.datasets import ArrayBatch
from tests.networks import descriptors

X = np.random.default_rng(0).normal(size=[64, 3]).astype(np.float32)
DATA = ArrayBatch(x=X, y=(X[:, :1] > 0).astype(np.int32))
MESHES = {"data": {"data": 8}, "data and index": {"data": 2, "index": 4}}


def make_langevin() -> optax.GradientTransformation:
    sampler = posteriors.sghmc(1e-2, 4 * 64)
    return posteriors.track_samples(sampler, 3, every=5, burn_in=5)


def make_swag() -> optax.GradientTransformation:
    return posteriors.track_moments(optax.sgd(0.1, 0.9), every=3, rank=4)


def draw_swag(opt_state: Any) -> Any:
    moments = posteriors.get_moments(opt_state)
    return posteriors.draw_swag_samples(moments, jax.random.key(0), 5)


POSTERIORS = {
    "sghmc": (make_langevin, posteriors.get_samples),
    "swag": (make_swag, draw_swag),
}


def predict(name: str, mesh: jax.sharding.Mesh | None = None) -> Any:
    """Returns the logits of samples of four chains at 16 indices."""
    make_optimizer, get = POSTERIORS[name]
    enn = networks.MLPEnsembleMatchedPrior([8, 2], num_ensemble=4)
    loss = losses.average_over_indices(losses.XentLoss(2), jnp.arange(4))
    batches = utils.make_batch_iterator(DATA, 32, seed=1)
    experiment = supervised.Experiment(
        enn, loss, make_optimizer(), batches, mesh=mesh, train_log_freq=None
    )
    experiment.train(23)
    samples = get(experiment.state.opt_state)
    net = networks.from_network_samples(enn, samples)
    logits = networks.make_batch_fwd(net, 16, mesh=mesh)(samples, {}, X)
    return np.asarray(logits).tolist()


NETWORKS = {
    net.name: net
    for net in descriptors.DESCRIPTORS
    if net.name
    in {
        "gaussian_last_layer",
        "laplace",
        "linear_hyper_mlp",
        "linearised_laplace",
        "network_samples",
        "sngp_mlp",
        "vbll_mlp",
    }
}


def predict_untrained(name: str, mesh: jax.sharding.Mesh | None = None) -> Any:
    """Returns the logits of a network of the contract list at 16 indices."""
    enn = NETWORKS[name].make()
    inputs = np.concatenate([NETWORKS[name].inputs] * 2)
    key = jax.random.PRNGKey(1)
    params, state = jax.jit(enn.init)(key, inputs, enn.indexer(key))
    logits = networks.make_batch_fwd(enn, 16, mesh=mesh)(params, state, inputs)
    return np.asarray(logits).tolist()


PREDICTIONS = dict.fromkeys(POSTERIORS, predict) | dict.fromkeys(
    NETWORKS, predict_untrained
)


def main(out: str) -> None:
    results = {
        f"{name} {axes}": run(name, jax.make_mesh(tuple(sizes.values()), tuple(sizes)))
        for name, run in PREDICTIONS.items()
        for axes, sizes in MESHES.items()
    }
    pathlib.Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
