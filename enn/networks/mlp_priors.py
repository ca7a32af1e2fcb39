"""Fixed random MLPs as prior functions, one for every member of an ensemble."""

import functools
from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks import members
from enn.networks.flat_inputs import flat_inputs
from enn.networks.init_once import init_once
from enn.networks.layer_sizes import layer_sizes


def transformed_mlp(
    output_sizes: Sequence[int],
    w_init: hk.initializers.Initializer | None = None,
    b_init: hk.initializers.Initializer | None = None,
) -> hk.Transformed:
    """Returns the pure functions of an MLP on flattened inputs."""
    sizes = layer_sizes("output_sizes", output_sizes)

    def forward(inputs: chex.Array) -> chex.Array:
        return hk.nets.MLP(sizes, w_init, b_init)(flat_inputs(inputs))

    return hk.without_apply_rng(hk.transform(forward))


@functools.lru_cache(maxsize=16)
def _init_members(
    output_sizes: tuple[int, ...],
    w_init: hk.initializers.Initializer | None,
    b_init: hk.initializers.Initializer | None,
) -> Callable[[chex.Array, chex.Array], hk.Params]:
    """Returns `(keys, inputs) -> parameters`, the same function for the same settings.

    So JAX compiles it once for all priors of an architecture.
    """
    init = transformed_mlp(output_sizes, w_init, b_init).init
    return jax.vmap(init, in_axes=(0, None))


class MLPPriors:
    """Fixed MLPs with stacked parameters, drawn when the input shape is known.

    Prior k has the parameters that an MLP gets from the k-th key of the sequence of
    `seed`. They depend on the number of features, not on the values of the inputs.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        num_ensemble: int,
        seed: int,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        self.num_ensemble = _checks.positive_int("num_ensemble", num_ensemble)
        self._model = transformed_mlp(output_sizes, w_init, b_init)
        self._init = _init_members(tuple(output_sizes), w_init, b_init)
        self._seed = seed
        self._num_features: int | None = None
        self._params: hk.Params = {}

    def params_for(self, inputs: chex.Array) -> hk.Params:
        """Returns the stacked parameters, drawing them at the first call."""
        flat = flat_inputs(inputs)
        num_features = flat.shape[-1]
        if self._num_features is None:
            # Concrete values even where the first input seen is inside jax.jit.
            with jax.ensure_compile_time_eval():
                rng = hk.PRNGSequence(self._seed)
                keys = jnp.stack([next(rng) for _ in range(self.num_ensemble)])
                dummy = jnp.zeros((1, num_features), flat.dtype)
                self._params = init_once(self._init, keys, dummy)
            self._num_features = num_features
        elif num_features != self._num_features:
            raise ValueError(
                "The prior functions were made for inputs of "
                f"{self._num_features} features, got shape {list(jnp.shape(inputs))}."
            )
        return self._params

    def __call__(self, inputs: chex.Array, index: base.Index) -> chex.Array:
        """Returns the prior `index` at `inputs`, `[batch, num_outputs]`."""
        params = self.params_for(inputs)
        return members.apply_member(
            self._model.apply, params, inputs, index, self.num_ensemble
        )


def make_mlp_ensemble_prior_fns(
    output_sizes: Sequence[int],
    dummy_input: chex.Array,
    num_ensemble: int,
    seed: int = 0,
    w_init: hk.initializers.Initializer | None = None,
    b_init: hk.initializers.Initializer | None = None,
) -> Sequence[Callable[[chex.Array], chex.Array]]:
    """Returns `num_ensemble` fixed random MLPs `[batch, ...] -> [batch, num_outputs]`.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      dummy_input: array shaped like an input batch.
      num_ensemble: how many functions.
      seed: seed of the parameters.
      w_init: initialiser of the weights.
      b_init: initialiser of the biases.
    """
    priors = MLPPriors(output_sizes, num_ensemble, seed, w_init, b_init)
    priors.params_for(dummy_input)
    return [functools.partial(priors, index=index) for index in range(num_ensemble)]
