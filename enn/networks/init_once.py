"""Initialising parameters in one program that compiles fast."""

from collections.abc import Callable
from typing import Any

import jax

from enn import _checks


def init_once(init: Callable[..., Any], *args: Any) -> Any:
    """Returns `init(*args)`, compiled: only the parameters are computed.

    On CPU it is compiled without optimisation. It runs once, and optimising random
    number generation takes ten times as long as all the rest. Inside `jax.jit` and
    other transformations it is just called.
    """
    if not _checks.is_concrete(*jax.tree.leaves(args)):
        return init(*args)
    on_cpu = jax.default_backend() == "cpu"
    options: dict[str, Any] = {"xla_backend_optimization_level": 0} if on_cpu else {}
    return jax.jit(init, compiler_options=options)(*args)
