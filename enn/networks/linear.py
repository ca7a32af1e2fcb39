"""A linear layer on concatenated inputs that keeps its parts apart."""

import chex
import haiku as hk
import jax.numpy as jnp
import numpy as np


class ConcatLinear(hk.Linear):
    """`hk.Linear` of the concatenation of its inputs, computed part by part.

    [x, z] W = x W_x + z W_z. Parameters, their names and their initial values are
    those of `hk.Linear` on the concatenated input. A part that does not depend on
    the epistemic index is then computed once for any number of indices.
    """

    def __call__(self, *parts: chex.Array) -> chex.Array:  # pyrefly: ignore
        """Returns `concatenate(parts, axis=-1) @ w + b`.

        Args:
          *parts: arrays `[batch, size]`, or `[size]` for a part that is the same in
            the whole batch, such as an index.

        Returns:
          `[batch, output_size]`.
        """
        return _sum_of_products(parts, *self.weights(parts))

    def projected(self, *parts: chex.Array, projection: chex.Array) -> chex.Array:
        """Returns the layer's output, read as a matrix, times `projection`.

        (h W) z = h (W z): the weights meet `projection` first, which takes the
        number of entries of `projection` times less work.

        Args:
          *parts: as in a call.
          projection: vector whose size divides `output_size`.

        Returns:
          `[batch, output_size // size]`.
        """
        # Laid out for many projections: each then gives a matrix of its own, as its
        # product with the parts wants it.
        size = projection.size
        weights, bias = (
            jnp.tensordot(
                projection, jnp.moveaxis(p.reshape(p.shape[0], -1, size), 2, 0), 1
            )
            for p in self.weights(parts)
        )
        return _sum_of_products(parts, weights, bias)

    def weights(self, parts: tuple[chex.Array, ...]) -> tuple[chex.Array, chex.Array]:
        """Returns the weights `[input_size, output_size]` and bias `[1, ...]`."""
        input_size = sum(part.shape[-1] for part in parts)
        dtype = jnp.result_type(*parts)
        w_init = self.w_init or hk.initializers.TruncatedNormal(
            1.0 / np.sqrt(input_size)
        )
        w = hk.get_parameter("w", [input_size, self.output_size], dtype, init=w_init)
        b = hk.get_parameter("b", [self.output_size], dtype, init=self.b_init)
        return w, b[None]


def _sum_of_products(
    parts: tuple[chex.Array, ...], weights: chex.Array, bias: chex.Array
) -> chex.Array:
    ends = np.cumsum([part.shape[-1] for part in parts])
    out = bias
    for part, rows in zip(parts, jnp.split(weights, ends[:-1]), strict=True):
        out = out + jnp.atleast_2d(part @ rows)
    return out
