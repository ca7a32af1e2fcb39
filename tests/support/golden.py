"""Golden values: the numbers that the original `enn` gives for fixed seeds.

`tests/golden/NAME.npz` holds one case as `{path: array}`. Arrays of more than
`LARGE` entries are held as shape, mean, standard deviation and first 8 entries.
The values come from running the original, never from this library.
"""

import functools
import pathlib
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from enn import base, datasets, networks
from tests.support.fast import compiled

CASES = pathlib.Path(__file__).parents[1] / "golden"
LARGE = 600
RTOL, ATOL = 2e-4, 2e-5


def keys(seed: int) -> jax.Array:
    return jax.random.PRNGKey(seed)


def normal(*shape: int, seed: int = 2) -> jax.Array:
    return jax.random.normal(keys(seed), shape)


X5 = normal(6, 5)


def batch(kind: Literal["regression", "classification"]) -> datasets.ArrayBatch:
    """The batch of the golden cases: `X5`, with numbers or 3 classes as labels."""
    if kind == "regression":
        y = normal(6, 1, seed=12)
    else:
        y = jax.random.randint(keys(12), (6, 1), 0, 3)
    return datasets.ArrayBatch(x=X5, y=y, data_index=np.arange(6)[:, None] + 3)


def flatten(tree: Any, path: str = "") -> dict[str, np.ndarray]:
    """Returns `{path: array}` for nested mappings and (named) tuples of arrays."""
    if tree is None:
        return {}
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if hasattr(tree, "items"):
        flat = {}
        for name, value in tree.items():
            flat |= flatten(value, f"{path}|{name}")
        return flat
    if isinstance(tree, jax.Array) and jnp.issubdtype(tree.dtype, jax.dtypes.prng_key):
        tree = jax.random.key_data(tree)
    return {path: _summary(np.asarray(tree))}


def _summary(array: np.ndarray) -> np.ndarray:
    if array.size <= LARGE:
        return array
    flat = array.astype(np.float64).ravel()
    return np.concatenate([array.shape, [flat.mean(), flat.std()], flat[:8]])


def assert_matches(name: str, tree: Any, left_out: str = "^$") -> None:
    """Asserts that `tree` holds exactly the arrays of the golden case `name`.

    Args:
      name: name of the case.
      tree: what is compared with it.
      left_out: pattern of paths that are not, on either side.
    """
    with np.load(CASES / f"{name}.npz") as stored:
        wanted = {k: v for k, v in stored.items() if not re.search(left_out, k)}
    got = {k: v for k, v in flatten(tree).items() if not re.search(left_out, k)}
    assert set(got) == set(wanted)
    for path, value in wanted.items():
        np.testing.assert_allclose(
            got[path], value, rtol=RTOL, atol=ATOL, err_msg=f"{name}{path}"
        )


def output(out: Any) -> dict[str, Any]:
    """The parts of a network output that the golden cases hold."""
    if not hasattr(out, "train"):
        return {"out": out}
    parts = {"train": out.train, "prior": out.prior, "preds": out.preds}
    return parts | ({"extra": dict(out.extra)} if out.extra else {})


def enn_report(enn: Any, x: jax.Array, num_z: int = 4) -> dict:
    """Init, apply at one and at several indices, and gradients of a scalar."""
    z = enn.indexer(keys(1))
    params, state = enn.init(keys(0), x, z)

    def scalar(params: Any) -> tuple[jax.Array, Any]:
        out, new_state = enn.apply(params, state, x, z)
        return jnp.sum(jnp.sin(networks.parse_net_output(out))), (out, new_state)

    grad, (out, new_state) = jax.grad(scalar, has_aux=True)(params)
    zs = jax.vmap(enn.indexer)(jax.random.split(keys(3), num_z))
    outs, _ = jax.vmap(enn.apply, in_axes=[None, None, None, 0])(params, state, x, zs)
    return {
        "index": z,
        "params": params,
        "state": state,
        "out": output(out),
        "new_state": new_state,
        "outs": output(outs),
        "grad": grad,
    }


def assert_enn_matches(
    name: str,
    enn: base.EpistemicNetwork,
    inputs: jax.Array = X5,
    *,
    one_index: bool = False,
    left_out: str = "^$",
) -> None:
    """Asserts that `enn` gives the numbers of the golden case `name`.

    Args:
      name: name of the golden case.
      enn: the network.
      inputs: its inputs.
      one_index: whether to leave out outputs at several indices and gradients, which
        take long to compile for large networks.
      left_out: pattern of paths not to compare, for values that are not reproducible:
        batch norm over the two values of a batch of two 1x1 images amplifies rounding
        errors up to 300 times. After a few such layers inputs that differ by 1e-7
        have no digit in common.
    """
    if not one_index:
        report = compiled(functools.partial(enn_report, enn))(inputs)
        assert_matches(name, report, left_out)
        return
    index = enn.indexer(keys(1))
    params, state = compiled(enn.init)(keys(0), inputs, index)
    out, new_state = compiled(enn.apply)(params, state, inputs, index)
    report = {
        "index": index,
        "params": params,
        "state": state,
        "out": output(out),
        "new_state": new_state,
    }
    assert_matches(name, report, rf"^\|outs\||{left_out}")
