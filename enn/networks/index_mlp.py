"""MLPs that take the epistemic index as a further input of every hidden layer."""

from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.base import EnnArray, EpistemicModule, OutputWithPrior
from enn.networks.ensembles import (
    combine_functions_linear_in_index,
    make_random_gp_ensemble_prior_fns,
)
from enn.networks.indexers import GaussianWithUnitIndexer
from enn.networks.inputs import flat_batch, layer_sizes
from enn.networks.mlp import ConcatLinear, ConcatMLP
from enn.networks.priors import EnnWithAdditivePrior, GpGamma, make_null_prior
from enn.networks.utils import epistemic_network_from_module


class ConcatIndexMLP(EpistemicModule):
    """An MLP that sees the index in every hidden layer, and predicts its variance.

    A hidden layer is relu(W [h, z] + b) (Osband et al., 2021,
    https://arxiv.org/abs/2107.08924).

    The log variance over the index comes from a head of its own, on the input of the
    last hidden layer and a projection of the network's input. Numbers follow the
    original `enn`: the output layer does not see the index, so that a network
    without hidden layers ignores it, and the log variance depends on the index where
    there are at least two hidden layers.

    What depends on the inputs alone is kept apart from the index: under `jax.vmap`
    over indices it is computed once. Inputs are flattened.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def forward(x, z):
    ...     return networks.ConcatIndexMLP([4, 4, 1], 3, variance_dim=20)(x, z)
    >>> init, x, z = hk.transform(forward).init, np.ones([3, 2]), np.ones(3)
    >>> params = jax.eval_shape(init, jax.random.key(0), x, z)
    >>> layers = [params[f"concat_index_mlp/linear{i}"] for i in ("", "_1")]
    >>> [layer["w"].shape for layer in layers]  # Inputs or units, and the index
    [(5, 4), (7, 4)]

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      index_dim: size of the index.
      variance_dim: width of the two hidden layers of the variance head.
      name: name of the module.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1; by a call
        with an index that is not `[index_dim]` or inputs that are not `[batch, ...]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        index_dim: int,
        variance_dim: int,
        name: str = "concat_index_mlp",
    ):
        super().__init__(name=name)
        *self.hiddens, self.output_dim = layer_sizes("output_sizes", output_sizes)
        self.index_dim = _checks.positive_int("index_dim", index_dim)
        self.variance_dim = _checks.positive_int("variance_dim", variance_dim)

    def __call__(self, inputs: chex.Array, index: base.Index) -> OutputWithPrior:
        """Returns `train` `[batch, num_outputs]` and `extra['log_var']` alike."""
        dim = self.index_dim
        _checks.shape("index", index, (dim,), f"[{dim}]")
        flat = flat_batch(inputs)

        out = last_hidden_input = flat.T
        for size in self.hiddens:
            last_hidden_input = out
            out = jax.nn.relu(ConcatLinear(size, name="linear")(out, index))
        project = hk.nets.MLP([self.variance_dim], activate_final=True)
        variance_head = ConcatMLP([self.variance_dim, self.output_dim])
        log_var = variance_head(last_hidden_input, project(flat).T).T
        train = ConcatLinear(self.output_dim, name="linear")(out).T
        return OutputWithPrior(train, jnp.zeros_like(train), {"log_var": log_var})


class IndexMLPEnn(EnnArray):
    """An MLP on inputs and index, z = [1, ε] with E‖ε‖² = 1; see `ConcatIndexMLP`.

    >>> import jax
    >>> from enn import networks
    >>> enn = networks.IndexMLPEnn([4, 1], index_dim=3)
    >>> z = enn.indexer(jax.random.key(0))
    >>> float(z[0]), len(z)
    (1.0, 3)

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      index_dim: size of the index.
      variance_dim: width of the variance head.

    Raises:
      ValueError: see `ConcatIndexMLP`.
    """

    def __init__(
        self, output_sizes: Sequence[int], index_dim: int, variance_dim: int = 20
    ):
        layer_sizes("output_sizes", output_sizes)
        _checks.positive_int("variance_dim", variance_dim)
        enn = epistemic_network_from_module(
            lambda: ConcatIndexMLP(output_sizes, index_dim, variance_dim),
            GaussianWithUnitIndexer(index_dim),
        )
        super().__init__(enn.apply, enn.init, enn.indexer)


class IndexMLPWithGpPrior(EnnWithAdditivePrior):
    """`IndexMLPEnn` with a linear combination of random GPs as its prior: Σ_j z_j f_j.

    The GPs take the random entries of the index; its leading one has no prior. They
    do not depend on the index: under `jax.vmap` over indices they are computed once.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> enn = networks.IndexMLPWithGpPrior([4, 1], input_dim=2, num_prior=2, num_feat=8)
    >>> x, mean_index = np.ones([3, 2]), np.array([1.0, 0.0, 0.0])
    >>> params, state = enn.init(jax.random.key(0), x, mean_index)
    >>> out, _ = enn.apply(params, state, x, mean_index)
    >>> bool((out.prior == 0).all())  # Σ_j z_j f_j, without the leading entry of z
    True

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      input_dim: number of features of the flattened input.
      num_prior: number of GPs; the index has one entry more.
      num_feat: number of random features of each GP.
      variance_dim: width of the variance head.
      gamma: inverse length scale of the GPs, see `make_random_feat_gp`.
      prior_scale: factor of the prior function.
      seed: seed of the GPs.

    Raises:
      ValueError: if a size is not an integer >= 1; see also `ConcatIndexMLP`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        input_dim: int,
        num_prior: int,
        num_feat: int,
        variance_dim: int = 20,
        gamma: GpGamma = 1.0,
        prior_scale: float = 1,
        seed: int = 0,
    ):
        _checks.positive_int("num_prior", num_prior)
        enn = IndexMLPEnn(output_sizes, num_prior + 1, variance_dim)
        output_dim = output_sizes[-1]
        gps = make_random_gp_ensemble_prior_fns(
            input_dim, output_dim, num_feat, gamma, num_prior, seed
        )
        prior_fn = combine_functions_linear_in_index(
            [make_null_prior(output_dim), *gps]
        )
        super().__init__(enn, prior_fn, prior_scale)
