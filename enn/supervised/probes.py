"""Probes: a few predictions by which saved parameters know their network again.

Predictions depend on more than parameters and state: on prior functions drawn from a
seed, on the frozen base of an epinet, on statistics of data that a network holds. A
probe is what the network predicts at fixed inputs and indices, with the parameters
that are saved; a network that predicts something else with them is another one.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from enn import _sharding
from enn.networks.base import EnnArray
from enn.networks.forwarders import predict_at_indices
from enn.networks.indexers import THREEFRY, draw_indices
from enn.supervised.loop import type_of, types_of
from enn.supervised.programs import shared

_NUM_ROWS, _NUM_INDICES, _NUM_VALUES = 4, 4, 64


class ProbeError(ValueError):
    """A network predicts something else than the one that was saved."""


def record(
    enn: EnnArray,
    params: Any,
    state: Any,
    inputs: Any,
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any]:
    """Returns the probe of a network, of JSON.

    The inputs are made up: only the shapes and types of `inputs` matter, and no row of
    data gets into the probe.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> from enn.supervised.probes import record
    >>> def predictions(seed, rows):
    ...     enn = networks.MLPEnsembleMatchedPrior([2], num_ensemble=3, seed=seed)
    ...     params, state = enn.init(jax.random.key(0), rows, 0)
    ...     return record(enn, params, state, rows)["predictions"]
    >>> saved = predictions(3, np.ones([8, 5]))
    >>> predictions(3, np.zeros([8, 5])) == saved, len(saved)
    (True, 32)
    >>> predictions(7, np.ones([8, 5])) == saved
    False

    Args:
      enn: the network.
      params: its parameters.
      state: its state.
      inputs: a batch, `[batch, ...]`, or a tree of such.
      mesh: devices that share the work.
    """
    leaves = jax.tree.leaves(inputs)
    same_rows = len({np.shape(leaf)[:1] for leaf in leaves}) == 1
    probe = {
        "inputs": [_describe(leaf, same_rows) for leaf in leaves],
        "structure": _nested_names(inputs),
    }
    preds = _predict(enn, params, state, make_inputs(probe, inputs), mesh)
    rounded = [float(f"{v:.8g}") if np.isfinite(v) else None for v in preds]
    return {**probe, "predictions": rounded}


def record_or_warn(
    enn: EnnArray,
    params: Any,
    state: Any,
    inputs: Any,
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any] | None:
    """Returns what `record` does, or warns and returns None where it raises.

    A network that takes some inputs only is no reason to lose a run.
    """
    try:
        return record(enn, params, state, inputs, mesh)
    except Exception as error:
        warnings.warn(
            "The network does not run at a few made-up inputs, so saves cannot tell it "
            f"from others with the same parameters: {error}",
            stacklevel=5,
        )
        return None


def make_inputs(probe: Mapping[str, Any], like: Any = None) -> Any:
    """Returns the inputs of a probe, the same in every process.

    Args:
      probe: what `record` returned.
      like: a tree of the structure of the inputs; may be left out for an array and for
        dicts of arrays.

    Raises:
      ProbeError: if there are more or fewer arrays in `like`.
      TypeError: without `like` where it is needed.
    """
    names = probe["structure"] if like is None else like
    if like is None and names == _OTHER:
        raise TypeError("inputs must be given: they are neither an array nor dicts.")
    structure = jax.tree.structure(names, is_leaf=lambda node: node is None)
    if structure.num_leaves != len(probe["inputs"]):
        raise ProbeError(
            f"is of another network: its inputs are {len(probe['inputs'])} arrays, "
            f"and those of this one {structure.num_leaves}"
        )
    draw = np.random.RandomState(0)  # Its stream is the same in all versions of NumPy.
    return structure.unflatten([_draw(draw, *leaf) for leaf in probe["inputs"]])


def check(
    probe: Mapping[str, Any],
    enn: EnnArray,
    params: Any,
    state: Any,
    inputs: Any,
    mesh: jax.sharding.Mesh | None = None,
) -> None:
    """Raises ProbeError unless a network predicts what the saved one did.

    Rounding, of other devices and in half precision, is allowed for.

    Args:
      probe: what `record` returned.
      enn: the network.
      params: the saved parameters.
      state: the saved state.
      inputs: what `make_inputs` returned.
      mesh: devices that share the work.

    Raises:
      ProbeError: if predictions differ.
    """
    got = _predict(enn, params, state, inputs, mesh)
    saved = np.array([np.nan if v is None else v for v in probe["predictions"]])
    finite = np.isfinite(saved)
    same = got.shape == saved.shape and (np.isfinite(got) == finite).all()
    floats = [t for t in types_of((params, got)) if jnp.issubdtype(t, jnp.floating)]
    eps = max(float(jnp.finfo(dtype).eps) for dtype in [jnp.float32, *floats])
    tolerance = 3 * eps**0.5 * np.abs(saved[finite]).max(initial=0)
    if same and (np.abs(got - saved)[finite] <= tolerance).all():
        return
    first = f"shape {list(got.shape)}"
    if got.shape == saved.shape:
        worst = int(np.nan_to_num(np.abs(got - saved), nan=np.inf).argmax())
        first = f"{got[worst]:.4g} where it predicted {saved[worst]:.4g}"
    raise ProbeError(
        f"is of another network: with the same parameters this one predicts {first}. "
        "What parameters do not hold must be as it was: prior functions, with their "
        "seed and scale, the frozen base of an epinet, the indexer, and JAX's settings "
        "of random numbers"
    )


_OTHER = "other"


def _nested_names(inputs: Any) -> Any:
    """Returns dicts with None for each array; `_OTHER` for other containers."""
    if isinstance(inputs, dict):
        names = {name: _nested_names(value) for name, value in inputs.items()}
        plain = all(isinstance(name, str) for name in names)
        return names if plain and _OTHER not in names.values() else _OTHER
    return None if jax.tree_util.treedef_is_leaf(jax.tree.structure(inputs)) else _OTHER


def _describe(leaf: Any, same_rows: bool) -> list[Any]:
    shape = list(np.shape(leaf))
    if same_rows and shape:
        shape[0] = _NUM_ROWS
    return [jnp.dtype(type_of(leaf)).name, shape]


def _predict(
    enn: EnnArray,
    params: Any,
    state: Any,
    inputs: Any,
    mesh: jax.sharding.Mesh | None,
) -> np.ndarray:
    # Not that of the user's settings, which may differ when the save is read.
    key = jax.random.key(0, impl=THREEFRY)
    # Made-up inputs may give NaN; GPUs and TPUs multiply with fewer digits by default.
    exact = jax.default_matmul_precision("highest")
    with _sharding.on_mesh(mesh), jax.debug_nans(False), exact:
        preds = _forward(enn, mesh)(params, state, inputs, key)
    flat = np.asarray(_sharding.fetch(mesh, preds)).ravel()
    values = flat[:: max(1, flat.size // _NUM_VALUES)]
    return values if values.dtype == np.float64 else values.astype(np.float32)


def _draw(draw: np.random.RandomState, dtype: str, shape: list[int]) -> Any:
    """Numbers that all networks take: in [0, 1], or of 0 and 1, as tokens may be."""
    if jnp.issubdtype(jnp.dtype(dtype), jnp.inexact):
        return draw.uniform(size=shape).astype(jnp.dtype(dtype))
    return draw.randint(0, 2, shape).astype(jnp.dtype(dtype))


@shared
def _forward(enn: EnnArray, mesh: jax.sharding.Mesh | None) -> Any:
    """Returns the predictions at a few indices, compiled fast: they are few."""
    on_cpu = jax.default_backend() == "cpu"
    options: dict[str, Any] = {"xla_backend_optimization_level": 0} if on_cpu else {}

    @functools.partial(
        jax.jit, out_shardings=_sharding.replicated(mesh), compiler_options=options
    )
    def forward(params: Any, state: Any, inputs: Any, key: chex.PRNGKey) -> jax.Array:
        indices = draw_indices(enn.indexer, key, _NUM_INDICES)
        return predict_at_indices(enn, params, state, inputs, indices)

    return forward
