"""An epinet on a trained network of Haiku, Flax, NNX or Equinox, in one line."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import base
from enn.networks.adapters.from_equinox import from_equinox
from enn.networks.adapters.from_flax import from_flax
from enn.networks.adapters.from_nnx import from_nnx
from enn.networks.base import EnnArray, Output, parse_to_output_with_prior
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.epinet.base import BaseHiddenParser, combine_base_epinet_as_enn
from enn.networks.epinet.expose_features import FEATURES, expose_features
from enn.networks.epinet.last_layer import MLPEpinetWithPrior, parse_base_hidden
from enn.networks.indexers import PrngIndexer
from enn.networks.inputs import flat_batch


def add_epinet(
    network: Any,
    params: Any = None,
    state: Any = None,
    *,
    features: str | BaseHiddenParser,
    num_outputs: int,
    index_dim: int = 10,
    epinet_hiddens: Sequence[int] = (50,),
    prior_scale: float = 1.0,
    freeze_base: bool = True,
    stop_hidden_gradient: bool = False,
) -> EnnArray:
    """Returns a trained network with an epinet on its features: μ(x) + σ(φ(x), z).

    The epinet is an `MLPEpinetWithPrior` that sees the features alone;
    `combine_base_epinet_as_enn` takes others.

    Osband et al., 2021, https://arxiv.org/abs/2107.08924, section 4.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn.networks import epinet
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    >>> x, z, key = np.ones([3, 5]), np.zeros(10), jax.random.key(0)
    >>> params = net.init(key, x)  # Yours are trained.
    >>> enn = epinet.add_epinet(net, params, features="mlp/~/linear_1", num_outputs=2)
    >>> mean, _ = enn.apply(*enn.init(key, x, z), x, z)
    >>> np.allclose(mean.preds, net.apply(params, x))  # At index 0 the network itself
    True

    Args:
      network: the network: an `EpistemicNetwork`, a pair from `hk.transform` or
        `hk.transform_with_state`, or a module of `flax.linen`, `flax.nnx` or Equinox,
        ready for evaluation.
      params: its parameters; of Flax, they may be all variables, such as
        `{"params": ..., "batch_stats": ...}`. A module of NNX or Equinox brings its
        own.
      state: its state, if it has one: the other collections of Flax, an `eqx.nn.State`.
      features: name of the layer whose input the features are, as in the parameters
        of Haiku, or a path such as `block/Dense_1` or `layers/1`; or a function of the
        network's output, such as `lambda out: out.extra["final_out"]`. They are
        flattened.
      num_outputs: number of outputs of the network.
      index_dim: size of the Gaussian index.
      epinet_hiddens: widths of the epinet's hidden layers.
      prior_scale: factor of the epinet's prior.
      freeze_base: whether the network keeps its parameters and state, and only those
        of the epinet are among the result's. Otherwise both train.
      stop_hidden_gradient: whether no gradient flows from the epinet into the network,
        where that trains.

    Returns:
      Network of `OutputWithPrior` `[batch, num_outputs]`; see
      `combine_base_epinet_as_enn`.

    Raises:
      TypeError: for another kind of network, or without `params` where they are needed.
      ValueError: if a size is not an integer >= 1; by `init` and `apply` if there is no
        layer of the name in `features`, with the names that there are, or the network
        returns another shape than `[batch, num_outputs]`.
    """
    last_layer = features if isinstance(features, str) else None
    enn, params, state = _as_enn(network, params, state, last_layer)
    epinet = MLPEpinetWithPrior(
        index_dim, num_outputs, epinet_hiddens, None, prior_scale, drop_inputs=True
    )

    def parse_hidden(out: Output) -> jax.Array:
        shape = jnp.shape(parse_to_output_with_prior(out).train)
        if shape[1:] != (num_outputs,):  # They would broadcast, to something else.
            raise ValueError(
                f"The network must return [batch, num_outputs={num_outputs}], got "
                f"shape {list(shape)}."
            )
        if isinstance(features, str):
            return flat_batch(parse_base_hidden(out, FEATURES))
        return flat_batch(features(out))

    return combine_base_epinet_as_enn(
        EnnCheckpoint("base", lambda: (params, state), lambda: enn),
        epinet,
        parse_hidden,
        freeze_base=freeze_base,
        stop_hidden_gradient=stop_hidden_gradient,
    )


def _as_enn(
    network: Any, params: Any, state: Any, last_layer: str | None
) -> tuple[EnnArray, Any, Any]:
    """Returns a network that exposes what `last_layer` sees, parameters and state."""
    match _library(network):
        case "flax.nnx":
            enn = from_nnx(lambda rngs: network, last_layer=last_layer)
            return enn, *enn.init(jax.random.key(0), None, None)
        case "equinox":
            made = network if state is None else (network, state)
            enn = from_equinox(lambda key: made, last_layer=last_layer)
            return enn, *enn.init(jax.random.key(0), None, None)
    if params is None:
        raise TypeError("params must be given: the network does not hold them.")
    match _library(network):
        case "flax.linen":
            enn = from_flax(network, last_layer=last_layer)
            if state is None and "params" in params:
                state = {name: params[name] for name in params if name != "params"}
                params = params["params"]
        case library:
            enn = _from_transformed(network) if library == "haiku" else network
            enn = enn if last_layer is None else expose_features(enn, last_layer)
    return enn, params, {} if state is None else state


def _library(network: Any) -> str:
    for name in ("flax.linen", "flax.nnx", "equinox"):
        library = sys.modules.get(name)  # Whoever has such a module has imported it.
        if library is not None and isinstance(network, library.Module):
            return name
    if isinstance(network, hk.Transformed | hk.TransformedWithState):
        return "haiku"
    if isinstance(network, base.EpistemicNetwork):
        return "enn"
    raise TypeError(
        "network must be an EpistemicNetwork, a pair from hk.transform, or a module of "
        f"flax.linen, flax.nnx or equinox (not its class), got {network!r}."
    )


def _from_transformed(network: hk.Transformed | hk.TransformedWithState) -> EnnArray:
    has_state = isinstance(network, hk.TransformedWithState)
    takes_key = "rng" in list(inspect.signature(network.apply).parameters)[:3]

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        variables = (params, state) if has_state else (params,)
        key = (index,) if takes_key else ()
        out = network.apply(*variables, *key, inputs)
        return out if has_state else (out, state)

    def init(rng_key: chex.PRNGKey, inputs: Any, index: base.Index) -> Any:
        del index
        made = network.init(rng_key, inputs)
        return made if has_state else (made, {})

    return EnnArray(apply, init, PrngIndexer())
