"""MLPs: on inputs alone, on inputs and an index, and with their layers exposed."""

from collections.abc import Iterator, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, base
from enn.networks.base import EpistemicModule, OutputWithPrior
from enn.networks.inputs import flat_inputs, layer_sizes


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

        With the parts concatenated to `h`, the weights as `W` and the bias as `b`:

            einsum("bh,hoz,z->bo", h, W, z) + einsum("oz,z->o", b, z)

        (h W) z = h (W z): the weights meet `z` first, which takes `z.size` times less
        work than the layer's own output.

        Args:
          *parts: as in a call.
          projection: vector whose size divides `output_size`.

        Returns:
          `[batch, output_size // size]`.
        """
        # The weights are laid out so that over many `z` each W z comes out as the
        # matrix that its product with the parts wants. At 1000 indices and 1000 rows
        # an MLP epinet takes 47 ms, and 64 ms by the einsum above (2 CPU cores).
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


def transformed_mlp(
    output_sizes: Sequence[int],
    w_init: hk.initializers.Initializer | None = None,
    b_init: hk.initializers.Initializer | None = None,
) -> hk.Transformed:
    """Returns the pure functions of an MLP on flattened inputs."""
    sizes = layer_sizes("output_sizes", output_sizes)

    def forward(inputs: chex.Array) -> jax.Array:
        flat = flat_inputs(inputs)
        if jax.default_backend() != "cpu":
            return hk.nets.MLP(sizes, w_init, b_init)(flat)
        # In columns, members under `jax.vmap` are products [K, out, in] [K, in, batch],
        # without a transposition between layers: a training step of 30 of them on
        # digits takes a tenth less time (`benchmarks/train.py`).
        out = ConcatMLP(sizes, w_init, b_init)(flat.T).T
        return out.reshape(*flat.shape[:-1], sizes[-1])

    return hk.without_apply_rng(hk.transform(forward))


class ExposedMLP(hk.Module):
    """An MLP that hands out its input and the layers asked for as features.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> net = hk.transform(lambda x: networks.ExposedMLP([4, 1])(x))
    >>> x = np.ones([3, 2])
    >>> out = net.apply(net.init(jax.random.key(0), x), None, x)
    >>> features = out.extra["exposed_features"]  # Two inputs, four hidden, one output
    >>> bool((features[:, :2] == x).all()), bool((features[:, 6:] == out.train).all())
    (True, True)

    Args:
      output_sizes: width of every layer.
      expose_layers: which layers to expose, one bool a layer; all by default, the
        output included.
      stop_gradient: whether no gradient flows back through the features.
      w_init: initialiser of the weights.
      name: name of the module.
      b_init: initialiser of the biases; zeros by default.

    Raises:
      ValueError: if `expose_layers` does not have the length of `output_sizes`, or a
        size is not an integer >= 1; by a call with inputs that are not
        `[batch, num_features]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        expose_layers: Sequence[bool] | None = None,
        stop_gradient: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        name: str | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        super().__init__(name=name)
        sizes = layer_sizes("output_sizes", output_sizes)
        if expose_layers is None:
            expose_layers = [True] * len(sizes)
        if len(expose_layers) != len(sizes):
            raise ValueError(
                f"expose_layers needs one entry for each of the {len(sizes)} layers, "
                f"got {len(expose_layers)}."
            )
        self.layers = [
            hk.Linear(size, w_init=w_init, b_init=b_init, name=f"linear_{i}")
            for i, size in enumerate(sizes)
        ]
        self.num_layers = len(sizes)
        self.output_size = sizes[-1]
        self.stop_gradient = stop_gradient
        self.expose_layers = expose_layers

    def __call__(self, inputs: chex.Array) -> OutputWithPrior:
        """Returns logits `[batch, num_outputs]`, and `extra['exposed_features']`.

        The features are the inputs followed by the exposed layers (after relu, the
        last one as it is), `[batch, num_features]`.
        """
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        features = [inputs]
        out = inputs
        for i, (layer, expose) in enumerate(
            zip(self.layers, self.expose_layers, strict=True)
        ):
            out = layer(out)
            if i < self.num_layers - 1:
                out = jax.nn.relu(out)
            if expose:
                features.append(out)
        exposed = jnp.concatenate(features, axis=1)
        if self.stop_gradient:
            exposed = jax.lax.stop_gradient(exposed)
        return OutputWithPrior(train=out, extra={"exposed_features": exposed})


class ProjectedMLP(EpistemicModule):
    """An MLP whose matrix of outputs is projected on the index: g(x, z)ᵀ z.

    The epinet's building block (Osband et al., 2021, Epistemic neural networks,
    https://arxiv.org/abs/2107.08924, equation 6). The part of the first layer that
    sees only the inputs is kept apart from the index, and the last layer is
    contracted with the index before it meets the hidden units: over many indices,
    both save most of the work.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def forward(x, z):  # g(x)ᵀ z is linear in z.
    ...     return networks.ProjectedMLP([4], 1, index_dim=2, concat_index=False)(x, z)
    >>> net, x = hk.without_apply_rng(hk.transform(forward)), np.ones([3, 2])
    >>> z, params = np.array([1.0, -2.0]), net.init(jax.random.key(0), x, np.ones(2))
    >>> np.allclose(2 * net.apply(params, x, z), net.apply(params, x, 2 * z))
    True

    Args:
      hidden_sizes: widths of the hidden layers; may be empty.
      final_out: number of outputs.
      index_dim: size of the index.
      concat_index: whether the first layer sees the index beside the inputs.
      w_init: initialiser of the weights.
      name: name of the module.
      b_init: initialiser of the biases; zeros by default.

    Raises:
      ValueError: if a size is not an integer >= 1; by a call with an index that is not
        `[index_dim]` or inputs that are not `[batch, num_features]`.
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int],
        final_out: int,
        index_dim: int,
        concat_index: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        name: str | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        super().__init__(name=name)
        self.hidden_sizes = layer_sizes("hidden_sizes", hidden_sizes, may_be_empty=True)
        self.final_out = _checks.positive_int("final_out", final_out)
        self.index_dim = _checks.positive_int("index_dim", index_dim)
        self.concat_index = concat_index
        sizes = [*self.hidden_sizes, final_out * index_dim]
        self.mlp = ConcatMLP(sizes, w_init, b_init)

    def __call__(self, inputs: chex.Array, index: base.Index) -> jax.Array:
        """Returns `[batch, final_out]` for `inputs` `[batch, num_features]`."""
        dim = self.index_dim
        _checks.shape("index", index, (dim,), f"[{dim}]")
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        parts = [index, inputs.T] if self.concat_index else [inputs.T]
        return self.mlp.projected(*parts, projection=index)
