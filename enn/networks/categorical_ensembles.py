"""Ensembles that regress with a categorical distribution over fixed values."""

from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn.networks import ensembles
from enn.networks.base import OutputWithPrior
from enn.networks.ensembles import (
    EnsembleWithState,
    combine_functions_choice_via_index,
    make_random_gp_ensemble_prior_fns,
)
from enn.networks.inputs import flat_batch, layer_sizes
from enn.networks.priors import EnnWithAdditivePrior, GpGamma


class CatOutputWithPrior(OutputWithPrior):
    """Output of a categorical regression, whose predictions are expected values.

    preds = Σ_a softmax(train)_a · atom_a + stop_gradient(prior) (after Bellemare et
    al., 2017, https://arxiv.org/abs/1707.06887).

    >>> import numpy as np
    >>> from enn import networks
    >>> extra = {"atoms": np.array([0.0, 1.0, 5.0])}
    >>> logits = np.log([[[0.5, 0.25, 0.25]]])  # [batch, num_outputs, num_atoms]
    >>> out = networks.CatOutputWithPrior(logits, prior=np.array([[10.0]]), extra=extra)
    >>> print(out.preds)  # ¼ · 1 + ¼ · 5 + 10
    [[11.5]]

    Attributes:
      train: logits over the atoms, `[batch, num_outputs, num_atoms]`.
      prior: fixed part of the predictions, `[batch, num_outputs]`; zeros if left out.
      extra: further outputs; `extra['atoms']` holds the values, `[num_atoms]`.
    """

    __slots__ = ()

    @staticmethod
    def _zero_prior(train: chex.Array) -> jax.Array:
        return jnp.zeros(train.shape[:-1], train.dtype)

    @property
    def preds(self) -> jax.Array:
        """Predictions Σ_a softmax(train)_a · atom_a + stop_gradient(prior).

        `[batch, num_outputs]`, behind the axes of `jax.vmap` if there are any.
        """
        atoms = self.extra["atoms"]
        missing = range(jnp.ndim(atoms) - 1, jnp.ndim(self.train) - 1)
        atoms = jnp.expand_dims(atoms, tuple(missing))
        expected = jnp.sum(jax.nn.softmax(self.train) * atoms, axis=-1)
        return expected + jax.lax.stop_gradient(self.prior)


