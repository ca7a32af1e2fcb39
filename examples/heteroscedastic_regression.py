"""Regression with noise that depends on x: what is noise, and what is not known?"""

import sys

import numpy as np
import optax

from enn import losses, metrics, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.supervised import plots


def main(num_steps: int = 1000, picture: str = "") -> tuple[float, float]:
    """Returns the test NLL and that of the truth, in nats; draws if `picture`."""
    rng = np.random.default_rng(0)
    noise_std = 0.05 + 0.3 * np.abs(x := rng.uniform(-1, 1, [1000, 1]))
    y = np.sin(3 * x) + noise_std * rng.normal(size=x.shape)
    # Members differ by a prior function of the mean, and not of the scale.
    ensemble = networks.MLPEnsembleMatchedPrior([50, 50, 2], num_ensemble=10)
    enn, loss = networks.scale_prior(ensemble, [1, 0]), losses.GaussianNLLLoss(0.01)
    loss_fn = losses.average_single_index_loss(loss, 10)
    batches = utils.make_batch_iterator(ArrayBatch(x=x[:500], y=y[:500]), 100)
    opt = optax.adam(3e-3)
    experiment = supervised.Experiment(enn, loss_fn, opt, batches, train_log_freq=100)
    experiment.train(num_steps)
    outputs = supervised.sample_predictions(experiment, x[500:], 30)
    nll = metrics.make_mixture_nll_calculator(loss.parse)(outputs, y[500:])
    if picture:
        grid = np.linspace(-2, 2, 200)
        outputs = supervised.sample_predictions(experiment, grid[:, None], 30)
        mean, std = loss.parse(outputs)
        figure, axes = plots.make_figure()
        spread = np.asarray(mean), np.asarray(std)
        plots.draw_uncertainties(axes[0, 0], grid, *spread, x[:500], y[:500])
        figure.savefig(picture)
    return float(nll), float(np.log(noise_std[500:] * np.sqrt(2 * np.pi * np.e)).mean())


if __name__ == "__main__":  # Arguments: number of steps, file of the picture.
    print(*main(int((sys.argv[1:2] or ["1000"])[0]), *sys.argv[2:]))
