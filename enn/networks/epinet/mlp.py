"""An epinet around an MLP."""

import functools
from collections.abc import Sequence

import chex
import haiku as hk

from enn import base
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.indexers import GaussianIndexer
from enn.networks.inputs import flat_inputs, init_once, layer_sizes
from enn.networks.mlp import ExposedMLP, ProjectedMLP


def make_mlp_epinet(
    output_sizes: Sequence[int],
    epinet_hiddens: Sequence[int],
    index_dim: int,
    expose_layers: Sequence[bool] | None = None,
    prior_scale: float = 1.0,
    stop_gradient: bool = False,
    name: str | None = None,
    prior_epinet_hiddens: Sequence[int] | None = None,
    w_init: hk.initializers.Initializer | None = None,
    gradient_to_base: bool = False,
) -> EnnArray:
    """Returns an MLP with an epinet on its features: μ(x) + σ(φ(x), z).

    The features φ(x) are the flattened input and the exposed layers. The epinet is
    the sum of a part that trains and a fixed prior, both `ProjectedMLP`s (Osband et
    al., 2021, Epistemic neural networks, https://arxiv.org/abs/2107.08924, section
    4). The base network and its features do not depend on the index: under `jax.vmap`
    over indices they are computed once.

    >>> import jax, numpy as np
    >>> from enn.networks import epinet
    >>> enn = epinet.make_mlp_epinet([4, 1], epinet_hiddens=[4], index_dim=2)
    >>> x, z = np.ones([5, 2]), np.array([1.0, -1.0])
    >>> params, state = enn.init(jax.random.key(0), x, z)
    >>> mean, out = (enn.apply(params, state, x, index)[0] for index in (0 * z, z))
    >>> bool((mean.prior == 0).all()), bool((out.prior == 0).any())  # σ = gᵀ z
    (True, False)

    Args:
      output_sizes: width of every layer of the base MLP.
      epinet_hiddens: widths of the epinet's hidden layers.
      index_dim: size of the Gaussian index.
      expose_layers: which layers the epinet sees beside the input, one bool a layer;
        all by default.
      prior_scale: factor of the epinet's prior.
      stop_gradient: stops the gradient from the epinet into the base MLP. Numbers
        follow the original `enn`: the gradient is stopped without it as well, unless
        `gradient_to_base` lets it through.
      name: prefix of the modules' names.
      prior_epinet_hiddens: widths of the prior's hidden layers; those of the part that
        trains by default.
      w_init: initialiser of all weights.
      gradient_to_base: whether the epinet's gradient flows into the base MLP.

    Returns:
      Network on inputs `[batch, ...]`; `OutputWithPrior` of
      `[batch, output_sizes[-1]]`.

    Raises:
      ValueError: if both `stop_gradient` and `gradient_to_base` are true, or a size is
        not an integer >= 1; by `init` if `expose_layers` does not have the
        length of `output_sizes`.
    """
    if stop_gradient and gradient_to_base:
        raise ValueError("stop_gradient and gradient_to_base exclude each other.")
    sizes = layer_sizes("output_sizes", output_sizes)
    if prior_epinet_hiddens is None:
        prior_epinet_hiddens = epinet_hiddens
    parts = {
        "train_epinet": layer_sizes("epinet_hiddens", epinet_hiddens, True),
        "prior_epinet": layer_sizes("prior_epinet_hiddens", prior_epinet_hiddens, True),
    }
    prefix = f"{name}_" if name else ""

    def forward(inputs: chex.Array, index: base.Index) -> OutputWithPrior:
        base_mlp = ExposedMLP(
            sizes, expose_layers, not gradient_to_base, w_init, f"{prefix}base_mlp"
        )
        epinets = [
            ProjectedMLP(
                hiddens, sizes[-1], index_dim, w_init=w_init, name=f"{prefix}{part}"
            )
            for part, hiddens in parts.items()
        ]
        out = base_mlp(flat_inputs(inputs))
        features = out.extra["exposed_features"]
        train, prior = (epinet(features, index) for epinet in epinets)
        return OutputWithPrior(out.train + train, prior_scale * prior)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    init = functools.partial(init_once, transformed.init)
    return EnnArray(transformed.apply, init, GaussianIndexer(index_dim))
