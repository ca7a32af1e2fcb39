"""Strictness by configuration: the same for every test."""

import os
import pathlib

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling takes most of the tests' time, and their programs run for milliseconds.
jax.config.update("jax_disable_most_optimizations", True)
flags = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # Later ones have no other code generator.
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR",
        str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"),
    ),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
