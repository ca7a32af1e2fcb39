"""The linear hyper-head of Ensemble++: a matrix that turns an index into weights."""

import functools
from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.base import EnnArray, Output, OutputWithPrior
from enn.networks.epinet.base import EpinetWithState
from enn.networks.indexers import SphereIndexer
from enn.networks.inputs import flat_inputs, init_once, layer_sizes
from enn.networks.last_layer.gaussian_last_layer import apply_factor

MODULE = "linear_hyper_head"
PRIOR = "prior"


class LinearHyperHead(EpinetWithState):
    """A last layer whose weights are linear in the index: φ(x)ᵀ (a A + a₀ A₀) z.

    A trains, with a the `posterior_scale`; A₀ is fixed, with a₀ the `prior_scale`. The
    index z is uniform on the sphere of radius √index_dim, so that the weights have
    the covariance (a A + a₀ A₀)(a A + a₀ A₀)ᵀ. Fitted to targets with the noise of
    `enn.data_noise.GaussianTargetNoise`, at all the indices of `SignedAxisIndexer`, A
    imitates the posterior of a linear model on the features (Li et al., 2024,
    https://arxiv.org/abs/2407.13195, Ensemble++). The indices must come in pairs of
    both signs, or the mean learns from the noise too.

    No gradient flows into the features φ. There is no bias. Parameters: `factor`,
    `[num_features, num_outputs, index_dim]`, of the module `linear_hyper_head`, drawn
    from N(0, 2 / (num_features · num_outputs + index_dim)); and of the module `prior`,
    which `enn.networks.is_trainable` tells apart, with rows of norm one over the index.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> head = networks.LinearHyperHead(num_features=2, num_outputs=1, index_dim=4)
    >>> x, z = np.ones([3, 2]), head.indexer(jax.random.key(1))
    >>> params, state = head.init(jax.random.key(0), x, z, hidden=x)
    >>> out, opposite = (head.apply(params, state, x, i, hidden=x)[0] for i in (z, -z))
    >>> np.allclose(out.preds, -opposite.preds)  # The weights are linear in z.
    True

    Args:
      num_features: number of features.
      num_outputs: number of outputs.
      index_dim: size of the index.
      prior_scale: a₀ ≥ 0.
      posterior_scale: a ≥ 0.
      seed: fixes A₀.

    Raises:
      ValueError: for a size that is not an integer >= 1 or a negative scale; by
        `apply` for features or an index of another shape.
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        index_dim: int,
        prior_scale: float = 1.0,
        posterior_scale: float = 1.0,
        seed: int = 0,
    ):
        shape = [
            _checks.positive_int("num_features", num_features),
            _checks.positive_int("num_outputs", num_outputs),
            _checks.positive_int("index_dim", index_dim),
        ]
        scales = {"prior_scale": prior_scale, "posterior_scale": posterior_scale}
        for name, scale in scales.items():
            if _checks.is_concrete(scale) and not scale >= 0:
                raise ValueError(f"{name} must be >= 0, got {scale}.")
        std = (2 / (num_features * num_outputs + index_dim)) ** 0.5

        def init(
            key: chex.PRNGKey,
            inputs: chex.Array,
            index: base.Index,
            hidden: chex.Array,
        ) -> tuple[hk.Params, hk.State]:
            del inputs, index
            dtype = jnp.result_type(hidden, 0.0)
            prior = jax.random.normal(jax.random.PRNGKey(seed), shape, dtype)
            prior = prior / jnp.linalg.norm(prior, axis=2, keepdims=True)
            factor = std * jax.random.normal(key, shape, dtype)
            return {MODULE: {"factor": factor}, PRIOR: {"factor": prior}}, {}

        def apply(
            params: hk.Params,
            state: hk.State,
            inputs: chex.Array,
            index: base.Index,
            hidden: chex.Array,
        ) -> tuple[OutputWithPrior, hk.State]:
            del inputs
            features = jax.lax.stop_gradient(hidden)
            train, prior = (
                scale * apply_factor("joint", params[name]["factor"], features, index)
                for name, scale in ((MODULE, posterior_scale), (PRIOR, prior_scale))
            )
            return OutputWithPrior(train, prior), state

        super().__init__(apply, init, SphereIndexer(index_dim))


def make_linear_hyper_mlp_enn(
    output_sizes: Sequence[int],
    index_dim: int = 8,
    prior_scale: float = 1.0,
    posterior_scale: float = 1.0,
    seed: int = 0,
) -> EnnArray:
    """Returns an MLP with a `LinearHyperHead` on its last hidden layer.

    Li et al., 2024, https://arxiv.org/abs/2407.13195, Ensemble++.

    The authors' settings are hidden layers of [64, 64], Adam at 1e-4, batches of 128
    rows, target noise of 0.01 (none for classification) and a weight decay `scale` of
    0.005 / num_data; prior and posterior scale are 0.2 and 0.1 for regression, 0.1 and
    0.1 for classification.

    >>> from enn import data_noise, losses, networks
    >>> enn = networks.make_linear_hyper_mlp_enn([4, 1])
    >>> noise = data_noise.GaussianTargetNoise(enn, noise_std=0.01)
    >>> single_loss = losses.add_data_noise(losses.L2Loss(), noise)
    >>> indices = networks.SignedAxisIndexer(8).all_indices()  # Pairs of both signs.
    >>> loss_fn = losses.average_over_indices(single_loss, indices)  # To train with.
    >>> bool((indices[:8] == -indices[8:]).all())
    True

    Args:
      output_sizes: width of every layer, at least one of them hidden.
      index_dim: size of the index.
      prior_scale: factor of the fixed part, >= 0.
      posterior_scale: factor of the part that trains, >= 0.
      seed: fixes the prior.

    Returns:
      Network on inputs `[batch, ...]`; `OutputWithPrior` of
      `[batch, output_sizes[-1]]`, whose index is `SphereIndexer`'s.

    Raises:
      ValueError: as `LinearHyperHead`, and without a hidden layer.
    """
    *hidden_sizes, num_outputs = layer_sizes("output_sizes", output_sizes)
    if not hidden_sizes:
        raise ValueError(
            f"output_sizes must have a hidden layer, got {list(output_sizes)}."
        )
    head = LinearHyperHead(
        hidden_sizes[-1], num_outputs, index_dim, prior_scale, posterior_scale, seed
    )

    def forward(inputs: chex.Array) -> tuple[jax.Array, jax.Array]:
        hidden = hk.nets.MLP(hidden_sizes, activate_final=True)(flat_inputs(inputs))
        return hk.Linear(num_outputs)(hidden), hidden

    base_net = hk.without_apply_rng(hk.transform(forward))

    def apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        mean, hidden = base_net.apply(params, inputs)
        out, state = head.apply(params, state, inputs, index, hidden)
        return out._replace(train=mean + out.train), state

    def init(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        base_key, head_key = jax.random.split(rng_key)
        params = base_net.init(base_key, inputs)
        _, hidden = base_net.apply(params, inputs)
        head_params, state = head.init(head_key, inputs, index, hidden)
        return {**params, **head_params}, state

    return EnnArray(apply, functools.partial(init_once, init), head.indexer)
