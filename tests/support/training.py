"""Training a network to tell two classes apart, for the tests of adapters."""

from typing import Any

import numpy as np
import optax

from enn import base, losses, supervised
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from tests.support.fast import compiled_init

_DRAW = np.random.default_rng(0)
X = _DRAW.normal(size=(16, 3)).astype(np.float32)
Y = (X[:, :1] * X[:, 1:2] > 0).astype(np.int32)


def train(
    enn: base.EpistemicNetwork, num_steps: int = 150
) -> tuple[supervised.Experiment, list[float]]:
    """Returns the experiment after training on `(X, Y)`, and its losses."""
    logger = MemoryLogger()
    experiment = supervised.Experiment(
        compiled_init(enn),
        losses.average_single_index_loss(losses.XentLoss(2), 4),
        optax.adam(2e-2),
        iter([ArrayBatch(x=X, y=Y)] * num_steps),
        logger=logger,
        init_x=X,
    )
    experiment.train(num_steps)
    return experiment, [float(row["loss"]) for row in logger.rows]


def assert_learns(enn: base.EpistemicNetwork) -> Any:
    """Asserts that the loss falls well below log 2; returns the state."""
    experiment, history = train(enn)
    assert len(history) == 150
    assert np.mean(history[-10:]) < 0.3 * np.log(2)
    return experiment.state
