"""An epinet on the last hidden layer of a base network."""

import functools
from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.base import Output, OutputWithPrior
from enn.networks.epinet.base import EpinetWithState
from enn.networks.indexers import GaussianIndexer
from enn.networks.inputs import flat_inputs, init_once, layer_sizes
from enn.networks.mlp import ProjectedMLP


class MLPEpinetWithPrior(EpinetWithState):
    """An epinet of two `ProjectedMLP`s: one trains, one is its fixed prior.

    σ(φ̃, z) = g(φ̃, z)ᵀ z + prior_scale · g_prior(φ̃, z)ᵀ z, where φ̃ are the hidden
    features and, unless `drop_inputs`, the inputs.

    Osband et al., 2021, Epistemic neural networks, https://arxiv.org/abs/2107.08924,
    section 4. The prior's parameters are part of the trainable tree; no gradient
    reaches them, and `enn.networks.trainable_mask` tells them apart.

    >>> import jax, numpy as np
    >>> from enn.networks import epinet
    >>> net = epinet.MLPEpinetWithPrior(index_dim=2, num_classes=3, epinet_hiddens=[4])
    >>> x, features, z = np.ones([5, 2]), np.ones([5, 4]), np.zeros(2)
    >>> params, state = net.init(jax.random.key(0), x, z, features)
    >>> out, _ = net.apply(params, state, x, z, features)
    >>> bool((out.preds == 0).all())  # σ = gᵀ z adds nothing at z = 0.
    True

    Args:
      index_dim: size of the Gaussian index.
      num_classes: number of outputs.
      epinet_hiddens: widths of the hidden layers of the part that trains.
      prior_epinet_hiddens: those of the prior; the same by default.
      prior_scale: factor of the prior.
      drop_inputs: whether the epinet sees only the hidden features, and not the
        flattened inputs after them.

    Raises:
      ValueError: if a size is not an integer >= 1; by a call with hidden features that
        are not `[batch, num_hidden]`.
    """

    def __init__(
        self,
        index_dim: int,
        num_classes: int,
        epinet_hiddens: Sequence[int],
        prior_epinet_hiddens: Sequence[int] | None = None,
        prior_scale: float = 1,
        drop_inputs: bool = False,
    ):
        if prior_epinet_hiddens is None:
            prior_epinet_hiddens = epinet_hiddens
        parts = {
            "train_epinet": layer_sizes("epinet_hiddens", epinet_hiddens, True),
            "prior_epinet": layer_sizes(
                "prior_epinet_hiddens", prior_epinet_hiddens, True
            ),
        }

        def forward(
            inputs: chex.Array, index: base.Index, hidden: chex.Array
        ) -> OutputWithPrior:
            _checks.shape("hidden", hidden, (None, None), "[batch, num_hidden]")
            features = hidden
            if not drop_inputs:
                features = jnp.concatenate([hidden, flat_inputs(inputs)], axis=1)
            train, prior = (
                ProjectedMLP(hiddens, num_classes, index_dim, name=name)(
                    features, index
                )
                for name, hiddens in parts.items()
            )
            return OutputWithPrior(train, prior_scale * prior)

        transformed = hk.without_apply_rng(hk.transform_with_state(forward))
        indexer = GaussianIndexer(index_dim)
        init = functools.partial(init_once, transformed.init)
        super().__init__(transformed.apply, init, indexer)


def parse_base_hidden(base_out: Output, hidden_name: str = "final_out") -> jax.Array:
    """Returns the entry `hidden_name` of the `extra` of a base network's output.

    >>> import numpy as np
    >>> from enn import networks
    >>> from enn.networks import epinet
    >>> extra = {"final_out": np.ones([1, 4])}
    >>> out = networks.OutputWithPrior(np.zeros([1, 2]), extra=extra)
    >>> print(epinet.parse_base_hidden(out))
    [[1. 1. 1. 1.]]
    >>> epinet.parse_base_hidden(out, "features")
    Traceback (most recent call last):
        ...
    ValueError: hidden_name must be one of 'final_out'; got 'features'.

    Raises:
      ValueError: if the output is not an `OutputWithPrior` or lacks the entry.
    """
    if not isinstance(base_out, OutputWithPrior):
        raise ValueError(
            "Hidden features are read from an OutputWithPrior, got "
            f"{type(base_out).__name__}."
        )
    _checks.one_of("hidden_name", hidden_name, base_out.extra)
    return base_out.extra[hidden_name]
