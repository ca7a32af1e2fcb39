import numpy as np

from enn import data_noise, losses
from tests import golden
from tests.losses import cases


def test_loss_sees_the_batch_of_the_index():
    def noise(batch, index):
        return batch.replace(y=batch.y + index)

    def single_loss(*args):
        return args

    noisy = losses.add_data_noise(single_loss, noise)
    batch = cases.batch_of([[1.0], [2.0]])
    *others, noisy_batch, index = noisy("apply", "params", "state", batch, 10)
    assert (others, index) == (["apply", "params", "state"], 10)
    np.testing.assert_array_equal(noisy_batch.y, [[11.0], [12.0]])
    np.testing.assert_array_equal(batch.y, [[1.0], [2.0]])


def test_golden_bootstrapped_xent():
    enn = cases.golden_ensemble(3)
    noise = data_noise.BootstrapNoise(enn, "bernoulli", 1)
    single = losses.add_data_noise(losses.XentLoss(3), noise)
    loss_fn = losses.average_single_index_loss(single, 6)
    batch = cases.golden_batch("classification")
    golden.assert_matches("bootstrapped_loss", cases.evaluate(loss_fn, enn, batch))
