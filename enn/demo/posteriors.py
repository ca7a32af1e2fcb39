"""The demo's posterior approximations, each trained on the digits like the others.

Networks are the MLP of the other agents, trained in as many steps on the same batches.
Those of which a posterior is taken have a prior of variance 1 on every weight.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from enn import calibration, losses, networks, posteriors, utils
from enn.datasets.base import ArrayBatch
from enn.demo import agents
from enn.networks.base import EnnArray

HIDDENS = [100, 100]
BATCH_SIZE = 128
_NUM_OUTPUTS = 10
_VARIANCE = 1.0
_NUM_RUNS = 5
_LAST_LAYER = f"mlp/~/linear_{len(HIDDENS)}"


class State(NamedTuple):
    """Parameters and network state, as an experiment has them."""

    params: Any
    network_state: Any


class Fitted(NamedTuple):
    """A network and its state: what `supervised.base.sample_predictions` needs."""

    enn: EnnArray
    state: Any


class Training(NamedTuple):
    """What every method may train on.

    Attributes:
      data: the training data.
      seed: of the batches and of training.
      steps: number of steps.
    """

    data: ArrayBatch
    seed: int
    steps: int

    def run(
        self, enn: EnnArray, loss: Any, optimizer: Any, seed: int | None = None
    ) -> Any:
        """Returns the trained state, having shown a progress bar."""
        seed = self.seed if seed is None else seed
        dataset = utils.make_batch_iterator(self.data, BATCH_SIZE, seed)
        args = enn, loss, optimizer, dataset, seed, self.steps
        return agents.run_experiment(*args).state

    def with_prior(self, loss: Any) -> Any:
        """Returns a loss with a Gaussian prior of the weights added."""
        num_data = len(self.data.y)
        scale = posteriors.gaussian_prior_scale(_VARIANCE, num_data)
        return losses.add_l2_weight_decay(loss, scale)


def fit(name: str, training: Training) -> Fitted:
    """Trains and fits one of `METHODS`."""
    print(f"training {name}")
    fitted = METHODS[name](training)
    jax.block_until_ready(fitted.state)
    return fitted


def _mlp() -> EnnArray:
    return agents.make_mlp(HIDDENS, _NUM_OUTPUTS)


def _of_samples(samples: Any) -> Fitted:
    return Fitted(networks.from_network_samples(_mlp(), samples), State(samples, {}))


def _cross_entropy() -> Any:
    return losses.average_single_index_loss(losses.XentLoss(_NUM_OUTPUTS), 1)


def _adam() -> optax.GradientTransformation:
    return optax.adam(1e-3)


def _sghmc(training: Training) -> Fitted:
    burn_in, every = training.steps // 2, max(training.steps // 100, 1)
    sampler = posteriors.sghmc(1e-2, len(training.data.y))
    optimizer = posteriors.track_samples(sampler, 50, every, burn_in)
    loss = training.with_prior(_cross_entropy())
    state = training.run(_mlp(), loss, optimizer)
    return _of_samples(posteriors.get_samples(state.opt_state))


def _fit_to(
    enn: EnnArray,
    trained: EnnArray,
    training: Training,
    fit: Callable[..., Any],
    **options: Any,
) -> Fitted:
    """Trains `trained`, and fits a posterior to `enn` with its parameters."""
    state = training.run(trained, training.with_prior(_cross_entropy()), _adam())
    posterior = fit(
        enn,
        state.params,
        state.network_state,
        training.data,
        "categorical",
        prior_precision=1 / _VARIANCE,
        **options,
    )
    return Fitted(posterior.enn, State(posterior.params, posterior.state))


def _laplace(training: Training) -> Fitted:
    enn, fit = _mlp(), posteriors.fit_laplace
    return _fit_to(enn, enn, training, fit, last_layer=_LAST_LAYER)


def _linearised_laplace(training: Training) -> Fitted:
    enn, fit = _mlp(), posteriors.fit_linearised_laplace
    # The full covariance would be too large.
    return _fit_to(enn, enn, training, fit, structure="low_rank", rank=100)


def _ensemble_plus_plus(training: Training) -> Fitted:
    enn = networks.make_linear_hyper_mlp_enn(
        [*HIDDENS, _NUM_OUTPUTS], index_dim=8, prior_scale=0.1, posterior_scale=0.1
    )
    loss = losses.average_over_indices(
        losses.XentLoss(_NUM_OUTPUTS), networks.SignedAxisIndexer(8).all_indices()
    )
    state = training.run(enn, loss, _adam())
    return Fitted(enn, state)


def _vbll(training: Training) -> Fitted:
    enn = networks.make_vbll_mlp_enn([*HIDDENS, _NUM_OUTPUTS], noise_std=1.0)
    elbo = losses.ElboLoss(
        losses.get_last_layer_categorical_loglike_fn(_NUM_OUTPUTS),
        losses.get_last_layer_kl_fn(len(training.data.y)),
    )
    state = training.run(enn, losses.average_single_index_loss(elbo, 1), _adam())
    return Fitted(enn, state)


def _sngp(training: Training) -> Fitted:
    train_enn, enn = (
        networks.make_sngp_mlp_enn(
            [*HIDDENS, _NUM_OUTPUTS], num_features=256, is_training=is_training
        )
        for is_training in (True, False)
    )
    options = {"structure": "per_output", "last_layer": "linear", "bias": False}
    return _fit_to(enn, train_enn, training, posteriors.fit_laplace, **options)


def _swag_samples(training: Training, seed: int, num_samples: int) -> Any:
    burn_in, every = training.steps // 2, max(training.steps // 100, 1)
    optimizer = posteriors.track_moments(optax.sgd(0.05, 0.9), every, burn_in)
    loss = training.with_prior(_cross_entropy())
    state = training.run(_mlp(), loss, optimizer, seed)
    moments = posteriors.get_moments(state.opt_state)
    return posteriors.draw_swag_samples(moments, jax.random.key(seed), num_samples)


def _swag(training: Training) -> Fitted:
    return _of_samples(_swag_samples(training, training.seed, 30))


def _multiswag(training: Training) -> Fitted:
    seeds = range(training.seed, training.seed + _NUM_RUNS)
    runs = [_swag_samples(training, seed, 20) for seed in seeds]
    return _of_samples(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *runs))


def _temperature(training: Training) -> Fitted:
    x, y = training.data.x, training.data.y
    num_seen = len(y) - len(y) // 5
    seen = training._replace(data=ArrayBatch(x=x[:num_seen], y=y[:num_seen]))
    enn = _mlp()
    state = seen.run(enn, _cross_entropy(), _adam())
    forward = networks.make_batch_fwd(enn, num_enn_samples=1)
    logits = forward(state.params, state.network_state, x[num_seen:])
    temperature = 1.0
    with contextlib.suppress(ValueError):  # No temperature is best.
        temperature = calibration.fit_temperature(logits, y[num_seen:])
    enn = networks.scale_enn_output(enn, 1 / temperature)
    return Fitted(enn, state)


METHODS: dict[str, Callable[[Training], Fitted]] = {
    "sghmc": _sghmc,
    "laplace": _laplace,
    "linearised_laplace": _linearised_laplace,
    "ensemble++": _ensemble_plus_plus,
    "vbll": _vbll,
    "sngp": _sngp,
    "swag": _swag,
    "multiswag": _multiswag,
    "temperature": _temperature,
}
