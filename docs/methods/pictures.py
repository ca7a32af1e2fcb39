"""Draws the picture of each page of docs/methods: every method on the same 20 points.

python docs/methods/pictures.py [NAME ...]

The data have a gap and ends: what a method says there is all its own. Each panel shows
functions at single indices (thin), their mean and two standard deviations.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from enn import data_noise, datasets, losses, networks, posteriors, supervised
from enn.supervised import plots

FOLDER = pathlib.Path(__file__).parent
SIZES, NOISE_STD = [50, 50, 1], 0.1  # The last is that of the data.
_INPUTS, TARGETS = datasets.make_regression_data()
POINTS = (_INPUTS - 0.75) / 0.375  # From -2 to 2, with a gap in the middle.
NUM_DATA = POINTS.size
GRID = np.linspace(-4, 4, 161)
# A posterior needs the scale of the noise: squared errors in nats of N(y, NOISE_STD²).
TO_NATS = 1 / (2 * NOISE_STD**2)


def with_ones(x: np.ndarray) -> np.ndarray:
    """Returns inputs [num_points, 2]: x, and a one that gives priors a bias."""
    return np.stack([x, np.ones_like(x)], axis=1).astype(np.float32)


DATA = datasets.ArrayBatch(x=with_ones(POINTS), y=TARGETS[:, None].astype(np.float32))


def fit(
    enn: Any,
    single_loss: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    num_steps: int = 10_000,
    seed: int = 0,
) -> supervised.TrainingState:
    """Returns the state after training, by default on squared errors at 10 indices."""
    loss = loss or losses.average_single_index_loss(single_loss or losses.L2Loss(), 10)
    experiment = supervised.Experiment(
        enn,
        loss,
        optimizer or optax.adam(3e-3),
        (DATA.x, DATA.y),
        seed,
        train_log_freq=None,
    )
    experiment.train(num_steps)
    return experiment.state


def draw(enn: Any, params: Any, state: Any, num_samples: int = 100) -> np.ndarray:
    """Returns values on the grid at random indices, [num_samples, num_points]."""
    forward = networks.make_batch_fwd(enn, num_samples)
    return np.asarray(forward(params, state, with_ones(GRID)))[..., 0]


def draw_fitted(enn: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    """Trains as `fit`, then draws."""
    state = fit(enn, *args, **kwargs)
    return draw(enn, state.params, state.network_state)


Panels = dict[str, np.ndarray]


def mlp() -> networks.EnnArray:
    """Returns a network for posteriors around it, with tanh as it must be smooth."""
    return networks.wrap_net_fn_as_enn(
        lambda x: hk.nets.MLP(SIZES, activation=jnp.tanh)(x)
    )


def ensembles() -> Panels:
    plain = networks.make_einsum_ensemble_mlp_enn(SIZES, num_ensemble=10)
    priors = networks.MLPEnsembleMatchedPrior(SIZES, num_ensemble=10, prior_scale=3.0)
    return {
        "ensemble of 10": draw_fitted(plain),
        "with prior functions": draw_fitted(priors),
    }


def epinet() -> Panels:
    enn = networks.epinet.make_mlp_epinet(
        SIZES, epinet_hiddens=[50, 50], index_dim=3, prior_scale=3.0
    )
    return {"epinet": draw_fitted(enn)}


def hypermodels() -> Panels:
    enn = networks.MLPHypermodelWithHypermodelPrior(
        base_output_sizes=SIZES,
        prior_scale=1.0,
        dummy_input=DATA.x,
        indexer=networks.GaussianIndexer(4),
        prior_base_output_sizes=[10, 10, 1],
    )
    return {"hypermodel with a prior": draw_fitted(enn)}


def ensemble_plus_plus() -> Panels:
    enn = networks.make_linear_hyper_mlp_enn(SIZES, index_dim=8)
    noise = data_noise.GaussianTargetNoise(enn, NOISE_STD)
    loss = losses.average_over_indices(
        losses.add_data_noise(losses.L2Loss(), noise),
        networks.SignedAxisIndexer(8).all_indices(),
    )
    return {"Ensemble++": draw_fitted(enn, loss=loss)}


def dropout() -> Panels:
    return {
        f"dropout at rate {rate}": draw_fitted(
            networks.MLPDropoutENN(SIZES, dropout_rate=rate, dropout_input=False)
        )
        for rate in (0.05, 0.2)
    }


def bayes_by_backprop() -> Panels:
    enn = networks.make_bbb_enn(SIZES, dummy_input=DATA.x)
    elbo = losses.ElboLoss(
        losses.get_awgn_loglike_fn(sigma_w=NOISE_STD),
        losses.get_analytical_diagonal_linear_model_prior_kl_fn(NUM_DATA, sigma_0=1.0),
    )
    return {"Bayes by backprop": draw_fitted(enn, elbo)}


def index_mlp() -> Panels:
    plain = networks.IndexMLPEnn(SIZES, index_dim=10)
    prior = networks.IndexMLPWithGpPrior(
        SIZES, input_dim=2, num_prior=9, num_feat=10, prior_scale=3.0
    )
    return {
        "index MLP": draw_fitted(plain),
        "with a prior function": draw_fitted(prior),
    }


def gaussian_noise() -> Panels:
    return {
        f"noise of scale {scale} at first": draw_fitted(
            networks.GaussianNoiseMLP(SIZES, init_scale=scale)
        )
        for scale in (0.1, 1.0)
    }


def categorical_regression() -> Panels:
    enn = networks.CatMLPEnsembleMlpPrior(
        SIZES, np.linspace(-4, 6, 51), dummy_input=DATA.x, num_ensemble=10
    )
    return {"probabilities of 51 atoms": draw_fitted(enn, losses.Cat2HotRegression())}


def posterior_loss(prior_variance: float = 1.0) -> losses.LossFnArray:
    """Returns the loss in nats, with N(0, prior_variance) over the weights."""

    def scaled(enn: Any, params: Any, state: Any, batch: Any, key: Any) -> Any:
        value, rest = squared(enn, params, state, batch, key)
        return TO_NATS * value, rest

    squared = losses.average_single_index_loss(losses.L2Loss())
    decay = posteriors.gaussian_prior_scale(prior_variance, NUM_DATA)
    return losses.add_l2_weight_decay(scaled, decay)


def laplace() -> Panels:
    enn, panels = mlp(), {}
    trained = fit(enn, loss=posterior_loss())
    variables = trained.params, trained.network_state, DATA, "gaussian"
    for name, posterior in {
        "of the last layer": posteriors.fit_laplace(
            enn, *variables, last_layer="mlp/~/linear_2", noise_std=NOISE_STD
        ),
        "of all weights, linearised": posteriors.fit_linearised_laplace(
            enn, *variables, noise_std=NOISE_STD
        ),
    }.items():
        panels[name] = draw(posterior.enn, posterior.params, posterior.state)
    return panels


def vbll() -> Panels:
    enn = networks.make_vbll_mlp_enn(SIZES, noise_std=NOISE_STD)
    elbo = losses.ElboLoss(
        losses.get_last_layer_gaussian_loglike_fn(),
        losses.get_last_layer_kl_fn(num_samples=NUM_DATA),
    )
    return {"VBLL": draw_fitted(enn, elbo)}


def sngp() -> Panels:
    training, evaluation = (
        networks.make_sngp_mlp_enn(SIZES, num_features=256, is_training=is_training)
        for is_training in (True, False)
    )
    state = fit(training)
    posterior = posteriors.fit_laplace(
        evaluation, state.params, state.network_state, DATA, "gaussian",
        structure="shared", last_layer="linear", bias=False, noise_std=NOISE_STD,
    )  # fmt: skip
    return {"SNGP": draw(posterior.enn, posterior.params, posterior.state)}


def sgmcmc() -> Panels:
    enn, panels = mlp(), {}
    for name, sampler in {
        "SGLD": posteriors.sgld(3e-5, NUM_DATA),
        "SGHMC": posteriors.sghmc(3e-5, NUM_DATA),
    }.items():
        optimizer = posteriors.track_samples(
            sampler, num_samples=100, every=1000, burn_in=20_000
        )
        state = fit(enn, loss=posterior_loss(), optimizer=optimizer, num_steps=120_000)
        samples = posteriors.get_samples(state.opt_state)
        panels[name] = draw(networks.from_network_samples(enn, samples), samples, {})
    return panels


def swag() -> Panels:
    enn, runs = mlp(), []
    for seed in range(4):
        optimizer = posteriors.track_moments(
            optax.sgd(1e-2, momentum=0.9), every=20, burn_in=10_000
        )
        state = fit(
            enn, losses.L2Loss(), optimizer=optimizer, num_steps=15_000, seed=seed
        )
        moments = posteriors.get_moments(state.opt_state)
        runs.append(posteriors.draw_swag_samples(moments, jax.random.key(seed), 30))
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *runs)
    return {
        name: draw(networks.from_network_samples(enn, samples), samples, {})
        for name, samples in {"SWAG": runs[0], "MultiSWAG of 4 runs": together}.items()
    }


METHODS: dict[str, Callable[[], Panels]] = {
    method.__name__: method
    for method in (
        ensembles, epinet, hypermodels, ensemble_plus_plus, dropout,
        bayes_by_backprop, index_mlp, gaussian_noise, categorical_regression,
        laplace, vbll, sngp, sgmcmc, swag,
    )
}  # fmt: skip


def report(name: str, title: str, samples: np.ndarray) -> None:
    """Prints how far functions differ near the data, in the gap and outside."""
    near = np.abs(GRID[:, None] - POINTS).min(axis=1) < 0.1
    places = {"near": near, "gap": np.abs(GRID) < 0.4, "outside": np.abs(GRID) > 3}
    stds = [f"{k} {samples.std(axis=0)[at].mean():.2f}" for k, at in places.items()]
    print(f"{name}, {title}: std", ", ".join(stds), flush=True)


def save(name: str, panels: Panels, folder: pathlib.Path = FOLDER) -> None:
    """Writes a picture of the panels, which have the same axes for all methods."""
    figure, axes = plots.make_figure(1, len(panels), size=(3.7 * len(panels), 2.6))
    for ax, (title, samples) in zip(axes[0], panels.items(), strict=True):
        plots.draw_functions(ax, GRID, samples[:30], POINTS, TARGETS)
        ax.set(title=title, ylim=(-4, 5))
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=90)
    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or METHODS:
        panels = METHODS[name]()
        for title, samples in panels.items():
            report(name, title, samples)
        save(name, panels)
