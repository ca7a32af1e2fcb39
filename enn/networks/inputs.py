"""What goes into a network: checked inputs, sizes and functions, parameters."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from enn import _checks, _sharding


def layer_sizes(
    name: str, sizes: Sequence[int], may_be_empty: bool = False
) -> list[int]:
    """Returns `sizes` as ints, or raises ValueError unless there are any, all >= 1."""
    _check_list(name, sizes)
    if not len(sizes) and not may_be_empty:
        raise ValueError(f"{name} must hold at least one layer size.")
    return [_checks.positive_int(name, size) for size in sizes]


def _check_list(name: str, sizes: Any) -> None:
    if not hasattr(sizes, "__len__"):
        raise ValueError(
            f"{name} must be a list, one entry a layer, such as [50]; got {sizes!r}."
        )


def check_equal_lengths(**sequences: Sequence[Any]) -> None:
    """Raises ValueError unless all sequences have the same length >= 1."""
    for name, sequence in sequences.items():
        _check_list(name, sequence)
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"One entry for each layer is needed: {found}.")


def check_transformed(model: Any) -> None:
    """Raises TypeError unless `model` is a pair of functions `init` and `apply`."""
    names = ("init", "apply")
    if isinstance(model, type) or not all(
        callable(getattr(model, name, None)) for name in names
    ):
        raise TypeError(
            "A pair of functions init and apply is needed, such as "
            f"hk.without_apply_rng(hk.transform(net_fn)); got {model!r}."
        )


def flat_inputs(inputs: chex.Array) -> jax.Array:
    """Returns inputs as `[batch, num_features]`, integers as float32.

    Args:
      inputs: `[batch, ...]`, or one example `[num_features]`, which stays a vector.

    Raises:
      ValueError: if `inputs` is a scalar or a list.
    """
    _check_array(inputs)
    shape = jnp.shape(inputs)
    if not shape:
        raise ValueError("inputs must have shape [batch, ...], got a scalar.")
    if len(shape) > 1:
        shape = (shape[0], math.prod(shape[1:]))
    dtype = jnp.result_type(inputs)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return jnp.reshape(jnp.asarray(inputs, dtype if is_float else jnp.float32), shape)


def _check_array(inputs: Any) -> None:
    if isinstance(inputs, list | tuple):
        raise ValueError(
            f"inputs must be an array [batch, ...], got a {type(inputs).__name__}: "
            "pass np.asarray(inputs)."
        )


def flat_batch(inputs: chex.Array) -> jax.Array:
    """Returns a batch of inputs as `[batch, num_features]`, integers as float32.

    Raises:
      ValueError: unless `inputs` is `[batch, ...]`.
    """
    flat = flat_inputs(inputs)
    _checks.shape("inputs", flat, (None, None), "[batch, ...]")
    return flat


def map_rows(fn: Callable[[Any], tuple[Any, Any]], inputs: Any) -> tuple[Any, Any]:
    """Returns `fn(inputs)`, an output and a state, from one row of the batch at a time.

    Whatever `fn` draws, it draws for a batch of one: masks and noise are the same for
    all rows, so that equal rows give equal outputs. A function whose new state depends
    on the rows, such as batch normalisation in training, sees the whole batch.

    Args:
      fn: function of a batch; its outputs have the batch as their first axis.
      inputs: a batch, or a tree of arrays `[batch, ...]`.
    """

    def one_row(row: Any) -> tuple[Any, Any]:
        out, state = fn(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], row))
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), out), state

    try:
        return jax.vmap(one_row, out_axes=(0, None))(inputs)
    except ValueError:  # The state is mapped too, or `fn` has an error of its own.
        return fn(inputs)


def as_images(inputs: chex.Array) -> jax.Array:
    """Returns `inputs` as floats, integers as float32.

    Raises:
      ValueError: unless `inputs` is `[batch, height, width, channels]`.
    """
    _check_array(inputs)
    _checks.shape("inputs", inputs, (None,) * 4, "[batch, height, width, channels]")
    if not jnp.issubdtype(jnp.result_type(inputs), jnp.inexact):
        return jnp.asarray(inputs, jnp.float32)
    return jnp.asarray(inputs)


def to_nhwc(images: chex.Array, enable_double_transpose: bool) -> jax.Array:
    """Returns a batch of images as `[batch, height, width, channels]`.

    Args:
      images: a batch in that order of axes, or, on TPU, in the order in which the
        input pipeline hands batches to a TPU.
      enable_double_transpose: whether a batch on TPU is
        `[height, width, channels, batch]`. Without effect on other devices.
    """
    if enable_double_transpose and jax.default_backend() == "tpu":
        return jnp.transpose(images, (3, 0, 1, 2))
    return jnp.asarray(images)


def init_once(init: Callable[..., Any], *args: Any) -> Any:
    """Returns `init(*args)`, compiled: only the parameters are computed.

    On CPU it is compiled without optimisation. It runs once, and optimising random
    number generation takes ten times as long as all the rest. Networks that are made
    anew with the same sizes, as in every run of a sweep, share the compiled program.
    Inside `jax.jit` and other transformations it is just called.
    """
    if not _checks.is_concrete(*jax.tree.leaves(args)):
        return init(*args)
    with _sharding.off_mesh():
        args = _sharding.untyped(args)
        traced, shapes = jax.make_jaxpr(init, return_shape=True)(*args)
        run = _compiled(_Equations(traced.jaxpr))
        leaves = run(traced.consts, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


class _Equations:
    """Equations that are equal if all that they compute is."""

    def __init__(self, jaxpr: core.Jaxpr):
        self.jaxpr = jaxpr
        self.content = str(jaxpr), *_not_in_text(jaxpr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Equations) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


def _not_in_text(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Yields what the text of equations leaves out."""
    for equation in jaxpr.eqns:
        yield repr(equation.ctx)  # Such as the mesh and the random stream.
        if "callback" in equation.primitive.name:  # A function that Python runs.
            yield object()
        for param in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if isinstance(param, core.ClosedJaxpr):
                for constant in param.consts:
                    is_key = jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
                    yield object() if is_key else np.asarray(constant).tobytes()
                param = param.jaxpr
            if isinstance(param, core.Jaxpr):
                yield from _not_in_text(param)


def _is_jaxpr(param: Any) -> bool:
    return isinstance(param, core.Jaxpr | core.ClosedJaxpr)


@functools.lru_cache(128)
def _compiled(equations: _Equations) -> Callable[..., list[jax.Array]]:
    """Returns the function `(constants, *inputs)` that computes the equations."""
    on_cpu = jax.default_backend() == "cpu"
    options: dict[str, Any] = {"xla_backend_optimization_level": 0} if on_cpu else {}
    evaluate = functools.partial(jax.core.eval_jaxpr, equations.jaxpr)
    return jax.jit(evaluate, compiler_options=options)


@contextlib.contextmanager
def concrete_draws(legacy_stream: bool = False) -> Iterator[None]:
    """Draws inside give concrete values, also where the caller is inside `jax.jit`.

    Args:
      legacy_stream: whether to draw from the random stream that JAX had by default
        before version 0.5, which gives other numbers for the same key. The user's
        `jax_threefry_partitionable` is left alone, and decides if this is false.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.ensure_compile_time_eval())
        if legacy_stream:
            stack.enter_context(jax.threefry_partitionable(False))
        yield
