"""An epinet around an MLP."""

from collections.abc import Sequence

import chex
import haiku as hk

from enn import base
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.indexers import GaussianIndexer
from enn.networks.mlp import ExposedMLP, ProjectedMLP


def make_mlp_epinet(
    output_sizes: Sequence[int],
    epinet_hiddens: Sequence[int],
    index_dim: int,
    expose_layers: Sequence[bool] | None = None,
    prior_scale: float = 1.0,
    stop_gradient: bool = False,
    name: str | None = None,
) -> EnnArray:
    """Returns an MLP with an epinet on its features: μ(x) + σ(φ(x), z).

    The features φ(x) are the input and the exposed layers. The epinet is the sum of
    a part that trains and a fixed prior, both `ProjectedMLP`s (Osband et al., 2021,
    Epistemic neural networks, https://arxiv.org/abs/2107.08924, section 4). The base
    network and its features do not depend on the index: under `jax.vmap` over
    indices they are computed once.

    Args:
      output_sizes: width of every layer of the base MLP.
      epinet_hiddens: widths of the epinet's hidden layers.
      index_dim: size of the Gaussian index.
      expose_layers: which layers the epinet sees beside the input, one bool a layer;
        all by default.
      prior_scale: factor of the epinet's prior.
      stop_gradient: accepted for compatibility. No gradient flows from the epinet
        into the base MLP whatever its value, as in the original `enn`.
      name: prefix of the modules' names.

    Returns:
      Network on inputs `[batch, num_features]`; `OutputWithPrior` of
      `[batch, output_sizes[-1]]`.
    """
    del stop_gradient
    prefix = f"{name}_" if name else ""

    def forward(inputs: chex.Array, index: base.Index) -> OutputWithPrior:
        base_mlp = ExposedMLP(output_sizes, expose_layers, name=f"{prefix}base_mlp")
        epinets = [
            ProjectedMLP(
                epinet_hiddens, output_sizes[-1], index_dim, name=f"{prefix}{part}"
            )
            for part in ("train_epinet", "prior_epinet")
        ]
        out = base_mlp(inputs)
        features = out.extra["exposed_features"]
        train, prior = (epinet(features, index) for epinet in epinets)
        return OutputWithPrior(out.train + train, prior_scale * prior)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    return EnnArray(transformed.apply, transformed.init, GaussianIndexer(index_dim))
