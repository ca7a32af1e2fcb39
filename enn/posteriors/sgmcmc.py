"""Stochastic-gradient Langevin samplers, as optax transformations.

Gradient descent plus noise, whose iterates are samples of a posterior. For a loss L
that is a mean over the `num_data` rows of the negative log-likelihood in nats, plus a
penalty for the prior, they target exp(-num_data · L / temperature). `L2Loss` alone
stands for noise of variance ½; for a standard deviation σ use `L2Loss / (2σ²)`. A loss
that is a sum over rows would be `num_data` times too strong.

    loss = losses.add_l2_weight_decay(loss, gaussian_prior_scale(variance, num_data))
    optimizer = track_samples(sghmc(1e-4, num_data), 400, every=1000, burn_in=100_000)
    experiment = supervised.Experiment(enn, loss, optimizer, dataset)
    experiment.train(500_000)
    samples = get_samples(experiment.state.opt_state)
    posterior = networks.from_network_samples(enn, samples)

Parallel chains: an ensemble of K members, `losses.average_over_indices(loss,
jnp.arange(K))`, a sampler with `num_data * K` and `K * learning_rate` and without a
preconditioner are exactly K chains, of the prior in `gaussian_prior_scale(variance,
num_data * K)`. `average_single_index_loss` draws the members at random instead, and
that is another chain.

What is not to be sampled, such as the fixed priors in a network's parameters, is left
out of the penalty, and alone by

    transforms = {True: sampler, False: optax.set_to_zero()}
    optimizer = optax.partition(transforms, networks.trainable_mask)

(`optax.masked` would pass on its gradients as they are.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from enn import _checks
from enn.posteriors.noise import normal, split


class Preconditioner(NamedTuple):
    """A diagonal mass M that follows the gradients.

    Attributes:
      init: `params -> state`.
      update: `(grads, state) -> (mass, new_state)`; the mass is a tree like `grads`.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any], tuple[Any, Any]]


class LangevinState(NamedTuple):
    """State of a Langevin sampler.

    Attributes:
      count: number of steps so far.
      key: key of the noise to come.
      momentum: m, like the parameters; None for SGLD, which has none.
      preconditioner: state of the preconditioner, None without one.
    """

    count: jax.Array
    key: chex.PRNGKey
    momentum: Any
    preconditioner: Any


def gaussian_prior_scale(variance: float, num_data: int) -> float:
    """Returns the scale of `losses.add_l2_weight_decay` for the prior N(0, variance I).

    The mean loss of `num_data` rows has the penalty Σθ² / (2 · variance · num_data).

    >>> from enn import posteriors
    >>> posteriors.gaussian_prior_scale(variance=10.0, num_data=1000)
    5e-05

    Args:
      variance: of each parameter.
      num_data: rows of the training data.

    Raises:
      ValueError: unless both are positive.
    """
    _checks.positive(variance=variance)
    _checks.positive(num_data=num_data)
    return 1 / (2 * variance * num_data)


