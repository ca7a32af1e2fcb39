"""What the processes of one training run must agree on before they train."""

import dataclasses
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from enn.supervised.chunks import Chunk


def agree(chunk: Chunk, steps_per_dispatch: int) -> tuple[Chunk, int]:
    """Returns the chunk that every process trains on, and how long the next may be.

    Every process calls this with its own arguments; all of them train the same steps.

    Args:
      chunk: what this process has read.
      steps_per_dispatch: how many steps this process would put into a dispatch.

    Returns:
      The chunk, cut to the steps before the first error of any process, and the
      least `steps_per_dispatch`. A process without an error gets one that names the
      process that has.

    Raises:
      ValueError: if the batches of the processes differ in shape or type.
    """
    leaves = jax.tree.leaves(chunk.batches)
    shapes = [f"{leaf.dtype}{list(leaf.shape[1:])}" for leaf in leaves]
    failed = chunk.error is not None
    signature = zlib.crc32(repr(shapes).encode()) >> 1
    report = (chunk.num_steps, steps_per_dispatch, failed, signature)
    reports = multihost_utils.process_allgather(np.array(report, np.int32))
    num_steps, steps_per_dispatch = reports[:, :2].min(axis=0).tolist()
    failures = np.flatnonzero(reports[:, 2]).tolist()
    if not failures and (reports[:, [0, 3]] != reports[0, [0, 3]]).any():
        raise ValueError(
            "Processes must have batches of the same shapes and types; process "
            f"{jax.process_index()} got {', '.join(shapes)}."
        )
    error = chunk.error
    if failures and error is None:
        error = RuntimeError(f"The data of process {failures[0]} failed.")
    chunk = dataclasses.replace(chunk, num_steps=num_steps, error=error)
    return chunk, steps_per_dispatch
