"""Four posteriors of a last layer: how unsure near the data, and far away?"""

from typing import Any

import haiku as hk
import numpy as np
import optax

from enn import data_noise, losses, networks, posteriors, supervised, utils
from enn.datasets import ArrayBatch

NOISE_STD, NUM_DATA, SIZES = 0.1, 200, [50, 50, 1]
X = np.linspace(-1, 1, NUM_DATA, dtype=np.float32)[:, None]
Y = np.sin(3 * X) + NOISE_STD * np.random.default_rng(0).normal(size=X.shape)
DATA = ArrayBatch(x=X, y=Y.astype(np.float32))
NEAR_AND_FAR = np.array([[0.3], [3.0]], np.float32)


def laplace(num_steps: int) -> np.ndarray:
    """A network trained as ever, then one pass over the data."""
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP(SIZES)(x))
    variables = _train(
        enn, losses.average_single_index_loss(losses.L2Loss()), num_steps
    )
    posterior = posteriors.fit_laplace(
        enn,
        *variables,
        DATA,
        "gaussian",
        last_layer="mlp/~/linear_2",
        noise_std=NOISE_STD,
        prior_precision="marginal_likelihood",
    )
    return _spread(posterior.enn, posterior.params, posterior.state)


def sngp(num_steps: int) -> np.ndarray:
    """A trunk that keeps distances, then one pass over the data."""
    enn = networks.make_sngp_mlp_enn(SIZES, num_features=256)
    variables = _train(
        enn, losses.average_single_index_loss(losses.L2Loss()), num_steps
    )
    posterior = posteriors.fit_laplace(
        networks.make_sngp_mlp_enn(SIZES, num_features=256, is_training=False),
        *variables,
        DATA,
        "gaussian",
        structure="shared",
        last_layer="linear",
        bias=False,
        noise_std=NOISE_STD,
    )
    return _spread(posterior.enn, posterior.params, posterior.state)


def vbll(num_steps: int) -> np.ndarray:
    """A Gaussian learned with the features, by a bound in closed form."""
    enn = networks.make_vbll_mlp_enn(SIZES, noise_std=NOISE_STD)
    elbo = losses.ElboLoss(
        losses.get_last_layer_gaussian_loglike_fn(),
        losses.get_last_layer_kl_fn(num_samples=NUM_DATA),
    )
    loss_fn = losses.average_single_index_loss(elbo)
    return _spread(enn, *_train(enn, loss_fn, num_steps))


def linear_hyper_head(num_steps: int) -> np.ndarray:
    """A matrix that learns from noisy targets, one noise for each of its indices."""
    enn = networks.make_linear_hyper_mlp_enn(SIZES, index_dim=8)
    noise = data_noise.GaussianTargetNoise(enn, NOISE_STD)
    single_loss = losses.add_data_noise(losses.L2Loss(), noise)
    indices = networks.SignedAxisIndexer(8).all_indices()
    loss_fn = losses.average_over_indices(single_loss, indices)
    return _spread(enn, *_train(enn, loss_fn, num_steps))


def _train(enn: Any, loss_fn: Any, num_steps: int) -> tuple[Any, Any]:
    batches = utils.make_batch_iterator(DATA, batch_size=100)
    opt = optax.adam(3e-3)
    experiment = supervised.Experiment(
        enn, loss_fn, opt, batches, train_log_freq=num_steps
    )
    experiment.train(num_steps)
    return experiment.state.params, experiment.state.network_state


def _spread(enn: Any, params: Any, state: Any) -> np.ndarray:
    forward = networks.make_batch_fwd(enn, num_enn_samples=200)
    return np.std(forward(params, state, NEAR_AND_FAR), axis=0)[:, 0]


METHODS = {f.__name__: f for f in (laplace, sngp, vbll, linear_hyper_head)}

if __name__ == "__main__":
    for name, method in METHODS.items():
        print(name, *method(1000))
