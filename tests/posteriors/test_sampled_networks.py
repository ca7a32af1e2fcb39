"""Samples of networks of other libraries, which are saved and loaded as any network."""

import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from flax import linen, nnx

from enn import base, checkpoints, losses, networks, posteriors, supervised
from enn.datasets import ArrayBatch
from tests.support import resnets
from tests.support.fast import compiled
from tests.support.training import X, Y

pytestmark = pytest.mark.slow


def _flax() -> base.EpistemicNetwork:
    return networks.from_flax(
        linen.Sequential([linen.Dense(4), linen.tanh, linen.Dense(2)])
    )


def _nnx() -> base.EpistemicNetwork:
    return networks.from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))


def _equinox() -> base.EpistemicNetwork:
    return networks.from_equinox(lambda key: eqx.nn.Linear(3, 2, key=key))


def _langevin() -> Any:
    return posteriors.track_samples(posteriors.sghmc(1e-2, 16), 3, every=2, burn_in=4)


def _swag() -> Any:
    return posteriors.track_moments(optax.sgd(0.1), every=2)


@pytest.mark.parametrize(
    ("make", "method"),
    [(_flax, "sghmc"), (_flax, "swag"), (_nnx, "sghmc"), (_equinox, "swag")],
)
def test_samples_of_networks_of_other_libraries(
    make: Callable[[], base.EpistemicNetwork], method: str, tmp_path: pathlib.Path
) -> None:
    enn = make()
    loss = losses.average_single_index_loss(losses.XentLoss(2))
    optimizer = _langevin() if method == "sghmc" else _swag()
    experiment = supervised.Experiment(
        enn, loss, optimizer, (X, Y), train_log_freq=None
    )
    experiment.train(8)
    if method == "sghmc":
        samples = posteriors.get_samples(experiment.state.opt_state)
    else:
        moments = posteriors.get_moments(experiment.state.opt_state)
        samples = posteriors.draw_swag_samples(moments, jax.random.key(0), 3)
    posterior = networks.from_network_samples(enn, samples)
    logits = networks.predict_at_indices(posterior, samples, {}, X, np.arange(3))
    one = jax.tree.map(lambda leaf: leaf[2], samples)
    expected, _ = enn.apply(one, experiment.state.network_state, X, jax.random.key(0))
    np.testing.assert_allclose(logits[2], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(logits[0] - logits[2]).max() > 1e-4

    path = tmp_path / "posterior"
    checkpoints.save_pretrained(path, samples, {}, enn=posterior, inputs=X)
    loaded, state = checkpoints.load_pretrained(path, like=posterior)
    again = networks.predict_at_indices(posterior, loaded, state, X, np.arange(3))
    np.testing.assert_array_equal(again, logits)


def test_resnet_has_statistics_for_every_sample() -> None:
    training, evaluation = (
        networks.EnsembleResNetENN(2, 1, is_training=train, config=resnets.TINY)
        for train in (True, False)
    )
    images = resnets.IMAGES
    init = compiled(jax.vmap(training.init, (0, None, None)))
    samples, states = init(jax.random.split(jax.random.PRNGKey(0), 2), images, 0)
    init_state = jax.tree.map(lambda leaf: leaf[0], states)
    data = ArrayBatch(x=images, y=np.zeros([2, 1], int))
    states = posteriors.recompute_state(training, samples, init_state, data, index=0)
    posterior = networks.from_network_samples(evaluation, samples, states, index=0)
    out, _ = compiled(posterior.apply)(samples, states, images, 1)
    # On the data of one batch, evaluation with its statistics is as training.
    one = jax.tree.map(lambda leaf: leaf[1], samples)
    expected, _ = compiled(training.apply)(one, init_state, images, 0)
    np.testing.assert_allclose(
        networks.parse_net_output(out),
        networks.parse_net_output(expected),
        rtol=1e-3,
        atol=1e-4,
    )
