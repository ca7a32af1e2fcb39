"""Drawing parameters that stay fixed, such as those of prior functions."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def concrete_draws(legacy_stream: bool = False) -> Iterator[None]:
    """Draws inside give concrete values, also where the caller is inside `jax.jit`.

    Args:
      legacy_stream: whether to draw from the random stream that JAX had by default
        before version 0.5, which numbers differ from for the same key. The user's
        `jax_threefry_partitionable` stays as it is, and decides if this is false.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.ensure_compile_time_eval())
        if legacy_stream:
            stack.enter_context(jax.threefry_partitionable(False))
        yield
