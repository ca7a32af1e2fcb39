"""Dropout as an epistemic network: the index is the key of the masks."""

import functools
import itertools
from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EnnArray
from enn.networks.indexers import PrngIndexer, as_key
from enn.networks.inputs import flat_batch, init_once, layer_sizes


def cummulative_sum(x: Sequence[int]) -> list[int]:
    """Returns the running sums of `x`."""
    return list(itertools.accumulate(x))


def generate_masks(
    key: chex.PRNGKey,
    input_size: int,
    output_sizes: Sequence[int],
    dropout_rate: float,
) -> list[jax.Array]:
    """Returns dropout masks for the input and every hidden layer of an MLP.

    mᵢ = Bernoulli(1 - dropout_rate) / (1 - dropout_rate), so that E m = 1.

    Args:
      key: key of all masks.
      input_size: number of features of the input.
      output_sizes: width of every layer; the last one gets no mask.
      dropout_rate: probability of dropping a unit, in [0, 1).

    Returns:
      `len(output_sizes)` float32 vectors, of `input_size` entries and of the hidden
      widths. Entries are 0, or 1 / (1 - dropout_rate) with probability
      1 - dropout_rate.

    Raises:
      ValueError: if a size is not an integer >= 1, or the rate is outside [0, 1).
    """
    _check_rate(dropout_rate)
    input_size = _checks.positive_int("input_size", input_size)
    sizes = [input_size, *layer_sizes("output_sizes", output_sizes)[:-1]]
    keep_rate = jnp.float32(1 - dropout_rate)
    keep = jax.random.bernoulli(key, keep_rate, [sum(sizes)])
    masks = keep.astype(jnp.float32) / keep_rate
    return jnp.split(masks, cummulative_sum(sizes)[:-1])


class MLPDropoutENN(EnnArray):
    """An MLP with dropout, its masks fixed by the index and shared by the batch.

    With masks m(z), a layer's units h become m ⊙ h; see `generate_masks`.

    Gal and Ghahramani, 2016, Dropout as a Bayesian approximation,
    https://arxiv.org/abs/1506.02142. Inputs are flattened. Without dropout of the
    inputs the first layer does not depend on the index: under `jax.vmap` over
    indices it is computed once.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.MLPDropoutENN([50, 1], dropout_rate=0.5)
    >>> x, key, other = np.ones([3, 2]), jax.random.key(0), jax.random.key(1)
    >>> params, state = enn.init(key, x, key)
    >>> out, out2 = (enn.apply(params, state, x, index)[0] for index in (key, other))
    >>> bool((out == out[:1]).all()), bool((out == out2).any())  # Rows share the masks.
    (True, False)

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      dropout_rate: probability of dropping a unit, in [0, 1).
      dropout_input: whether input features are dropped too.
      seed: accepted for compatibility; nothing uses it.
      nonzero_bias: whether the biases of the first layer start random. They then
        do so whatever `b_init` says, as in the original `enn`.
      w_init: initialiser of the weights.
      b_init: initialiser of the biases.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1, or the
        rate is outside [0, 1); by `apply` for inputs that are not `[batch, ...]` or an
        index that is not a PRNG key.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        dropout_rate: float = 0.05,
        dropout_input: bool = True,
        seed: int = 0,
        nonzero_bias: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        sizes = layer_sizes("output_sizes", output_sizes)
        _check_rate(dropout_rate)

        def forward(inputs: chex.Array, index: base.Index) -> jax.Array:
            out = flat_batch(inputs)
            key = as_key(index)
            input_size = out.shape[-1]
            first_b_init = b_init
            if nonzero_bias:
                stddev = 1.0 / np.sqrt(input_size)
                first_b_init = hk.initializers.TruncatedNormal(stddev)
            input_mask, *masks = generate_masks(key, input_size, sizes, dropout_rate)
            if dropout_input:
                out = out * input_mask[None]
            out = hk.Linear(sizes[0], w_init=w_init, b_init=first_b_init)(out)
            for mask, size in zip(masks, sizes[1:], strict=True):
                out = jax.nn.relu(out * mask[None])
                out = hk.Linear(size, w_init=w_init, b_init=b_init)(out)
            return out

        transformed = hk.without_apply_rng(hk.transform_with_state(forward))
        init = functools.partial(init_once, transformed.init)
        super().__init__(transformed.apply, init, PrngIndexer())


def _check_rate(dropout_rate: float) -> None:
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be in [0, 1), got {dropout_rate}.")
