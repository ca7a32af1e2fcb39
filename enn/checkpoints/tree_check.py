"""Whether loaded parameters are those of the network that they are loaded for."""

from typing import Any

import jax
import numpy as np


def check_shapes(name: str, loaded: Any, expected: Any) -> None:
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
