"""A check of one's own epistemic network, which says what is wrong in plain words."""

import io
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enn import base
from enn.networks.indexers import draw_indices
from enn.networks.utils import parse_net_output
from enn.supervised.base import check_network

_NUM_INDICES = 5


class BrokenContractError(AssertionError):
    """A network does not do what the library relies on.

    >>> import numpy as np
    >>> from enn import base, networks, testing
    >>> def apply(params, state, x, z):
    ...     return x @ params["w"] + x.mean(), state  # Rows see each other.
    >>> def init(key, x, z):
    ...     return {"w": np.ones([x.shape[1], 1])}, {}
    >>> enn = base.EpistemicNetwork(apply, init, networks.GaussianIndexer(1))
    >>> testing.check_enn(enn, np.arange(6.0).reshape(3, 2))
    Traceback (most recent call last):
        ...
    enn.testing.BrokenContractError: The network breaks its contract.
    - rows: a row's output differs by 2 in another batch.

    Attributes:
      problems: what is wrong, in words, by the part of the contract.
    """

    def __init__(self, problems: dict[str, str]):
        lines = [f"- {part}: {problem}" for part, problem in problems.items()]
        super().__init__("\n".join(["The network breaks its contract.", *lines]))
        self.problems = problems


def check_enn(
    enn: base.EpistemicNetwork,
    x: Any,
    *,
    draws_per_row: bool = False,
    batch_statistics: bool = False,
    seed: int = 0,
) -> None:
    """Checks that a network does what losses, experiments and samplers rely on.

    - `keys`: typed and raw random keys give the same indices and parameters.
    - `output`: an array or an `OutputWithPrior` of finite floats `[batch, ...]`.
    - `state`: the new state has the structure, shapes and types of the old one.
    - `deterministic`: one index always gives the same output.
    - `jit`, `vmap`: compiled, and at many indices at once, the numbers are the same as
      one by one.
    - `rows`: equal rows get equal outputs at one index, whatever the batch. Otherwise
      joint predictions, which are those at one index, mean nothing.
    - `gradients`: finite, not all zero, and those of a sum over indices are the sum.
    - `saving`: parameters and state are trees of arrays that hold all they need to.

    >>> import jax.numpy as jnp, numpy as np
    >>> from enn import base, networks, testing
    >>> x = np.ones([4, 3], np.float32)
    >>> testing.check_enn(networks.MLPEnsembleMatchedPrior([8, 2], num_ensemble=3), x)
    >>> def apply(params, state, inputs, index):
    ...     return jnp.sum(inputs @ params["w"]), state
    >>> def init(key, inputs, index):
    ...     return {"w": jnp.ones(3)}, {}
    >>> own = base.EpistemicNetwork(apply, init, networks.PrngIndexer())
    >>> testing.check_enn(own, x)
    Traceback (most recent call last):
    enn.testing.BrokenContractError: The network breaks its contract.
    - output: predictions must be [batch, ...] with 4 rows, got shape [].

    Args:
      enn: the network.
      x: a batch of at least two rows of inputs that it takes.
      draws_per_row: whether each row has random draws of its own, on purpose.
      batch_statistics: whether a row's output depends on the batch, on purpose, as with
        batch normalisation in training.
      seed: seed of parameters and indices.

    Raises:
      BrokenContractError: naming everything that was found.
      TypeError: if `enn` is not a network with state.
      ValueError: unless the arrays in `x` have the same number of rows, at least two.
    """
    check_network(enn)
    rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(rows) != 1 or rows <= {(), (0,), (1,)}:
        raise ValueError(f"x must have at least two rows in all arrays, got {rows}.")
    problems: dict[str, str] = {}
    for part, problem in _problems(enn, x, draws_per_row, batch_statistics, seed):
        problems.setdefault(part, problem)
    if problems:
        raise BrokenContractError(problems)


