"""The features that a network's last layer sees."""

from typing import Any

import chex
import haiku as hk
import numpy as np

from enn import base
from enn.networks.adapters.features import FEATURES as FEATURES
from enn.networks.adapters.features import called_once, with_features
from enn.networks.base import EnnArray, Output, parse_to_output_with_prior


def expose_features(enn: EnnArray, last_layer: str) -> EnnArray:
    """Returns `enn` with the input of one of its Haiku modules in `extra["features"]`.

    Parameters, state and predictions are those of `enn`.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    >>> enn = networks.wrap_transformed_as_enn(net)
    >>> enn = networks.expose_features(enn, "mlp/~/linear_1")
    >>> x, key = np.ones([3, 5]), jax.random.key(0)
    >>> out, _ = enn.apply(*enn.init(key, x, key), x, key)
    >>> out.extra["features"].shape, bool((out.extra["features"] >= 0).all())  # relu
    ((3, 4), True)

    Args:
      enn: a network of Haiku modules, other than in `jax.vmap` of its own.
      last_layer: name of the module, as in the parameters.

    Returns:
      Network of `OutputWithPrior`, whose `extra` gains the features, `[batch, ...]`.

    Raises:
      ValueError: by `apply`, if no module of that name is called, or it is called more
        than once or on something else than a batch.
    """

    def apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        out, state, (features, _) = run_to_last_layer(
            enn, last_layer, params, state, inputs, index
        )
        return with_features(out, features), state

    return EnnArray(apply, enn.init, enn.indexer)


def run_to_last_layer(
    enn: EnnArray,
    last_layer: str,
    params: hk.Params,
    state: hk.State,
    inputs: chex.Array,
    index: base.Index,
) -> tuple[Output, hk.State, tuple[chex.Array, dict[str, chex.Array]]]:
    """Returns output, new state, and what `last_layer` saw: its input and parameters.

    The parameters are by name, and of the member that `index` picks in an ensemble.
    """
    seen: list[tuple[chex.Array, dict[str, chex.Array]]] = []
    called: set[str] = set()
    is_inside = False

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal is_inside
        # Modules have no name in `__init__`, and a method may call the parent's.
        if context.method_name != "__call__" or is_inside:
            return call(*args, **kwargs)
        called.add(context.module.module_name)
        if context.module.module_name != last_layer:
            return call(*args, **kwargs)
        own = context.module.params_dict()
        seen.append((args[0], {k.rpartition("/")[2]: v for k, v in own.items()}))
        is_inside = True
        try:
            return call(*args, **kwargs)
        finally:
            is_inside = False

    with hk.intercept_methods(intercept):
        out, state = enn.apply(params, state, inputs, index)
    features, own_params = called_once(seen, last_layer, called)
    batch = np.shape(parse_to_output_with_prior(out).train)[0]
    if np.shape(features)[:1] != (batch,):
        raise ValueError(
            f"The input of {last_layer!r} must be a batch of {batch} rows, got shape "
            f"{list(np.shape(features))}."
        )
    return out, state, (features, own_params)
