"""Layers on concatenated inputs that keep their parts apart."""

from collections.abc import Iterator, Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np


class ConcatLinear(hk.Linear):
    """`hk.Linear` of the concatenation of its inputs, computed part by part.

    [x, z] W = x W_x + z W_z. Parameters, their names and their initial values are
    those of `hk.Linear` on the concatenated input. A part that does not depend on
    the epistemic index is then computed once for any number of indices.

    Activations are columns, `[size, batch]`: the batch is mostly the longest axis, and
    CPUs multiply matrices fastest along a long last one.
    """

    def __call__(self, *parts: jax.Array) -> jax.Array:  # pyrefly: ignore
        """Returns `concatenate(parts, axis=0).T @ w + b`, transposed.

        Args:
          *parts: arrays `[size, batch]`, or `[size]` for a part that is the same in
            the whole batch, such as an index.

        Returns:
          `[output_size, batch]`.
        """
        return _columns(parts, *self.weights(parts))

    def projected(self, *parts: jax.Array, projection: jax.Array) -> jax.Array:
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
                projection, jnp.moveaxis(p.reshape(*p.shape[:-1], -1, size), -1, 0), 1
            )
            for p in self.weights(parts)
        )
        # Along the longer axis again. The bias comes before the transposition: XLA
        # would turn that of a bare product into the other product.
        batch = max(part.size // len(part) for part in parts)
        if batch > len(bias):
            return _columns(parts, weights, bias).T
        return _rows(parts, weights, bias)

    def weights(self, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """Returns the weights `[input_size, output_size]` and bias `[output_size]`."""
        input_size = sum(len(part) for part in parts)
        dtype = jnp.result_type(*parts)
        w_init = self.w_init or hk.initializers.TruncatedNormal(
            1.0 / np.sqrt(input_size)
        )
        w = hk.get_parameter("w", [input_size, self.output_size], dtype, init=w_init)
        b = hk.get_parameter("b", [self.output_size], dtype, init=self.b_init)
        return w, b


class ConcatMLP(hk.Module):
    """`hk.nets.MLP` on the concatenation of its inputs, of `ConcatLinear` layers.

    Args:
      output_sizes: width of every layer.
      w_init: initialiser of the weights.
      b_init: initialiser of the biases; zeros by default.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        super().__init__(name="mlp")
        self.layers = [
            ConcatLinear(size, w_init=w_init, b_init=b_init, name=f"linear_{i}")
            for i, size in enumerate(output_sizes)
        ]

    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Returns columns; see `ConcatLinear` for them and `parts`."""
        return self.layers[-1](*self._hidden(parts))

    def projected(self, *parts: jax.Array, projection: jax.Array) -> jax.Array:
        """Returns rows: the last layer is `ConcatLinear.projected`."""
        return self.layers[-1].projected(*self._hidden(parts), projection=projection)

    def _hidden(self, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        for layer in self.layers[:-1]:
            parts = (jax.nn.relu(layer(*parts)),)
        return parts


def _columns(
    parts: tuple[jax.Array, ...], weights: jax.Array, bias: jax.Array
) -> jax.Array:
    out = bias[:, None]
    for part, rows in _with_weights(parts, weights):
        out = out + (rows.T @ part).reshape(len(bias), -1)
    return out


def _rows(
    parts: tuple[jax.Array, ...], weights: jax.Array, bias: jax.Array
) -> jax.Array:
    out = bias[None]
    for part, rows in _with_weights(parts, weights):
        out = out + jnp.atleast_2d(part.T @ rows)
    return out


def _with_weights(
    parts: tuple[jax.Array, ...], weights: jax.Array
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Returns every part beside the rows of the weights that it meets."""
    ends = np.cumsum([len(part) for part in parts])
    return zip(parts, jnp.split(weights, ends[:-1]), strict=True)
