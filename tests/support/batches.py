"""Batches that several tests of metrics use."""

import jax
import numpy as np

from tests.support import golden


def normal(*shape: int, seed: int) -> np.ndarray:
    """Normal numbers, the same with x64 as without."""
    return np.asarray(jax.random.normal(golden.keys(seed), shape, np.float32))


# The batch of the golden cases, and a smaller one with documented values.
LOGITS = 2 * normal(9, 24, 4, seed=30)
LABELS = np.asarray(jax.random.randint(golden.keys(31), (24, 1), 0, 4, np.int32))
SMALL_LOGITS = 2 * normal(3, 6, 4, seed=1)
SMALL_LABELS = np.array([[3], [0], [1], [3], [1], [0]], np.int32)


def logits_of(probs) -> np.ndarray:
    """Logits of one index sample with the given class probabilities."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, np.float32))[None]


def softmax(logits) -> np.ndarray:
    """Class probabilities in NumPy and double precision."""
    logits = np.asarray(logits, np.float64)
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return probs / probs.sum(axis=-1, keepdims=True)


def constant_forward(logits):
    """A forward pass at several indices that always predicts `logits`."""

    def batch_fwd(params, state, x):
        return logits

    return batch_fwd
