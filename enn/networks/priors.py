"""Prior functions, and networks that add one to what they learn.

Osband et al., 2018, Randomized prior functions for deep reinforcement learning,
https://arxiv.org/abs/1806.03335.

Several networks keep their prior among their parameters: no gradient reaches it, but
weight decay and other penalties on all parameters would move it. Its modules are known
by name: `is_trainable` and `trainable_mask` tell them from the others.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import (
    EnnArray,
    EnnNoState,
    Output,
    parse_net_output,
    parse_to_output_with_prior,
)
from enn.networks.inputs import check_equal_lengths, init_once, layer_sizes
from enn.networks.mlp import ConcatMLP

PriorFn = Callable[[base.AnyArray, base.Index], chex.Array]
"""A fixed function `(inputs, index) -> [batch, num_outputs]`."""


def convert_enn_to_prior_fn(
    enn: EnnArray, dummy_input: chex.Array, key: chex.PRNGKey
) -> PriorFn:
    """Returns `enn` at fixed random parameters as a prior function.

    (x, z) -> f_{θ₀}(x, z) (Osband et al., 2018, https://arxiv.org/abs/1806.03335).

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1)(x))
    >>> x, z = np.ones([3, 2]), jax.random.key(0)
    >>> prior_fn = networks.convert_enn_to_prior_fn(enn, x, jax.random.key(1))
    >>> np.allclose(prior_fn(2 * x, z), 2 * prior_fn(x, z))  # A fixed linear function
    True

    Args:
      enn: the network.
      dummy_input: array shaped like an input batch.
      key: key of the parameters.
    """
    index_key, init_key, _ = jax.random.split(key, 3)
    index = enn.indexer(index_key)
    params, state = init_once(enn.init, init_key, dummy_input, index)

    def prior_fn(inputs: chex.Array, index: base.Index) -> jax.Array:
        return parse_net_output(enn.apply(params, state, inputs, index)[0])

    return prior_fn


def make_null_prior(output_dim: int) -> Callable[[chex.Array], jax.Array]:
    """Returns `[batch, ...] -> zeros [batch, output_dim]`, in float32.

    >>> import numpy as np
    >>> from enn import networks
    >>> print(networks.make_null_prior(2)(np.ones([1, 3])))
    [[0. 0.]]
    """
    _checks.positive_int("output_dim", output_dim)

    def null_prior(inputs: chex.Array) -> jax.Array:
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

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> x, z, key = np.ones([3, 2]), np.ones([5]), jax.random.key(0)
    >>> prior_fn = networks.get_random_mlp_with_index(x, z, key, [1], prior_bias_std=0)
    >>> np.allclose(prior_fn(2 * x, 2 * z), 2 * prior_fn(x, z))  # A linear layer
    True

    Args:
      x_sample: array shaped like an input batch `[batch, num_features]`.
      z_sample: array shaped like an index, `[index_dim]`.
      rng: key of the parameters.
      prior_output_sizes: width of every layer, `[10, 10, 1]` by default.
      prior_weight_std: scale of the weights.
      prior_bias_std: standard deviation of the biases before truncation.

    Raises:
      ValueError: if a layer size is not an integer >= 1; for inputs or an index of
        the wrong shape, now or by the prior function.
    """
    if prior_output_sizes is None:
        prior_output_sizes = [10, 10, 1]
    sizes = layer_sizes("prior_output_sizes", prior_output_sizes)
    inits = {
        "w_init": hk.initializers.VarianceScaling(scale=prior_weight_std),
        "b_init": hk.initializers.TruncatedNormal(stddev=prior_bias_std),
    }

    def forward(inputs: chex.Array, index: base.Index) -> jax.Array:
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        _checks.shape("index", index, (None,), "[index_dim]")
        return ConcatMLP(sizes, **inits)(inputs.T, index).T

    transformed = hk.without_apply_rng(hk.transform(forward))
    params = init_once(transformed.init, rng, x_sample, z_sample)

    def prior_fn(inputs: chex.Array, index: base.Index) -> jax.Array:
        return transformed.apply(params, inputs, index)

    return prior_fn


WARN = (
    "Prior parameters sit among the trainable ones: they get no gradient through the "
    "output, but weight decay and the like still move them."
)


class EnnWithAdditivePrior(EnnArray):
    """`enn` with `prior_scale * prior_fn(inputs, index)` added to its prior.

    Osband et al., 2018, https://arxiv.org/abs/1806.03335.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> net = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1, with_bias=False)(x))
    >>> enn = networks.EnnWithAdditivePrior(net, lambda x, z: x**2, prior_scale=0.5)
    >>> params = {"linear": {"w": np.array([[10.0]])}}
    >>> out, _ = enn.apply(params, {}, np.array([[2.0]]), None)
    >>> print(out.train, out.prior, out.preds)
    [[20.]] [[2.]] [[22.]]

    Args:
      enn: the network that trains.
      prior_fn: fixed function of inputs and index, `[batch, num_outputs]`.
      prior_scale: factor of the prior function.
    """

    def __init__(self, enn: EnnArray, prior_fn: PriorFn, prior_scale: float = 1.0):
        def apply(
            params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
        ) -> tuple[Output, hk.State]:
            # First, since it knows what is wrong with inputs of another size.
            prior = prior_scale * prior_fn(inputs, index)
            net_out, state = enn.apply(params, state, inputs, index)
            out = parse_to_output_with_prior(net_out)
            return out._replace(prior=out.prior + prior), state

        super().__init__(apply, enn.init, enn.indexer)