def rmsprop_preconditioner(decay: float = 0.99, eps: float = 1e-7) -> Preconditioner:
    """Returns the mass M = eps + √V for V ← decay · V + (1 - decay) · g².

    Steps are then of like size in all parameters, as in preconditioned SGLD (Li et
    al., 2016, https://arxiv.org/abs/1512.07666, equations 4 and 5). The term Γ, the
    change of M with θ, is left out: the bias is small where V moves slowly.

    >>> import jax.numpy as jnp
    >>> from enn import posteriors
    >>> mass = posteriors.rmsprop_preconditioner(decay=0.75)
    >>> m, _ = mass.update(jnp.array([2.0, 20.0]), mass.init(jnp.zeros(2)))
    >>> [round(float(entry), 3) for entry in m]  # √((1 - 0.75) g²)
    [1.0, 10.0]

    Args:
      decay: of the running mean of squared gradients, in [0, 1).
      eps: least mass, > 0.

    Raises:
      ValueError: if `decay` or `eps` is out of range.
    """
    _check_in_unit_interval("decay", decay)
    _checks.positive(eps=eps)

    def update(grads: optax.Updates, state: Any) -> tuple[Any, Any]:
        squares: Any = jax.tree.map(
            lambda v, g: decay * v + (1 - decay) * jnp.square(g), state, grads
        )
        return jax.tree.map(lambda v: eps + jnp.sqrt(v), squares), squares

    return Preconditioner(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def sgld(
    learning_rate: optax.ScalarOrSchedule,
    num_data: int,
    temperature: float = 1.0,
    preconditioner: Preconditioner | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Returns stochastic-gradient Langevin dynamics.

    θ ← θ - η M⁻¹ g + √(2ηT/N) M^{-½} ξ, ξ ~ N(0, I) (Welling & Teh, 2011, "Bayesian
    learning via stochastic gradient Langevin dynamics", equation 4 with ε = 2η/N).

    Noise of the gradients adds to that of the sampler. With the variance V of a
    minibatch's gradient, the posterior is too wide by a factor of about 1 + ηNV/(2T):
    choose η so that this is near one.

    >>> import jax.numpy as jnp
    >>> from enn import posteriors
    >>> params = jnp.array(0.5)
    >>> sampler = posteriors.sgld(learning_rate=0.1, num_data=1000)
    >>> updates, _ = sampler.update(params, sampler.init(params), params)
    >>> round(float(params + updates), 5)  # Of the loss θ²/2, whose gradient is θ.
    0.41546

    Args:
      learning_rate: η, or a schedule of it over steps, from 0 on.
      num_data: N, the rows of the training data; not those of a batch.
      temperature: T; 0 is gradient descent, 1 samples the posterior.
      preconditioner: gives the mass M; without it M = 1.
      seed: seed of the noise.

    Raises:
      ValueError: unless `learning_rate` and `num_data` are positive and `temperature`
        is at least 0.
    """
    return _langevin(learning_rate, num_data, 0.0, temperature, preconditioner, seed)


def sghmc(
    learning_rate: optax.ScalarOrSchedule,
    num_data: int,
    momentum_decay: float = 0.9,
    temperature: float = 1.0,
    preconditioner: Preconditioner | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Returns stochastic-gradient Hamiltonian Monte Carlo.

    m ← b m + √η g - √(2(1-b)T/N) M^½ ξ, then θ ← θ - √η M⁻¹ m, ξ ~ N(0, I) (Chen et
    al., 2014, https://arxiv.org/abs/1402.4102, equation 15, in the form of the Neural
    Testbed). Other libraries move θ with the momentum before its update, which is
    another chain with the same limit for small η.

    Noise of the gradients adds to that of the sampler, more than in SGLD. With the
    variance V of a minibatch's gradient, the posterior is too wide by a factor of about
    1 + ηNV/(2(1-b)T): choose η so that this is near one.

    >>> import jax.numpy as jnp
    >>> from enn import posteriors
    >>> params = jnp.array(0.5)
    >>> sampler = posteriors.sghmc(learning_rate=0.1, num_data=1000)
    >>> state = sampler.init(params)
    >>> updates, state = sampler.update(params, state, params)
    >>> bool(updates == -0.1**0.5 * state.momentum)  # θ ← θ - √η m
    True

    Args:
      learning_rate: η, or a schedule of it over steps, from 0 on.
      num_data: N, the rows of the training data; not those of a batch.
      momentum_decay: b in [0, 1); 0 is SGLD.
      temperature: T; 0 is gradient descent with momentum, 1 samples the posterior.
      preconditioner: gives the mass M; without it M = 1.
      seed: seed of the noise.

    Raises:
      ValueError: unless `learning_rate` and `num_data` are positive,
        `momentum_decay` is in [0, 1) and `temperature` is at least 0.
    """
    _check_in_unit_interval("momentum_decay", momentum_decay)
    return _langevin(
        learning_rate, num_data, momentum_decay, temperature, preconditioner, seed
    )


def _langevin(
    learning_rate: optax.ScalarOrSchedule,
    num_data: int,
    momentum_decay: float,
    temperature: float,
    preconditioner: Preconditioner | None,
    seed: int,
) -> optax.GradientTransformation:
    if not callable(learning_rate):
        _checks.positive(learning_rate=learning_rate)
    _checks.positive(num_data=num_data)
    if _checks.is_concrete(temperature) and not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}.")
    has_momentum = not _checks.is_concrete(momentum_decay) or momentum_decay > 0

    def init(params: optax.Params) -> LangevinState:
        return LangevinState(
            jnp.zeros([], jnp.int32),
            jax.random.PRNGKey(seed),
            jax.tree.map(jnp.zeros_like, params) if has_momentum else None,
            preconditioner and preconditioner.init(params),
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, LangevinState]:
        del params
        grads = updates
        count, key, momentum, preconditioner_state = state
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        noise_std = jnp.sqrt(2 * (1 - momentum_decay) * temperature / num_data)
        masses: Any = jax.tree.map(lambda g: 1.0, grads)
        if preconditioner is not None:
            masses, preconditioner_state = preconditioner.update(
                grads, preconditioner_state
            )
        leaves, structure = jax.tree.flatten(grads)
        key, *keys = split(key, 1 + len(leaves))

        def new_momentum(
            g: jax.Array, mass: Any, key: chex.PRNGKey, m: Any = 0.0
        ) -> jax.Array:
            noise = jnp.sqrt(mass) * normal(key, g.shape, g.dtype)
            new = momentum_decay * m + jnp.sqrt(rate) * g - noise_std * noise
            return new.astype(g.dtype)

        # Without momentum its place is taken by no tree at all.
        old = () if momentum is None else (momentum,)
        keys = jax.tree.unflatten(structure, keys)
        new: Any = jax.tree.map(new_momentum, grads, masses, keys, *old)
        updates = jax.tree.map(
            lambda m, mass: (-jnp.sqrt(rate) * m / mass).astype(m.dtype), new, masses
        )
        momentum = None if momentum is None else new
        return updates, LangevinState(count + 1, key, momentum, preconditioner_state)

    return optax.GradientTransformation(init, update)


def _check_in_unit_interval(name: str, value: Any) -> None:
    if _checks.is_concrete(value) and not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}.")