class CategoricalRegressionMLP(hk.Module):
    """An MLP with logits over fixed values for every output; inputs are flattened.

    Predicts Σ_a softmax(logits)_a · atom_a (after Bellemare et al., 2017,
    https://arxiv.org/abs/1707.06887).

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def forward(x):
    ...     return networks.CategoricalRegressionMLP([1], atoms=np.array([0.0, 4.0]))(x)
    >>> net, x = hk.transform(forward), np.zeros([1, 2])  # x = 0: equal logits
    >>> print(net.apply(net.init(jax.random.key(0), x), None, x).preds)
    [[2.]]

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      atoms: the values, `[num_atoms]`.
      name: name of the module.

    Raises:
      ValueError: if `output_sizes` is empty or a size is not an integer >= 1, or
        `atoms` is not a vector; by a call with inputs that are not `[batch, ...]`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        atoms: chex.Array,
        name: str = "categorical_regression_mlp",
    ):
        super().__init__(name=name)
        self.output_sizes, self.atoms = _check_sizes_and_atoms(output_sizes, atoms)
        self.dim_out = self.output_sizes[-1]

    def __call__(self, inputs: chex.Array) -> OutputWithPrior:
        """Returns a `CatOutputWithPrior` of `[batch, num_outputs, num_atoms]`."""
        flat = flat_batch(inputs)
        num_atoms = len(self.atoms)
        net = hk.nets.MLP([*self.output_sizes[:-1], self.dim_out * num_atoms])
        logits = jnp.reshape(net(flat), (-1, self.dim_out, num_atoms))
        return CatOutputWithPrior(logits, extra={"atoms": jnp.asarray(self.atoms)})


class CatMLPEnsemble(EnsembleWithState):
    """An ensemble of `CategoricalRegressionMLP`s.

    f(x, k) is the prediction of member k; see `CategoricalRegressionMLP`.

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      atoms: the values, `[num_atoms]`.
      num_ensemble: number of members.

    Raises:
      ValueError: see `CategoricalRegressionMLP` and `EnsembleWithState`.
    """

    def __init__(
        self, output_sizes: Sequence[int], atoms: chex.Array, num_ensemble: int
    ):
        _check_sizes_and_atoms(output_sizes, atoms)

        def forward(inputs: chex.Array) -> OutputWithPrior:
            return CategoricalRegressionMLP(output_sizes, atoms)(inputs)

        model = hk.without_apply_rng(hk.transform_with_state(forward))
        super().__init__(model, num_ensemble)


class CatMLPEnsembleGpPrior(EnnWithAdditivePrior):
    """A `CatMLPEnsemble` with a random GP for every member as prior function.

    Numbers follow the original `enn`: a GP has one output, which is added to all
    outputs of the network.

    Prior functions: Osband et al., 2018, https://arxiv.org/abs/1806.03335; see
    `make_random_feat_gp`.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> atoms, x = np.linspace(-1, 1, 5), np.ones([3, 2])
    >>> sizes = {"input_dim": 2, "num_ensemble": 3, "num_feat": 5}
    >>> enn = networks.CatMLPEnsembleGpPrior([1], atoms, **sizes)
    >>> out, _ = enn.apply(*enn.init(jax.random.key(0), x, 0), x, 1)
    >>> out.train.shape, out.preds.shape  # Logits over the atoms, expected values
    ((3, 1, 5), (3, 1))

    Args:
      output_sizes: width of every layer; the last is the number of outputs.
      atoms: the values, `[num_atoms]`.
      input_dim: number of features of the flattened input.
      num_ensemble: number of members.
      num_feat: number of random features of each GP.
      gamma: inverse length scale of the GPs, see `make_random_feat_gp`.
      prior_scale: factor of the prior functions.
      seed: seed of the prior functions.

    Raises:
      ValueError: see `CatMLPEnsemble` and `make_random_feat_gp`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        atoms: chex.Array,
        input_dim: int,
        num_ensemble: int,
        num_feat: int,
        gamma: GpGamma = 1.0,
        prior_scale: float = 1,
        seed: int = 0,
    ):
        enn = CatMLPEnsemble(output_sizes, atoms, num_ensemble)
        gps = make_random_gp_ensemble_prior_fns(
            input_dim, 1, num_feat, gamma, num_ensemble, seed
        )
        super().__init__(enn, combine_functions_choice_via_index(gps), prior_scale)


class CatMLPEnsembleMlpPrior(EnnWithAdditivePrior):
    """A `CatMLPEnsemble` with a fixed random MLP for every member as prior function.

    The prior adds to the expected values, not to the logits.

    Prior functions: Osband et al., 2018, https://arxiv.org/abs/1806.03335.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> x, atoms = np.ones([3, 2]), np.linspace(-1, 1, 5)
    >>> enn = networks.CatMLPEnsembleMlpPrior([1], atoms, x, num_ensemble=2)
    >>> params, state = enn.init(jax.random.key(0), x, 0)
    >>> out, _ = enn.apply(params, state, x, 1)
    >>> bool((abs(out.preds - out.prior) <= 1).all())  # Between the atoms
    True

    Args:
      output_sizes: width of every layer, of the priors as well; the last is the
        number of outputs.
      atoms: the values, `[num_atoms]`.
      dummy_input: array shaped like an input batch.
      num_ensemble: number of members.
      prior_scale: factor of the prior functions.
      seed: seed of the prior functions.

    Raises:
      ValueError: see `CatMLPEnsemble`.
    """

    def __init__(
        self,
        output_sizes: Sequence[int],
        atoms: chex.Array,
        dummy_input: chex.Array,
        num_ensemble: int,
        prior_scale: float = 1,
        seed: int = 0,
    ):
        enn = CatMLPEnsemble(output_sizes, atoms, num_ensemble)
        priors = ensembles.MLPPriors(output_sizes, num_ensemble, seed)
        priors.params_for(dummy_input)
        super().__init__(enn, priors, prior_scale)


def _check_sizes_and_atoms(
    output_sizes: Sequence[int], atoms: chex.Array
) -> tuple[list[int], np.ndarray]:
    atoms = np.asarray(atoms, np.float32)
    if atoms.ndim != 1 or atoms.size == 0:
        raise ValueError(f"atoms must have shape [num_atoms], got {list(atoms.shape)}.")
    return layer_sizes("output_sizes", output_sizes), atoms
