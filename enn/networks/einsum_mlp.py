"""Ensembles of MLPs, and priors, with members on the last axis of the parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _known_rows, base
from enn.networks.base import EnnArray, Output, parse_net_output
from enn.networks.indexers import EnsembleIndexer
from enn.networks.inputs import flat_inputs, init_once, layer_sizes
from enn.networks.many_indices import members
from enn.networks.priors import EnnWithAdditivePrior, PriorFn

Activation = Callable[[jax.Array], jax.Array]

_OF_SINGLE_NUMBERS = (jax.nn.relu, jax.nn.tanh, jnp.tanh, jax.nn.gelu, jax.nn.silu)


class EnsembleBranch(hk.Module):
    """First layer of an ensemble of MLPs: every member sees the same inputs.

    Member k has x W_k + b_k.

    Args:
      num_ensemble: number of members.
      output_size: width of the layer.
      nonzero_bias: whether biases start random, so that members differ at x = 0, or
        at zero.
      w_init: initialiser of the weights `[num_features, output_size, num_ensemble]`.
      name: name of the module.

    Raises:
      ValueError: if a size is not an integer >= 1; by a call with inputs of the wrong
        rank.
    """

    def __init__(
        self,
        num_ensemble: int,
        output_size: int,
        nonzero_bias: bool,
        w_init: hk.initializers.Initializer | None = None,
        name: str = "ensemble_branch",
    ):
        super().__init__(name=name)
        self.num_ensemble = _checks.positive_int("num_ensemble", num_ensemble)
        self.output_size = _checks.positive_int("output_size", output_size)
        self.nonzero_bias = nonzero_bias
        self.w_init = w_init

    def __call__(self, inputs: chex.Array) -> jax.Array:
        """Returns `[batch, output_size, num_ensemble]` for `[batch, num_features]`."""
        inputs = jnp.asarray(inputs)
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        w, b = self.weights(inputs.shape[1], inputs.dtype)
        return jnp.einsum("bi,ijk->bjk", inputs, w) + b[None]

    def weights(self, num_features: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """Returns weights as of `w_init`, and biases `[output_size, num_ensemble]`."""
        b_init = _default_init(num_features) if self.nonzero_bias else jnp.zeros
        out_shape = self.output_size, self.num_ensemble
        return _weights(num_features, out_shape, dtype, self.w_init, b_init)


class EnsembleLinear(hk.Module):
    """A further layer of an ensemble of MLPs: every member has inputs of its own.

    Member k has h_k W_k + b_k.

    Args:
      output_size: width of the layer.
      w_init: initialiser of the weights `[num_features, output_size, num_ensemble]`.
      name: name of the module.

    Raises:
      ValueError: if a size is not an integer >= 1; by a call with inputs of the wrong
        rank.
    """

    def __init__(
        self,
        output_size: int,
        w_init: hk.initializers.Initializer | None = None,
        name: str = "linear",
    ):
        super().__init__(name=name)
        self.output_size = _checks.positive_int("output_size", output_size)
        self.w_init = w_init
        self.num_ensemble: int | None = None

    def __call__(self, inputs: chex.Array) -> jax.Array:
        """Returns `[batch, output_size, num_ensemble]`.

        Args:
          inputs: `[batch, num_features, num_ensemble]`.
        """
        inputs = jnp.asarray(inputs)
        axes = "[batch, num_features, num_ensemble]"
        _checks.shape("inputs", inputs, (None, None, None), axes)
        self.num_ensemble = inputs.shape[-1]
        w, b = self.weights(inputs.shape[1], inputs.dtype, self.num_ensemble)
        return jnp.einsum("bik,ijk->bjk", inputs, w) + b[None]

    def weights(
        self, num_features: int, dtype: Any, num_ensemble: int = 1
    ) -> tuple[jax.Array, jax.Array]:
        """Returns weights as of `w_init`, and biases `[output_size, num_ensemble]`."""
        out_shape = self.output_size, num_ensemble
        return _weights(num_features, out_shape, dtype, self.w_init, jnp.zeros)


def _default_init(num_features: int) -> hk.initializers.Initializer:
    return hk.initializers.TruncatedNormal(1.0 / np.sqrt(num_features))


def _weights(
    num_features: int,
    out_shape: tuple[int, int],
    dtype: Any,
    w_init: hk.initializers.Initializer | None,
    b_init: hk.initializers.Initializer,
) -> tuple[jax.Array, jax.Array]:
    w_init = w_init or _default_init(num_features)
    w = hk.get_parameter("w", [num_features, *out_shape], dtype, init=w_init)
    return w, hk.get_parameter("b", out_shape, dtype, init=b_init)


class EnsembleMLP(hk.Module):
    """The outputs of all members of an ensemble of MLPs; inputs are flattened.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def forward(x):
    ...     return networks.EnsembleMLP([4, 1], num_ensemble=5)(x)
    >>> net, x = hk.without_apply_rng(hk.transform(forward)), np.ones([3, 2])
    >>> net.apply(net.init(jax.random.key(0), x), x).shape  # Members last
    (3, 1, 5)

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      num_ensemble: number of members.
      nonzero_bias: whether the biases of the first layer start random or at zero.
      activation: activation between layers.
      w_init: initialiser of the weights.
      name: name of the module.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1; by a call
        with inputs that are not `[batch, ...]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        num_ensemble: int,
        nonzero_bias: bool = True,
        activation: Activation = jax.nn.relu,
        w_init: hk.initializers.Initializer | None = None,
        name: str = "ensemble_mlp",
    ):
        super().__init__(name=name)
        first, *others = layer_sizes("output_sizes", output_sizes)
        self.num_ensemble = num_ensemble
        self.activation = activation
        self.layers = [
            EnsembleBranch(num_ensemble, first, nonzero_bias, w_init),
            *(EnsembleLinear(size, w_init) for size in others),
        ]

    def __call__(self, inputs: chex.Array) -> jax.Array:
        """Returns `[batch, num_outputs, num_ensemble]` for `inputs` `[batch, ...]`."""
        branch, *others = self.layers
        out = branch(flat_inputs(inputs))
        for layer in others:
            out = layer(self.activation(out))
        return out

    def member(self, inputs: chex.Array) -> jax.Array:
        """Returns `[batch, num_outputs]` of an ensemble of one, `self(inputs)[..., 0]`.

        In columns on a CPU, as `enn.networks.mlp.transformed_mlp`: a training step of
        100 members, batch 100, takes 5.7 ms and not 7.0 ms (one core, 50-50-2 units).
        """
        if (
            jax.default_backend() != "cpu"
            or self.activation not in _OF_SINGLE_NUMBERS  # It might mix features.
        ):
            return self(inputs)[..., 0]
        out = flat_inputs(inputs).T
        for i, layer in enumerate(self.layers):
            w, b = layer.weights(len(out), out.dtype)
            out = w[..., 0].T @ (self.activation(out) if i else out) + b
        return out.T


def _transformed(
    output_sizes: Sequence[int],
    num_ensemble: int,
    nonzero_bias: bool,
    activation: Activation,
    w_init: hk.initializers.Initializer | None,
    call: Callable[[EnsembleMLP, chex.Array], jax.Array] = EnsembleMLP.__call__,
) -> hk.Transformed:
    def forward(inputs: chex.Array) -> jax.Array:
        net = EnsembleMLP(output_sizes, num_ensemble, nonzero_bias, activation, w_init)
        return call(net, inputs)

    return hk.without_apply_rng(hk.transform(forward))


def make_einsum_ensemble_mlp_enn(
    output_sizes: Sequence[int],
    num_ensemble: int,
    nonzero_bias: bool = True,
    activation: Activation = jax.nn.relu,
    w_init: hk.initializers.Initializer | None = None,
) -> EnnArray:
    """Returns an ensemble of MLPs with members on the last axis of the parameters.

    f(x, k) = f_k(x), as a deep ensemble (Lakshminarayanan et al., 2017,
    https://arxiv.org/abs/1612.01474).

    A single index, or fewer indices under `jax.vmap` than members, run only the
    members they select; more indices run all members once.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.make_einsum_ensemble_mlp_enn([4, 1], num_ensemble=3)
    >>> x = np.ones([3, 2])
    >>> params, state = enn.init(jax.random.key(0), x, 0)
    >>> outs = [enn.apply(params, state, x, member)[0] for member in range(3)]
    >>> len({float(out[0, 0]) for out in outs})  # Three members, each its own
    3

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      num_ensemble: number of members.
      nonzero_bias: whether the biases of the first layer start random or at zero.
      activation: activation between layers.
      w_init: initialiser of the weights.

    Returns:
      Network on inputs `[batch, ...]` with outputs `[batch, num_outputs]`.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1; by
        `apply` for an index out of range, see `enn.networks.many_indices.members`.
    """
    sizes = layer_sizes("output_sizes", output_sizes)
    indexer = EnsembleIndexer(num_ensemble)
    options = (nonzero_bias, activation, w_init)
    ensemble = _transformed(sizes, num_ensemble, *options)
    ensemble_of_one = _transformed(sizes, 1, *options, EnsembleMLP.member)

    def run_member(member: hk.Params, inputs: chex.Array) -> jax.Array:
        params = jax.tree.map(lambda p: p[..., None], member)
        return ensemble_of_one.apply(params, inputs)

    def apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        del state
        out = members.apply_member(
            run_member, params, inputs, index, num_ensemble, axis=-1
        )
        return out, {}

    def init(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del index
        return ensemble.init(rng_key, inputs), {}

    return EnnArray(apply, init, indexer)


def make_ensemble_mlp_with_prior_enn(
    output_sizes: Sequence[int],
    dummy_input: chex.Array,
    num_ensemble: int,
    prior_scale: float = 1.0,
    nonzero_bias: bool = True,
    seed: int = 999,
    activation: Activation = jax.nn.relu,
    w_init: hk.initializers.Initializer | None = None,
) -> EnnArray:
    """Returns an ensemble of MLPs, each with a fixed MLP as its prior function.

    f(x, k) = f_k(x) + prior_scale · p_k(x), with p_k fixed.

    Osband et al., 2018, Randomized prior functions for deep reinforcement learning,
    https://arxiv.org/abs/1806.03335.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> x = np.ones([3, 2])
    >>> enn = networks.make_ensemble_mlp_with_prior_enn([4, 1], x, num_ensemble=5)
    >>> params, state = enn.init(jax.random.key(0), x, 0)
    >>> out, _ = enn.apply(params, state, x, 1)
    >>> bool((out.preds == out.train + out.prior).all()), bool((out.prior == 0).any())
    (True, False)

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      dummy_input: array shaped like an input batch.
      num_ensemble: number of members.
      prior_scale: factor of the prior functions.
      nonzero_bias: whether the biases of the first layer start random or at zero.
      seed: seed of the prior functions.
      activation: activation between layers, of the priors as well.
      w_init: initialiser of the weights, of the priors as well.

    Returns:
      Network as in `make_einsum_ensemble_mlp_enn`, with `OutputWithPrior`.
    """
    enn = make_einsum_ensemble_mlp_enn(
        output_sizes, num_ensemble, nonzero_bias, activation, w_init
    )
    prior_key, _ = jax.random.split(jax.random.PRNGKey(seed))
    prior_params, _ = init_once(enn.init, prior_key, dummy_input, 0)
    ensemble = _transformed(
        output_sizes, num_ensemble, nonzero_bias, activation, w_init
    )

    def all_outputs(inputs: chex.Array) -> jax.Array:
        return ensemble.apply(prior_params, inputs)

    def prior_fn(inputs: chex.Array, index: base.Index) -> jax.Array:
        known = _known_rows.look_up(all_outputs, inputs)
        if known is not None:
            return members.select_member(known, index, num_ensemble, axis=-1)
        return parse_net_output(enn.apply(prior_params, {}, inputs, index)[0])

    return EnnWithAdditivePrior(enn, prior_fn, prior_scale)


def make_ensemble_prior(
    output_sizes: Sequence[int],
    num_ensemble: int,
    dummy_input: chex.Array,
    seed: int = 999,
    activation: Activation = jax.nn.relu,
    w_init: hk.initializers.Initializer | None = None,
) -> PriorFn:
    """Returns `(x, z) -> Σ_k z_k f_k(x)` for fixed random MLPs f_k.

    The MLPs do not depend on z: under `jax.vmap` over z they run once.

    >>> import numpy as np
    >>> from enn import networks
    >>> x, z = np.ones([3, 2]), np.array([1.0, -2.0])
    >>> prior_fn = networks.make_ensemble_prior([4, 1], num_ensemble=2, dummy_input=x)
    >>> np.allclose(prior_fn(x, 2 * z), 2 * prior_fn(x, z), atol=1e-5)  # Linear in z
    True

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      num_ensemble: number of MLPs and size of the index.
      dummy_input: array shaped like an input batch.
      seed: seed of the MLPs.
      activation: activation between layers.
      w_init: initialiser of the weights.

    Returns:
      Function of inputs `[batch, ...]` and index `[num_ensemble]`, with values
      `[batch, num_outputs]`.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1; by the
        result for an index of the wrong shape.
    """
    ensemble = _transformed(output_sizes, num_ensemble, True, activation, w_init)
    params = init_once(ensemble.init, next(hk.PRNGSequence(seed)), dummy_input)

    def all_outputs(inputs: chex.Array) -> jax.Array:
        return ensemble.apply(params, inputs)

    @jax.jit
    def combine(params: hk.Params, inputs: chex.Array, index: base.Index) -> jax.Array:
        return ensemble.apply(params, inputs) @ index

    def prior_fn(inputs: chex.Array, index: base.Index) -> jax.Array:
        _checks.shape("index", index, (num_ensemble,), f"[{num_ensemble}]")
        known = _known_rows.look_up(all_outputs, inputs)
        return combine(params, inputs, index) if known is None else known @ index

    return prior_fn
