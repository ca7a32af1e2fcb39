"""Two small data sets, and networks at their modes."""

from typing import Any

import haiku as hk
import numpy as np

from enn import networks
from enn.datasets import ArrayBatch

D1 = ArrayBatch(
    x=np.array([[-1.5], [-0.5], [0], [1], [2]]),
    y=np.array([[-1.2], [0.3], [0.1], [1.1], [1.4]]),
)
"""Regression: noise of standard deviation ½, prior N(0, I)."""

D2 = ArrayBatch(
    x=np.array([[-2], [-1], [-0.5], [0.5], [1], [1.5]]),
    y=np.array([[0], [0], [1], [0], [1], [1]]),
)
"""Two classes, prior N(0, I)."""

TEST_X = np.array([[0.5], [3.0]])


def linear(num_outputs: int) -> networks.EnnArray:
    """Returns a network of one linear layer."""
    return networks.wrap_net_fn_as_enn(lambda x: hk.Linear(num_outputs)(x))


def linear_params(w: Any, b: Any, dtype: Any = np.float32) -> dict[str, Any]:
    """Returns the parameters of `linear`."""
    return {"linear": {"w": np.asarray(w, dtype), "b": np.asarray(b, dtype)}}