def _problems(
    enn: base.EpistemicNetwork,
    x: Any,
    draws_per_row: bool,
    batch_statistics: bool,
    seed: int,
) -> Iterator[tuple[str, str]]:
    """Yields what is wrong; stops where nothing further can be said."""
    kinds = (jax.random.key, jax.random.PRNGKey)

    @jax.jit
    def init(x: Any) -> Any:
        indices = [enn.indexer(key(seed + 1)) for key in kinds]
        variables = [
            enn.init(key(seed), x, z) for key, z in zip(kinds, indices, strict=True)
        ]
        many = draw_indices(enn.indexer, jax.random.key(seed + 2), _NUM_INDICES)
        return variables, many

    try:
        (variables, raw), indices = init(x)
    except Exception as error:
        yield "init", f"indexer and init fail under jax.jit: {_words(error)}"
        return
    if not _equal(variables, raw):
        yield "keys", "raw keys of jax.random.PRNGKey give other parameters than typed."
    index = enn.indexer(jax.random.key(seed + 1))
    try:
        out, new_state = enn.apply(variables[0], variables[1], x, index)
    except Exception as error:
        yield "apply", f"it fails: {_words(error)}"
        return
    if type(out) in (tuple, list, dict):
        yield (
            "output",
            "apply must return an array or an OutputWithPrior, and the state; the "
            f"output is a {type(out).__name__}.",
        )
        return
    preds = parse_net_output(out)  # pyrefly: ignore[bad-argument-type]
    output_problem = _output_problem(preds, len(jax.tree.leaves(x)[0]))
    if output_problem:
        yield "output", output_problem
        return
    if _types(new_state) != _types(variables[1]):
        yield (
            "state",
            f"apply must return state like that of init, {_types(variables[1])}; got "
            f"{_types(new_state)}.",
        )
        return
    if difference := _difference(_predict(enn, variables, x, index), preds):
        yield (
            "deterministic",
            f"a second call with the same arguments differs by {difference}: all that "
            "is random must be drawn from the index.",
        )
        return
    raw_index = enn.indexer(jax.random.PRNGKey(seed + 1))
    if difference := _difference(_predict(enn, variables, x, raw_index), preds):
        yield "keys", f"at the index of a raw key predictions differ by {difference}."
    yield from _compare_saved(enn, variables, x, index, preds)
    if not draws_per_row:
        yield from _compare_rows(enn, variables, x, index, preds, batch_statistics)
    yield from _compare_indices(enn, variables, x, indices)


def _output_problem(preds: Any, num_rows: int) -> str | None:
    shape = np.shape(preds)
    if shape[:1] != (num_rows,):
        return (
            f"predictions must be [batch, ...] with {num_rows} rows, got shape "
            f"{list(shape)}."
        )
    if not jnp.issubdtype(preds.dtype, jnp.floating):
        return f"predictions must be floating-point numbers, got {preds.dtype}."
    return None if jnp.isfinite(preds).all() else "predictions are NaN or infinite."


def _compare_saved(
    enn: base.EpistemicNetwork, variables: Any, x: Any, index: Any, preds: Any
) -> Iterator[tuple[str, str]]:
    try:
        stored = _stored(variables)
    except Exception as error:
        yield "saving", f"parameters and state must be arrays: {_words(error)}"
        return
    if difference := _difference(_predict(enn, stored, x, index), preds):
        yield "saving", f"as NumPy arrays, parameters predict {difference} off."


def _compare_rows(
    enn: base.EpistemicNetwork,
    variables: Any,
    x: Any,
    index: Any,
    preds: Any,
    batch_statistics: bool,
) -> Iterator[tuple[str, str]]:
    first = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)[0]] * len(leaf)), x)
    repeated = _predict(enn, variables, first, index)
    if difference := _difference(repeated, jnp.broadcast_to(repeated[:1], preds.shape)):
        yield (
            "rows",
            f"equal rows differ by {difference} at one index: what is drawn must be "
            "the same for all rows of a batch.",
        )
    elif not batch_statistics and (difference := _difference(repeated[:1], preds[:1])):
        yield "rows", f"a row's output differs by {difference} in another batch."


