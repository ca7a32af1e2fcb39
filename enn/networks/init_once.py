"""Drawing parameters: in one program that compiles fast, and as fixed values."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from enn import _checks, _sharding


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
    with _sharding.off_mesh():
        return jax.jit(init, compiler_options=options)(*_sharding.untyped(args))


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