class EnnNoStateWithAdditivePrior(EnnNoState):
    """As `EnnWithAdditivePrior`, for a network without network state.

    >>> import numpy as np
    >>> from enn import networks
    >>> indexer = networks.PrngIndexer()
    >>> net = networks.EnnNoState(lambda params, x, z: params * x, None, indexer)
    >>> enn = networks.EnnNoStateWithAdditivePrior(
    ...     net, lambda x, z: x**2, prior_scale=0.5
    ... )
    >>> out = enn.apply(10.0, np.array([[2.0]]), None)
    >>> print(out.train, out.prior, out.preds)
    [[20.]] [[2.]] [[22.]]
    """

    def __init__(self, enn: EnnNoState, prior_fn: PriorFn, prior_scale: float = 1.0):
        def apply_with_state(
            params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
        ) -> tuple[Output, hk.State]:
            return enn.apply(params, inputs, index), state

        def init_with_state(
            rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
        ) -> tuple[hk.Params, hk.State]:
            return enn.init(rng_key, inputs, index), {}

        with_state = EnnArray(apply_with_state, init_with_state, enn.indexer)
        with_prior = EnnWithAdditivePrior(with_state, prior_fn, prior_scale)

        def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
            return with_prior.apply(params, {}, inputs, index)[0]

        super().__init__(apply, enn.init, enn.indexer)


@dataclasses.dataclass
class NetworkWithAdditivePrior(hk.Module):
    """A Haiku module with a second one as its prior: `net + prior_scale · prior_net`.

    The prior's parameters are part of the trainable tree and are initialised first.
    No gradient reaches them, but penalties on all parameters, such as weight decay,
    still move them; a warning, logged once, says so.

    Osband et al., 2018, https://arxiv.org/abs/1806.03335.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> def forward(x):
    ...     net, prior = hk.Linear(1, name="net"), hk.Linear(1, name="prior")
    ...     return networks.NetworkWithAdditivePrior(net, prior, prior_scale=0.5)(x)
    >>> one = {"w": np.array([[1.0]]), "b": np.zeros(1)}
    >>> params = {"net": one, "prior": one}
    >>> x = np.array([[2.0]])
    >>> print(hk.transform(forward).apply(params, None, x))  # 2 + 0.5 · 2
    [[3.]]

    Attributes:
      net: the module that trains.
      prior_net: module of the same output; it gets the same arguments.
      prior_scale: factor of the prior's output.
    """

    net: Callable[..., chex.Array]
    prior_net: Callable[..., chex.Array]
    prior_scale: float = 1.0

    def __call__(self, *args: Any, **kwargs: Any) -> chex.Array:
        _warn_once()
        prior = jax.lax.stop_gradient(self.prior_net(*args, **kwargs))
        return self.net(*args, **kwargs) + prior * self.prior_scale


@functools.cache
def _warn_once() -> None:
    logging.getLogger(__name__).warning(WARN)


GpGamma = float | tuple[float, float]
"""Kernel parameter: one number, or the bounds of a uniform distribution."""


def make_random_feat_gp(
    input_dim: int,
    output_dim: int,
    num_feat: int,
    key: chex.PRNGKey,
    gamma: GpGamma = 1.0,
    scale: float = 1.0,
) -> Callable[[chex.Array], jax.Array]:
    """Returns one sample from an approximate GP with squared exponential kernel.

    f_o(x) = scale · Σ_j α_j cos(γ_j x·W_jo + b_jo), with normal W, α_j ~ N(0, 1/J)
    and b ~ U[0, 2π] (Rahimi and Recht, 2007, Random features for large-scale kernel
    machines). Numbers follow the original `enn`, which leaves out the factor √2 of
    the feature map: the variance is scale² / 2.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> gp = networks.make_random_feat_gp(1, 1000, num_feat=100, key=jax.random.key(0))
    >>> values = gp(np.array([[0.0], [1.0]]))  # Of 1000 functions at two inputs
    >>> round(float(values.var()), 1)  # ½
    0.5
    >>> round(float((values[0] * values[1]).mean()), 1)  # ½ exp(-½)
    0.3

    Args:
      input_dim: number of features of the flattened input.
      output_dim: number of outputs.
      num_feat: number J of random features.
      key: key of all draws.
      gamma: inverse length scale γ; a pair draws γ_j uniformly between its entries.
      scale: factor of the output.

    Returns:
      Function `[batch, ...] -> [batch, output_dim]`.

    Raises:
      ValueError: if a size is not an integer >= 1, or `gamma` neither a number nor a
        pair; by the function for inputs without `input_dim` features.
    """
    input_dim = _checks.positive_int("input_dim", input_dim)
    output_dim = _checks.positive_int("output_dim", output_dim)
    num_feat = _checks.positive_int("num_feat", num_feat)
    w_key, b_key, alpha_key, gamma_key = jax.random.split(key, 4)
    weights = jax.random.normal(w_key, [num_feat, input_dim, output_dim])
    bias = 2 * jnp.pi * jax.random.uniform(b_key, [1, num_feat, output_dim])
    alpha = jax.random.normal(alpha_key, [num_feat]) / jnp.sqrt(num_feat)
    gammas = _draw_gamma(gamma, gamma_key, num_feat)

    def gp_instance(inputs: chex.Array) -> jax.Array:
        flat = jnp.reshape(inputs, (*jnp.shape(inputs)[:1], -1))
        _checks.shape("inputs", flat, (None, input_dim), f"[batch, {input_dim}]")
        projected = jnp.einsum("bi,jio->bjo", flat, weights)
        features = jnp.cos(gammas * projected + bias)
        return scale * jnp.einsum("j,bjo->bo", alpha, features)

    return gp_instance


