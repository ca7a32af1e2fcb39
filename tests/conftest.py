"""Strictness by configuration: the same for every test."""

import os
import pathlib

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling takes most of the tests' time, and their programs run for milliseconds.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR",
        str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"),
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
