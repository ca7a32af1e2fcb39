"""Networks with Gaussian noise of learned scale on the biases of linear layers."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import haiku as hk
import jax

from enn.networks.base import EnnArray, Output
from enn.networks.inputs import layer_sizes
from enn.networks.utils import wrap_stochastic_fn_as_enn


def make_enn_creator(init_scale: float = 1.0) -> Callable[..., Any]:
    """Returns a parameter creator that gives biases of `hk.Linear` a scale.

    Such a bias becomes a pair: the bias with its own initialiser, and the scale of
    its noise, which starts at `init_scale`. Other parameters stay as they are.
    """
    scale_init = hk.initializers.Constant(init_scale)

    def enn_creator(
        next_creator: Any, shape: Any, dtype: Any, init: Any, context: Any
    ) -> Any:
        bias = next_creator(shape, dtype, init)
        if not _is_linear_bias(context):
            return bias
        return bias, next_creator(shape, dtype, scale_init)

    return enn_creator


def enn_getter(next_getter: Any, value: Any, context: hk.GetterContext) -> Any:
    """Returns a parameter's value, with noise for the biases of `hk.Linear`."""
    if not _is_linear_bias(context):
        return next_getter(value)
    bias, scale = next_getter(value)
    noise = jax.random.normal(hk.next_rng_key(), bias.shape, bias.dtype)
    return bias + scale * noise


def _is_linear_bias(context: hk.GetterContext) -> bool:
    return isinstance(context.module, hk.Linear) and context.full_name.endswith("/b")


class GaussianNoiseEnn(EnnArray):
    """A Haiku module with noise on the bias of every `hk.Linear`: b + s · ε.

    ε ~ N(0, I) is drawn from the index, a PRNG key, afresh for each layer, and shared
    by the batch; the scale s is learned. A bias `b` in the parameters is thus a pair
    (b, s). The part of the first layer before the noise does not depend on the
    index: under `jax.vmap` over indices it is computed once. A module with
    randomness of its own draws from the same sequence of keys as the noise.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> enn = networks.GaussianNoiseEnn(lambda: hk.Linear(1))
    >>> bias = (np.array([3.0]), np.array([0.5]))  # N(3, 0.5²)
    >>> params = {"linear": {"w": np.zeros([2, 1]), "b": bias}}
    >>> samples = networks.make_batch_fwd(enn, 1000)(params, {}, np.ones([1, 2]))
    >>> round(float(samples.mean()), 1), round(float(samples.std()), 1)
    (3.0, 0.5)

    Args:
      module_ctor: makes the module; called inside a Haiku transform.
      init_scale: initial scale of the noise.
    """

    def __init__(
        self, module_ctor: Callable[[], Callable[..., Any]], init_scale: float = 1.0
    ):
        enn_creator = make_enn_creator(init_scale)

        def forward(inputs: chex.Array) -> Output:
            with hk.custom_creator(enn_creator), hk.custom_getter(enn_getter):
                return module_ctor()(inputs)

        enn = wrap_stochastic_fn_as_enn(forward)
        super().__init__(enn.apply, enn.init, enn.indexer)


class GaussianNoiseMLP(GaussianNoiseEnn):
    """An MLP with noise on its biases; see `GaussianNoiseEnn`.

    Biases are b + s · ε(z).

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.GaussianNoiseMLP([4, 1], init_scale=0.5)
    >>> x, key = np.ones([3, 2]), jax.random.key(0)
    >>> params, _ = enn.init(key, x, key)
    >>> bias, scale = params["mlp/~/linear_1"]["b"]
    >>> print(bias, scale)
    [0.] [0.5]

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      init_scale: initial scale of the noise.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1.
    """

    def __init__(self, output_sizes: Sequence[int], init_scale: float = 1.0):
        sizes = layer_sizes("output_sizes", output_sizes)
        super().__init__(lambda: hk.nets.MLP(sizes), init_scale)
