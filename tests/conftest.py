"""Strictness by configuration: for every test and the processes that tests start."""

import gc
import os
import pathlib

SETTINGS = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    # Compiling takes most of the tests' time, and their programs run for milliseconds.
    # Users run with optimisations: 0 compiles as they do, see .ci/run.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(
        pathlib.Path(__file__).parents[1] / ".cache" / "jax"
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402 - it reads its settings now
import pytest  # noqa: E402

if jax.config.read("jax_disable_most_optimizations"):
    flags = "--xla_cpu_parallel_codegen_split_count=1"
    if jax.__version_info__ < (0, 11):  # Later ones have no other code generator.
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"

# Tracing makes many objects and few cycles.
gc.set_threshold(100_000, 50, 100)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one process, which compiles what they share once.

    The last files come first: they take longest.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.reverse()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Looks once for what was left open; pytest goes through the heap five times."""
    gc.collect()
    gc.freeze()
