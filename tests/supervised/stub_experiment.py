"""A trained network in the plane whose samples are known in closed form."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from enn import base
from enn.networks import indexers
from enn.networks.base import OutputWithPrior


class StubExperiment:
    """Output i at index z is (i + 1)·z·x₀, of which the prior gives 0.25."""

    def __init__(self, dataset=None, num_outputs=1):
        def apply(params, state, inputs, index):
            out = index[0] * inputs[:, :1] * params["factors"]
            return OutputWithPrior(out - 0.25, jnp.full_like(out, 0.25)), state

        self.enn = base.EpistemicNetwork(apply, None, indexers.GaussianIndexer(1))
        params = {"factors": 1 + np.arange(num_outputs, dtype=np.float32)[None]}
        self.state = types.SimpleNamespace(params=params, network_state={})
        self.dataset = dataset
        self.num_predicted = 0

    def predict(self, inputs, key):
        self.num_predicted += 1
        params, state = self.state.params, self.state.network_state
        return self.enn.apply(params, state, inputs, self.enn.indexer(key))[0]


class OpaqueExperiment:
    """The same, with nothing to see but `predict`."""

    def __init__(self):
        self.predict = StubExperiment().predict


def slopes(num_sample):
    """The indices of the samples, from the specified sequence of keys."""
    key, drawn = jax.random.PRNGKey(0), []
    for _ in range(num_sample):
        key, subkey = jax.random.split(key)
        drawn.append(jax.random.normal(subkey, [1]).item())
    return np.array(drawn)
