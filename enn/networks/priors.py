"""Prior functions, and networks that add one to what they learn."""

from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.additive_priors import (
    WARN,
    EnnNoStateWithAdditivePrior,
    EnnWithAdditivePrior,
    NetworkWithAdditivePrior,
)
from enn.networks.base import EnnArray, PriorFn
from enn.networks.gp_priors import GpGamma, make_random_feat_gp
from enn.networks.init_once import init_once
from enn.networks.layer_sizes import layer_sizes
from enn.networks.linear import ConcatMLP
from enn.networks.outputs import parse_net_output

__all__ = [
    "WARN",
    "EnnNoStateWithAdditivePrior",
    "EnnWithAdditivePrior",
    "GpGamma",
    "NetworkWithAdditivePrior",
    "PriorFn",
    "convert_enn_to_prior_fn",
    "get_random_mlp_with_index",
    "make_null_prior",
    "make_random_feat_gp",
]


def convert_enn_to_prior_fn(
    enn: EnnArray, dummy_input: chex.Array, key: chex.PRNGKey
) -> PriorFn:
    """Returns `enn` at fixed random parameters as a prior function.

    Args:
      enn: the network.
      dummy_input: array shaped like an input batch.
      key: key of the parameters.
    """
    index_key, init_key, _ = jax.random.split(key, 3)
    index = enn.indexer(index_key)
    params, state = init_once(enn.init, init_key, dummy_input, index)

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        return parse_net_output(enn.apply(params, state, inputs, index)[0])

    return prior_fn


def make_null_prior(output_dim: int) -> Callable[[chex.Array], chex.Array]:
    """Returns `[batch, ...] -> zeros [batch, output_dim]`, in float32."""
    _checks.positive_int("output_dim", output_dim)

    def null_prior(inputs: chex.Array) -> chex.Array:
        return jnp.zeros((*jnp.shape(inputs)[:1], output_dim), jnp.float32)

    return null_prior


def get_random_mlp_with_index(
    x_sample: chex.Array,
    z_sample: chex.Array,
    rng: chex.PRNGKey,
    prior_output_sizes: Sequence[int] | None = None,
    prior_weight_std: float = 3,
    prior_bias_std: float = 0.1,
) -> PriorFn:
    """Returns a fixed random MLP of inputs and index, `[batch, num_outputs]`.

    Numbers follow the original `enn`: `prior_weight_std` is the scale of the
    weights' variance, which is prior_weight_std / fan_in.

    Args:
      x_sample: array shaped like an input batch `[batch, num_features]`.
      z_sample: array shaped like an index, `[index_dim]`.
      rng: key of the parameters.
      prior_output_sizes: width of every layer, `[10, 10, 1]` by default.
      prior_weight_std: scale of the weights.
      prior_bias_std: standard deviation of the biases before truncation.

    Raises:
      ValueError: if a layer size is no integer >= 1; for inputs or an index of
        another shape, now or by the prior function.
    """
    if prior_output_sizes is None:
        prior_output_sizes = [10, 10, 1]
    sizes = layer_sizes("prior_output_sizes", prior_output_sizes)
    inits = {
        "w_init": hk.initializers.VarianceScaling(scale=prior_weight_std),
        "b_init": hk.initializers.TruncatedNormal(stddev=prior_bias_std),
    }

    def forward(inputs: chex.Array, index: base.Index) -> chex.Array:
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        _checks.shape("index", index, (None,), "[index_dim]")
        return ConcatMLP(sizes, **inits)(inputs.T, index).T

    transformed = hk.without_apply_rng(hk.transform(forward))
    params = init_once(transformed.init, rng, x_sample, z_sample)

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        return transformed.apply(params, inputs, index)

    return prior_fn
