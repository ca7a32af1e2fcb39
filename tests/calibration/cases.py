"""Ten rows of three classes."""

import numpy as np

LOGITS = np.array(
    [
        [2, 0.5, -1],
        [0.2, 1.5, 0.1],
        [-0.5, 0.3, 1.2],
        [3, 0, -2],
        [0.4, 0.6, 0.5],
        [1, 2.5, -0.5],
        [-1, 0.2, 2],
        [0.9, 1, -0.3],
        [2.2, -0.4, 0.7],
        [0, 0.1, 0.8],
    ]
)
LABELS = np.array([0, 1, 2, 0, 0, 1, 2, 0, 2, 2])[:, None]
SAMPLES = np.stack([LOGITS, LOGITS * [0.5, 0.8, 1.1] + [0.3, 0, -0.2]])
