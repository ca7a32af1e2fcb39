"""Hypermodels: networks whose parameters are a function of the epistemic index.

Dwaracherla et al., 2020, Hypermodels for exploration,
https://arxiv.org/abs/2006.07464.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EnnArray, EpistemicModule, Output, OutputWithPrior
from enn.networks.inputs import flat_inputs, init_once, layer_sizes
from enn.networks.mlp import transformed_mlp
from enn.networks.priors import EnnWithAdditivePrior, convert_enn_to_prior_fn
from enn.networks.utils import epistemic_network_from_module

_Generator = Callable[[jax.Array], tuple[chex.Array, list[jax.Array]]]
"""Index -> what generated the parameters, and the parameters as flat leaves."""


def tempered_mlp(
    output_sizes: Sequence[int], temperature: float = 1.0
) -> hk.Transformed:
    """Returns an MLP on flattened inputs, its outputs divided by `temperature`."""
    mlp = transformed_mlp(output_sizes)

    def apply(params: hk.Params, inputs: chex.Array) -> jax.Array:
        return mlp.apply(params, inputs) / temperature

    return hk.Transformed(mlp.init, apply)


def _identity(index: jax.Array) -> jax.Array:
    return index


def hypermodel_module(
    transformed_base: hk.Transformed,
    dummy_input: chex.Array,
    hyper_torso: Callable[[base.AnyArray], chex.Array] = _identity,
    diagonal_linear_hyper: bool = False,
    return_generated_params: bool = False,
    scale: bool = True,
    seed: int = 0,
) -> type[EpistemicModule]:
    """Returns a module class whose instances generate the base network's parameters.

    Instances take `(inputs, index)` and apply the base network at parameters θ(z)
    (Dwaracherla et al., 2020, https://arxiv.org/abs/2006.07464). Linear: every leaf of
    θ(z) is a linear layer on torso(z). Diagonal: θ(z) = softplus(w) ⊙ z + b, with an
    index of one entry for every base parameter.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)))
    >>> x, z = np.ones([3, 2]), np.zeros(3)  # As many entries as parameters.
    >>> diagonal = {"diagonal_linear_hyper": True, "scale": False}
    >>> module = networks.hypermodel_module(net, x, **diagonal)
    >>> gaussian = networks.GaussianIndexer(3)
    >>> enn = networks.epistemic_network_from_module(module, gaussian)
    >>> out, _ = enn.apply(*enn.init(jax.random.key(0), x, z), x, z)
    >>> np.allclose(out, net.apply(net.init(jax.random.PRNGKey(0), x), x))  # θ(0) = b
    True

    Args:
      transformed_base: the base network, a pair without apply-rng.
      dummy_input: array shaped like an input batch.
      hyper_torso: function or constructor of modules that the linear layers share;
        called inside a Haiku transform. The diagonal mode does not use it.
      diagonal_linear_hyper: whether to use the diagonal mode.
      return_generated_params: whether to return an `OutputWithPrior` with the
        parameters in `extra`: as generated (`hyper_net_out`), as used
        (`base_net_params`), and what generated them (`hyper_index`): torso(z), or
        θ(z) as a vector in the diagonal mode.
      scale: whether generated leaves named `w` are divided by √shape[0]. That is the
        fan-in of a dense layer; for a convolution, numbers follow the original `enn`.
      seed: seed of the base parameters that b starts at in the diagonal mode.

    Raises:
      ValueError: by a call with an index that is not a vector, or in the diagonal mode
        not of the size of the base parameters.
    """
    base_key = jax.random.PRNGKey(seed)
    shapes, treedef = jax.tree.flatten(
        jax.eval_shape(transformed_base.init, base_key, dummy_input)
    )
    sizes = [int(np.prod(leaf.shape)) for leaf in shapes]
    # The modes differ only in how the index gives flat leaves, and in what those came
    # from; shaping, scaling and running the base network are the same.
    if diagonal_linear_hyper:
        base_params = init_once(transformed_base.init, base_key, dummy_input)
        generate = _diagonal_generator(jax.tree.leaves(base_params))
    else:
        generate = _linear_generator(sizes, hyper_torso)

    class HyperNetwork(EpistemicModule):
        """A base network at parameters that an index generates."""

        def __init__(self) -> None:
            super().__init__(name="hyper_fn")

        def __call__(self, inputs: chex.Array, index: base.Index) -> Output:
            hyper_index, flat_leaves = generate(index)
            leaves = [
                jnp.reshape(flat, leaf.shape)
                for flat, leaf in zip(flat_leaves, shapes, strict=True)
            ]
            generated = jax.tree.unflatten(treedef, leaves)
            base_params = _scale_weights(generated) if scale else generated
            out = transformed_base.apply(base_params, inputs)
            if not return_generated_params:
                return out
            extra: dict[str, Any] = {
                "hyper_net_out": generated,
                "base_net_params": base_params,
                "hyper_index": hyper_index,
            }
            return OutputWithPrior(out, jnp.zeros_like(out), extra)

    return HyperNetwork


def _linear_generator(
    sizes: Sequence[int], torso: Callable[[base.AnyArray], chex.Array]
) -> _Generator:
    def generate(index: jax.Array) -> tuple[chex.Array, list[jax.Array]]:
        _checks.shape("index", index, (None,), "[index_dim]")
        hidden = torso(index)
        init = hk.initializers.VarianceScaling(1.0, "fan_avg", "truncated_normal")
        layers = [hk.Linear(size, w_init=init, b_init=init) for size in sizes]
        return hidden, [layer(hidden) for layer in layers]

    return generate


def _diagonal_generator(means: Sequence[jax.Array]) -> _Generator:
    b_init_value = jnp.concatenate([jnp.ravel(leaf) for leaf in means])
    ends = np.cumsum([leaf.size for leaf in means])

    def generate(index: jax.Array) -> tuple[chex.Array, list[jax.Array]]:
        _checks.shape("index", index, (len(b_init_value),), f"[{len(b_init_value)}]")
        theta = DiagonalLinear(b_init_value=b_init_value)(index)
        return theta, jnp.split(theta, ends[:-1])

    return generate


def _scale_weights(params: hk.Params) -> hk.Params:
    def scale(path: tuple[Any, ...], leaf: chex.Array) -> chex.Array:
        return leaf / np.sqrt(leaf.shape[0]).item() if path[-1].key == "w" else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


class HyperLinear(EpistemicModule):
    """A linear layer whose weights and biases are linear in the index.

    W_oh(z) = c_w · w_oh·z and b_o(z) = (c_b · b_o + b_0)·z, where the vectors w_oh
    and b_o have unit norm, c_w² = weight_scaling / num_features (without the
    division in a first layer) and c_b² = bias_scaling. Numbers follow the original
    `enn`: the fixed bias b_0 adds b_0 · Σ_i z_i to the output.

    Args:
      output_size: width of the layer.
      index_dim_per_layer: size of the index.
      weight_scaling: scale of the variance of the weights.
      bias_scaling: scale of the variance of the biases.
      fixed_bias_val: the number b_0.
      first_layer: whether this is the first layer of a network.
      name: name of the module.

    Raises:
      ValueError: if a size is not an integer >= 1; by a call with an index that is not
        `[index_dim_per_layer]` or inputs that are not `[batch, num_features]`.
    """

    def __init__(
        self,
        output_size: int,
        index_dim_per_layer: int,
        weight_scaling: float = 1.0,
        bias_scaling: float = 1.0,
        fixed_bias_val: float = 0.0,
        first_layer: bool = False,
        name: str = "hyper_linear",
    ):
        super().__init__(name=name)
        self.output_size = _checks.positive_int("output_size", output_size)
        self.index_dim_per_layer = _checks.positive_int(
            "index_dim_per_layer", index_dim_per_layer
        )
        self.weight_scaling = weight_scaling
        self.bias_scaling = bias_scaling
        self.fixed_bias_val = fixed_bias_val
        self.first_layer = first_layer

    def __call__(self, inputs: chex.Array, index: base.Index) -> jax.Array:
        """Returns `[batch, output_size]`."""
        inputs = jnp.asarray(inputs)
        dim = self.index_dim_per_layer
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        _checks.shape("index", index, (dim,), f"[{dim}]")
        num_features = inputs.shape[1]
        normal = hk.initializers.RandomNormal()
        w_shape = [self.output_size, num_features, dim]
        b_shape = [self.output_size, dim]
        w = _unit_norm(hk.get_parameter("w", w_shape, inputs.dtype, init=normal))
        b = _unit_norm(hk.get_parameter("b", b_shape, inputs.dtype, init=normal))
        w_scale = np.sqrt(
            self.weight_scaling / (1 if self.first_layer else num_features)
        )
        b = b * float(np.sqrt(self.bias_scaling)) + self.fixed_bias_val
        return inputs @ (float(w_scale) * w @ index).T + (b @ index)[None]


def _unit_norm(vectors: chex.Array) -> jax.Array:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


class PriorMLPIndependentLayers(EpistemicModule):
    """An MLP of `HyperLinear` layers, each with a part of the index of its own.

    Layers are independent of each other over the index, unless the index has fewer
    entries than there are layers: then every layer sees all of it. Inputs are
    flattened. After Dwaracherla et al., 2020, https://arxiv.org/abs/2006.07464.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def forward(x, z):
    ...     return networks.PriorMLPIndependentLayers([1], index_dim=4)(x, z)
    >>> net, x, z = hk.transform(forward), np.ones([3, 2]), np.arange(1.0, 5.0)
    >>> params = net.init(jax.random.key(0), x, z)
    >>> out, opposite = (net.apply(params, None, x, index) for index in (z, -z))
    >>> np.allclose(out, -opposite)  # A layer is linear in its part of the index.
    True

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      index_dim: size of the index; earlier layers get the larger parts.
      weight_scaling: see `HyperLinear`.
      bias_scaling: see `HyperLinear`.
      fixed_bias_val: see `HyperLinear`.
      name: name of the module.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1; by a call
        with an index that is not `[index_dim]` or inputs that are not `[batch, ...]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        index_dim: int,
        weight_scaling: float = 1.0,
        bias_scaling: float = 1.0,
        fixed_bias_val: float = 0.0,
        name: str = "prior_independent_layers",
    ):
        super().__init__(name=name)
        self.output_sizes = layer_sizes("output_sizes", output_sizes)
        self.index_dim = _checks.positive_int("index_dim", index_dim)
        num_layers = len(self.output_sizes)
        positions = np.arange(index_dim)
        self.index_parts = (
            np.array_split(positions, num_layers)
            if index_dim >= num_layers
            else [positions] * num_layers
        )
        self.layers = [
            HyperLinear(
                size,
                len(part),
                weight_scaling,
                bias_scaling,
                fixed_bias_val,
                first_layer=i == 0,
            )
            for i, (size, part) in enumerate(
                zip(self.output_sizes, self.index_parts, strict=True)
            )
        ]

    def __call__(self, inputs: chex.Array, index: base.Index) -> jax.Array:
        """Returns `[batch, num_outputs]` for `inputs` `[batch, ...]`."""
        _checks.shape("index", index, (self.index_dim,), f"[{self.index_dim}]")
        index = jnp.asarray(index)
        first, *others = (
            (layer, index[part])
            for layer, part in zip(self.layers, self.index_parts, strict=True)
        )
        layer, part = first
        out = layer(flat_inputs(inputs), part)
        for layer, part in others:
            out = layer(jax.nn.relu(out), part)
        return out


class DiagonalLinear(hk.Module):
    """Scale and shift of every entry: x · softplus(w) + b.

    Args:
      with_bias: whether there is a shift b.
      w_init: initialiser of w; softplus(w) starts at 0.01 by default.
      b_init_value: initial value of b; normal of standard deviation 0.1 by default.
      name: name of the module.

    Raises:
      ValueError: by a call with a scalar.
    """

    def __init__(
        self,
        with_bias: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        b_init_value: jax.Array | np.ndarray | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.input_size: int | None = None
        self.with_bias = with_bias
        self.w_init = w_init
        self.b_init_value = b_init_value

    def __call__(self, inputs: chex.Array) -> jax.Array:
        """Returns an array of the shape of `inputs`, `[..., num_features]`."""
        if not jnp.ndim(inputs):
            raise ValueError("inputs must have shape [..., num_features], got [].")
        inputs = jnp.asarray(inputs)
        self.input_size = inputs.shape[-1]
        shape = [self.input_size]
        w_init = self.w_init or hk.initializers.Constant(np.log(np.expm1(0.01)))
        w = hk.get_parameter("w", shape, inputs.dtype, init=w_init)
        # softplus is stable where log(1 + exp(w)) overflows or underflows.
        out = inputs * jnp.broadcast_to(jax.nn.softplus(w), inputs.shape)
        if not self.with_bias:
            return out
        b_init = hk.initializers.RandomNormal(0.1)
        if self.b_init_value is not None:
            b_init = hk.initializers.Constant(self.b_init_value)
        b = hk.get_parameter("b", shape, inputs.dtype, init=b_init)
        return out + jnp.broadcast_to(b, inputs.shape)


class MLPHypermodel(EnnArray):
    """A base network whose parameters an MLP generates from the index.

    f(x, z) = f_{θ(z)}(x) (Dwaracherla et al., 2020, https://arxiv.org/abs/2006.07464).

    Parameters are generated once for an index, whatever the size of the batch.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)))
    >>> x, indexer = np.ones([3, 2]), networks.GaussianIndexer(4)
    >>> enn = networks.MLPHypermodel(net, x, indexer, return_generated_params=True)
    >>> key, z = jax.random.key(0), indexer(jax.random.key(1))
    >>> out, _ = enn.apply(*enn.init(key, x, z), x, z)
    >>> np.allclose(out.preds, net.apply(out.extra["base_net_params"], x))  # θ(z)
    True

    Args:
      transformed_base: the base network, a pair without apply-rng.
      dummy_input: array shaped like an input batch.
      indexer: draws an index `[index_dim]`.
      hidden_sizes: widths of the hidden layers; without any, the parameters are
        linear in the index.
      return_generated_params: see `hypermodel_module`.
      scale: see `hypermodel_module`.
      w_init: initialiser of the weights of the hidden layers.
      b_init: initialiser of the biases of the hidden layers.

    Raises:
      ValueError: if a size is not an integer >= 1; by `init` and `apply` for an index
        that is not a vector.
    """

    def __init__(
        self,
        transformed_base: hk.Transformed,
        dummy_input: chex.Array,
        indexer: base.EpistemicIndexer,
        hidden_sizes: Sequence[int] | None = None,
        return_generated_params: bool = False,
        scale: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        sizes = layer_sizes("hidden_sizes", hidden_sizes) if hidden_sizes else []

        def hyper_torso(index: jax.Array) -> jax.Array:
            return hk.nets.MLP(sizes, w_init, b_init)(index)

        module = hypermodel_module(
            transformed_base,
            dummy_input,
            hyper_torso,
            return_generated_params=return_generated_params,
            scale=scale,
        )
        enn = epistemic_network_from_module(module, indexer)
        super().__init__(enn.apply, enn.init, enn.indexer)


class MLPHypermodelWithHypermodelPrior(EnnWithAdditivePrior):
    """An `MLPHypermodel` of an MLP, with a fixed one of the same kind as its prior.

    Inputs are flattened. f_{θ(z)}(x) + prior_scale · p_{φ(z)}(x), of which θ trains.

    Args:
      base_output_sizes: width of every layer of the base MLP.
      prior_scale: factor of the prior function.
      dummy_input: array shaped like an input batch.
      indexer: draws an index `[index_dim]`.
      prior_base_output_sizes: width of every layer of the prior's base MLP.
      hyper_hidden_sizes: widths of the hidden layers of the hypermodel.
      prior_hyper_hidden_sizes: widths of the hidden layers of the prior's hypermodel.
      w_init: initialiser of the weights of both hypermodels' hidden layers.
      b_init: initialiser of the biases of both hypermodels' hidden layers.
      return_generated_params: see `hypermodel_module`.
      seed: seed of the prior function.
      scale: see `hypermodel_module`; holds for both.

    Raises:
      ValueError: see `MLPHypermodel`.
    """

    def __init__(
        self,
        base_output_sizes: Sequence[int],
        prior_scale: float,
        dummy_input: chex.Array,
        indexer: base.EpistemicIndexer,
        prior_base_output_sizes: Sequence[int],
        hyper_hidden_sizes: Sequence[int] | None = None,
        prior_hyper_hidden_sizes: Sequence[int] | None = None,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
        return_generated_params: bool = False,
        seed: int = 0,
        scale: bool = True,
    ):
        enn = MLPHypermodel(
            tempered_mlp(base_output_sizes),
            dummy_input,
            indexer,
            hyper_hidden_sizes,
            return_generated_params,
            scale,
            w_init,
            b_init,
        )
        prior_enn = MLPHypermodel(
            tempered_mlp(prior_base_output_sizes),
            dummy_input,
            indexer,
            prior_hyper_hidden_sizes,
            scale=scale,
            w_init=w_init,
            b_init=b_init,
        )
        prior_fn = convert_enn_to_prior_fn(
            prior_enn, dummy_input, jax.random.PRNGKey(seed)
        )
        super().__init__(enn, prior_fn, prior_scale)


class MLPHypermodelPriorIndependentLayers(EnnWithAdditivePrior):
    """An `MLPHypermodel` of an MLP, with a fixed `PriorMLPIndependentLayers` as prior.

    Inputs are flattened. Numbers follow the original `enn`: the prior's parameters and
    the index that shows its size are drawn with one key. The output is f_{θ(z)}(x) +
    prior_scale · p(x, z).

    Args:
      base_output_sizes: width of every layer of the base MLP.
      prior_scale: factor of the prior function.
      dummy_input: array shaped like an input batch.
      indexer: draws an index `[index_dim]`.
      prior_base_output_sizes: width of every layer of the prior.
      hyper_hidden_sizes: widths of the hidden layers of the hypermodel.
      w_init: initialiser of the weights of the hypermodel's hidden layers.
      b_init: initialiser of the biases of the hypermodel's hidden layers.
      return_generated_params: see `hypermodel_module`.
      prior_weight_scaling: see `HyperLinear`.
      prior_bias_scaling: see `HyperLinear`.
      prior_fixed_bias_val: see `HyperLinear`.
      seed: seed of the prior function.
      scale: see `hypermodel_module`.
      problem_temperature: divides network and prior, if given.

    Raises:
      ValueError: if a size is not an integer >= 1, or `indexer` does not draw vectors.
    """

    def __init__(
        self,
        base_output_sizes: Sequence[int],
        prior_scale: float,
        dummy_input: chex.Array,
        indexer: base.EpistemicIndexer,
        prior_base_output_sizes: Sequence[int],
        hyper_hidden_sizes: Sequence[int] | None = None,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
        return_generated_params: bool = False,
        prior_weight_scaling: float = 1.0,
        prior_bias_scaling: float = 1.0,
        prior_fixed_bias_val: float = 0.0,
        seed: int = 0,
        scale: bool = True,
        problem_temperature: float | None = None,
    ):
        temperature = problem_temperature or 1.0
        enn = MLPHypermodel(
            tempered_mlp(base_output_sizes, temperature),
            dummy_input,
            indexer,
            hyper_hidden_sizes,
            return_generated_params,
            scale,
            w_init,
            b_init,
        )
        prior_key = next(hk.PRNGSequence(seed))
        index = indexer(prior_key)
        _checks.shape("the index that indexer draws", index, (None,), "[index_dim]")
        index_dim = len(index)

        def prior(inputs: chex.Array, index: base.Index) -> jax.Array:
            net = PriorMLPIndependentLayers(
                prior_base_output_sizes,
                index_dim,
                prior_weight_scaling,
                prior_bias_scaling,
                prior_fixed_bias_val,
            )
            return net(inputs, index) / temperature

        transformed_prior = hk.without_apply_rng(hk.transform(prior))
        prior_params = init_once(transformed_prior.init, prior_key, dummy_input, index)
        prior_fn = functools.partial(transformed_prior.apply, prior_params)
        super().__init__(enn, prior_fn, prior_scale)