def _draw_gamma(gamma: GpGamma, key: chex.PRNGKey, num_feat: int) -> jax.Array:
    gammas = jnp.asarray(gamma, float)
    if gammas.ndim == 0:
        return jnp.reshape(gammas, (1, 1, 1))
    if gammas.shape != (2,):
        raise ValueError(f"gamma must be a number or a pair of numbers, got {gamma!r}.")
    low, high = gammas
    return low + (high - low) * jax.random.uniform(key, [1, num_feat, 1])


KernelShape = int | Sequence[int]


def conv_prior_net(
    num_classes: int,
    output_channels: Sequence[int],
    kernel_shapes: Sequence[KernelShape],
    strides: Sequence[int],
) -> Callable[[chex.Array], jax.Array]:
    """Returns a network of convolutions with relu, then a linear layer.

    For use in a Haiku transform: maps images `[batch, height, width, channels]` to
    `[batch, num_classes]`. Its modules are `prior_conv`, `prior_conv_1`, ... and
    `prior`.

    Args:
      num_classes: number of outputs.
      output_channels: channels of each convolution.
      kernel_shapes: kernel size of each convolution, one number if it is square.
      strides: stride of each convolution.

    Raises:
      ValueError: if the lists have different lengths, or a size is not an integer >= 1.
    """
    check_equal_lengths(
        output_channels=output_channels, kernel_shapes=kernel_shapes, strides=strides
    )
    channels = layer_sizes("output_channels", output_channels)
    layer_sizes("strides", strides)
    for kernel_shape in kernel_shapes:
        layer_sizes("kernel_shapes", np.atleast_1d(kernel_shape).tolist())
    num_outputs = _checks.positive_int("num_classes", num_classes)

    def forward(inputs: chex.Array) -> jax.Array:
        out = inputs
        for size, kernel_shape, stride in zip(
            channels, kernel_shapes, strides, strict=True
        ):
            conv = hk.Conv2D(size, kernel_shape, stride=stride, name="prior_conv")
            out = jax.nn.relu(conv(out))
        return hk.nets.MLP([num_outputs], name="prior")(hk.Flatten()(out))

    return forward


_PRIOR = re.compile(r"((.*_)?prior_epinet|prior|prior_conv)(_\d+)?")


def is_trainable(module_name: str, name: str, value: Any) -> bool:
    """Returns whether a parameter trains, judged by the path of its module.

    It does not if a component of the path (between slashes) is `prior_epinet` or ends
    in `_prior_epinet` (epinets), or is `prior` or `prior_conv` (image priors), each
    with or without the number that Haiku appends to repeated names. A prior of
    another name, as `NetworkWithAdditivePrior` may have, counts as trainable: name
    its module `prior`. Usable as the predicate of
    `enn.losses.add_l2_weight_decay`.

    >>> from enn import networks
    >>> networks.is_trainable("train_epinet/~/mlp/~/linear_0", "w", None)
    True
    >>> networks.is_trainable("prior_epinet/~/mlp/~/linear_0", "w", None)
    False

    Args:
      module_name: path of the module, such as `train_epinet/~/mlp/~/linear_0`.
      name: name of the parameter, not looked at.
      value: value of the parameter, not looked at.
    """
    return not any(_PRIOR.fullmatch(part) for part in module_name.split("/"))


def trainable_mask(params: hk.Params) -> dict[str, dict[str, bool]]:
    """Returns the tree of `params` with `is_trainable` in place of each parameter.

    For `optax.masked`, and for the `mask` of `optax.adamw` and
    `optax.add_decayed_weights`.

    >>> import optax
    >>> from enn import networks
    >>> params = {"train_epinet/linear": {"w": 1.0}, "prior_epinet/linear": {"w": 1.0}}
    >>> networks.trainable_mask(params)
    {'train_epinet/linear': {'w': True}, 'prior_epinet/linear': {'w': False}}
    >>> optimizer = optax.adamw(1e-3, weight_decay=0.1, mask=networks.trainable_mask)
    """
    return {
        module_name: {
            name: is_trainable(module_name, name, value)
            for name, value in module.items()
        }
        for module_name, module in params.items()
    }
