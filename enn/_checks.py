"""Checks of what a user passes in, each with one clear error."""

import operator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def positive_int(name: str, value: Any) -> int:
    """Returns `value` as an int, or raises ValueError unless it is an int >= 1."""
    return _int_from(1, name, value)


def non_negative_int(name: str, value: Any) -> int:
    """Returns `value` as an int, or raises ValueError unless it is an int >= 0."""
    return _int_from(0, name, value)


def _int_from(least: int, name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
    return number


def positive(**values: Any) -> None:
    """Raises ValueError for a number whose value is known and not > 0."""
    for name, value in values.items():
        if is_concrete(value) and not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}.")


def one_of(name: str, value: Any, choices: Any) -> None:
    """Raises ValueError unless `value` is among `choices`."""
    if value not in list(choices):
        valid = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {valid}; got {value!r}.")


def is_concrete(*arrays: Any) -> bool:
    """Whether the values can be looked at: false for arguments inside `jax.jit`."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def as_array(values: Any) -> jax.Array | np.ndarray:
    """Returns `values` as an array, which stays on the host if it is not JAX's."""
    return values if isinstance(values, jax.Array) else np.asarray(values)


def arrays(name: str, tree: Any) -> None:
    """Raises ValueError unless `tree` is an array or a tree of arrays."""
    if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"{name} must be an array, or a tree of arrays, got a "
            f"{type(tree).__name__}: pass np.asarray({name})."
        )


def shape(name: str, array: Any, expected: tuple[int | None, ...], axes: str) -> None:
    """Raises ValueError unless `array` has the `expected` shape.

    Args:
      name: what the array is, for the message.
      array: anything with a shape.
      expected: size of each axis; None stands for any size.
      axes: the axes in words, such as `"[batch, 1]"`.
    """
    actual = np.shape(array)
    if len(actual) != len(expected) or any(
        want is not None and want != got
        for want, got in zip(expected, actual, strict=True)
    ):
        raise ValueError(f"{name} must have shape {axes}, got {list(actual)}.")


def as_column(name: str, array: Any) -> Any:
    """Returns one value a row, `[batch, 1]` or `[batch]`, as `[batch, 1]`.

    Image data sets give labels and ids as `[batch]`, arrays in memory as `[batch, 1]`.

    Raises:
      ValueError: for another shape.
    """
    if np.ndim(array) == 1:
        return array[:, None]
    axes = "[batch, 1]"
    if np.ndim(array) == 3 and np.shape(array)[2] == 1:
        axes += ", with an axis of devices merged into that of the batch"
    shape(name, array, (None, 1), axes)
    return array


def float_rows(name: str, data: chex.Array) -> jax.Array:
    """Returns `data` as floating-point numbers, at least float32.

    Raises:
      ValueError: unless `data` is `[num_data, dim]` with at least one row.
    """
    shape(name, data, (None, None), "[num_data, dim]")
    data = as_array(data)
    if not data.shape[0]:
        raise ValueError(f"{name} must have at least one row.")
    return jnp.asarray(data, jnp.promote_types(jnp.result_type(data), jnp.float32))


def class_labels(labels: Any, num_classes: int) -> None:
    """Raises ValueError unless labels are integers in [0, num_classes).

    Looks at values only where they are concrete, that is outside `jax.jit`.
    """
    if not is_concrete(labels):
        return
    values = np.atleast_1d(labels)
    wrong = ~((values >= 0) & (values < num_classes) & (values == np.floor(values)))
    if wrong.any():
        raise ValueError(
            f"labels must be integers in [0, {num_classes}), got "
            f"{values[wrong][0]!s} in row {np.argwhere(wrong)[0, 0]}."
        )


def same_shapes(name: str, loaded: Any, expected: Any) -> None:
    """Raises ValueError unless `loaded` has the structure and shapes of `expected`.

    Args:
      name: where the values are from, for the message.
      loaded: tree of arrays.
      expected: tree of arrays, or of shapes as `jax.eval_shape` gives them.

    Raises:
      ValueError: naming the first leaf that is missing, unexpected, or of another
        shape, with both shapes, and how many more there are.
    """
    got, wanted = _shapes(loaded), _shapes(expected)
    problems = [f"{path} is missing" for path in wanted if path not in got]
    problems += [f"{path} is unexpected" for path in got if path not in wanted]
    problems += [
        f"{path} has shape {list(got[path])}, not {list(wanted[path])}"
        for path in wanted
        if path in got and got[path] != wanted[path]
    ]
    if problems:
        more = f" ({len(problems) - 1} more)" if problems[1:] else ""
        raise ValueError(f"{name} is of another network: {problems[0]}{more}.")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