def _compare_indices(
    enn: base.EpistemicNetwork, variables: Any, x: Any, indices: Any
) -> Iterator[tuple[str, str]]:
    params, state = variables

    def value(params: Any, index: Any) -> tuple[jax.Array, jax.Array]:
        preds = _predict(enn, (params, state), x, index)
        return jnp.sum(jnp.sin(preds)), preds

    def total(params: Any, indices: Any) -> tuple[jax.Array, jax.Array]:
        values, preds = jax.vmap(value, (None, 0))(params, indices)
        return jnp.sum(values), preds

    grad, grad_of_total = (
        jax.jit(jax.grad(fn, has_aux=True, allow_int=True)) for fn in (value, total)
    )
    each = [jax.tree.map(lambda z, i=i: z[i], indices) for i in range(_NUM_INDICES)]
    eager = _predict(enn, variables, x, each[0])
    try:
        parts, one_by_one = zip(*[grad(params, index) for index in each], strict=True)
    except Exception as error:
        yield "jit", f"apply and its gradient fail under jax.jit: {_words(error)}"
        return
    if difference := _difference(one_by_one[0], eager):
        yield "jit", f"compiled by jax.jit, predictions differ by {difference}."
        return
    try:
        grads, at_once = grad_of_total(params, indices)
    except Exception as error:
        yield "vmap", f"apply fails under jax.vmap over indices: {_words(error)}"
        return
    if difference := _difference(at_once, jnp.stack(one_by_one)):
        yield (
            "vmap",
            f"at several indices by jax.vmap, predictions differ by {difference} from "
            "those one by one.",
        )
        return
    parts = [_float_leaves(grads) for grads in parts]
    if not all(np.isfinite(leaf).all() for leaves in parts for leaf in leaves):
        yield "gradients", "they are NaN or infinite."
    elif not any(leaf.any() for leaves in parts for leaf in leaves):
        yield "gradients", "all are zero: predictions do not depend on parameters."
    elif any(
        _difference(leaf, sum(each), slack=10)
        for leaf, *each in zip(_float_leaves(grads), *parts, strict=True)
    ):
        yield "gradients", "of a sum over indices, they are not the sum of each."


def _float_leaves(grads: Any) -> list[np.ndarray]:
    """Gradients with respect to parameters that are not integers."""
    leaves = jax.tree.leaves(grads)
    return [np.asarray(leaf) for leaf in leaves if leaf.dtype != jax.dtypes.float0]


def _predict(enn: base.EpistemicNetwork, variables: Any, x: Any, index: Any) -> Any:
    out, _ = enn.apply(variables[0], variables[1], x, index)
    return parse_net_output(out)  # pyrefly: ignore[bad-argument-type]


def _stored(tree: Any) -> Any:
    """Returns a tree after its leaves were written and read by NumPy."""
    leaves, structure = jax.tree.flatten(tree)
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file) as stored:
        return structure.unflatten([stored[f"arr_{i}"] for i in range(len(leaves))])


def _difference(got: Any, expected: Any, slack: float = 1.0) -> str:
    """Returns the largest difference, or nothing for one that rounding explains."""
    dtype = jnp.result_type(expected)
    eps = max(float(jnp.finfo(kind).eps) for kind in (dtype, jnp.float32))
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    largest = np.abs(got - expected).max(initial=0)
    bound = 0.3 * slack * eps**0.5 * max(np.abs(expected).max(initial=0), 1e-2)
    return "" if largest <= bound else f"{largest:.2g}"


def _equal(tree: Any, other: Any) -> bool:
    same = jax.tree.structure(tree) == jax.tree.structure(other)
    return same and all(
        np.array_equal(_plain(a), _plain(b))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )


def _plain(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _types(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{np.shape(leaf)}", tree)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
