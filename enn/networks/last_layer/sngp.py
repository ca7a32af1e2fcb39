"""SNGP: features that keep distances, for a Gaussian process as the last layer.

A trunk with bounded spectral norms does not map distant inputs onto one another, and
random Fourier features of it approximate a Gaussian process with the kernel
exp(-d² / 2ℓ²) (Liu et al., 2020, https://arxiv.org/abs/2006.10108; 2022,
https://arxiv.org/abs/2205.00403). Far from the data, its variance is the prior's again.
No covariance is carried along while the network trains: `enn.posteriors.fit_laplace`
finds it afterwards, exactly, in one pass over the data.
"""

from collections.abc import Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.epinet.expose_features import FEATURES
from enn.networks.inputs import flat_inputs, layer_sizes
from enn.networks.utils import wrap_net_fn_as_enn


class SpectralLinear(hk.Module):
    """A linear layer whose weights are shrunk to a spectral norm of at most `bound`.

    The weights w, `[in, out]`, are divided by max(1, ς / bound). The power method finds
    the spectral norm ς, from the state u, `[out]`: v = w u / ‖w u‖, u = wᵀv / ‖wᵀv‖,
    ς = ‖wᵀv‖. In training u moves on with every call; in evaluation it stays. No
    gradient flows through ς. (`hk.SpectralNorm` enlarges small weights too.)

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def forward(x):
    ...     return networks.SpectralLinear(2, is_training=True, bound=0.5)(x)
    >>> net, x = hk.transform_with_state(forward), np.eye(2)
    >>> params, state = net.init(jax.random.key(0), x)
    >>> params["spectral_linear"]["w"] = np.diag([3.0, 2.0])
    >>> for _ in range(20):  # The power method moves on with every call.
    ...     out, state = net.apply(params, state, None, x)
    >>> round(float(np.linalg.norm(out, ord=2)), 2)
    0.5

    Args:
      output_size: number of outputs.
      is_training: whether u moves.
      bound: largest spectral norm, > 0. Published: 0.95 for MLPs, 6 for wide ResNets.
      num_iterations: steps of the power method in a call.
      name: name of the module.

    Raises:
      ValueError: if `bound` is not > 0 or a size is not an integer >= 1; by a call with
        inputs that are not `[batch, num_features]`.
    """

    def __init__(
        self,
        output_size: int,
        is_training: bool,
        bound: float = 0.95,
        num_iterations: int = 1,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.output_size = _checks.positive_int("output_size", output_size)
        self.is_training = is_training
        _checks.positive(bound=bound)
        self.bound = bound
        self.num_iterations = _checks.positive_int("num_iterations", num_iterations)

    def __call__(self, inputs: chex.Array) -> jax.Array:
        """Returns `[batch, output_size]`."""
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        size, dtype = inputs.shape[1], jnp.result_type(inputs, 0.0)
        w_init = hk.initializers.TruncatedNormal(size**-0.5)
        w = hk.get_parameter("w", [size, self.output_size], dtype, init=w_init)
        b = hk.get_parameter("b", [self.output_size], dtype, init=jnp.zeros)
        u = hk.get_state(
            "u", [self.output_size], dtype, init=hk.initializers.RandomNormal()
        )
        fixed = jax.lax.stop_gradient(w)
        tiny = jnp.finfo(dtype).tiny  # Weights that are all zero have the norm zero.
        norm = jnp.zeros((), dtype)
        for _ in range(self.num_iterations):
            v = fixed @ u
            v = v / jnp.maximum(jnp.linalg.norm(v), tiny)
            u = fixed.T @ v
            norm = jnp.linalg.norm(u)
            u = u / jnp.maximum(norm, tiny)
        if self.is_training:
            hk.set_state("u", u)
        w = w / jnp.maximum(1, norm / self.bound)
        outputs = jnp.asarray(inputs) @ w
        return outputs + jnp.broadcast_to(b, outputs.shape)


class RandomFourierFeatures(hk.Module):
    """Random features √(2/M) cos(h W / ℓ + β), whose products approximate a kernel.

    With W ~ N(0, 1) and β uniform on [0, 2π), the product of the features of h and h′
    goes to exp(-‖h - h′‖² / 2ℓ²), with an error as 1/√M (Rahimi & Recht, 2007, Random
    features for large-scale kernel machines). W and β are fixed by the seed and part of
    the state, so that they are saved but never train or decay.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> def forward(h):
    ...     return networks.RandomFourierFeatures(4096, 1.0, layer_norm=False)(h)
    >>> net, h = hk.transform_with_state(forward), np.array([[0.0, 0.0], [1.0, 0.0]])
    >>> params, state = net.init(None, h)
    >>> features, _ = net.apply(params, state, None, h)
    >>> round(float(features[0] @ features[1]), 1)  # exp(-½)
    0.6

    Args:
      num_features: M.
      length_scale: ℓ > 0.
      seed: fixes W and β.
      projection_dim: where given, inputs are first projected on as many random
        directions, which are fixed too.
      layer_norm: whether h is the input normalised to mean 0 and variance 1 in each
        row, or the input itself.
      name: name of the module.

    Raises:
      ValueError: if `length_scale` is not > 0 or a size is not an integer >= 1; by a
        call with inputs that are not `[batch, num_features]`.
    """

    def __init__(
        self,
        num_features: int = 1024,
        length_scale: float = 2.0,
        seed: int = 0,
        projection_dim: int | None = None,
        layer_norm: bool = True,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.num_features = _checks.positive_int("num_features", num_features)
        _checks.positive(length_scale=length_scale)
        self.length_scale = length_scale
        if projection_dim is not None:
            _checks.positive_int("projection_dim", projection_dim)
        self.projection_dim = projection_dim
        self.layer_norm = layer_norm
        self.seed = seed

    def __call__(self, inputs: chex.Array) -> jax.Array:
        """Returns `[batch, num_features]`."""
        _checks.shape("inputs", inputs, (None, None), "[batch, num_features]")
        hidden = jnp.asarray(inputs, jnp.result_type(inputs, 0.0))
        keys = jax.random.split(jax.random.PRNGKey(self.seed), 3)

        def normal(key: chex.PRNGKey) -> hk.initializers.Initializer:
            return lambda shape, dtype: jax.random.normal(key, shape, dtype)

        def uniform(shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
            return jax.random.uniform(keys[1], shape, dtype, 0, 2 * np.pi)

        if self.projection_dim is not None:
            shape = [hidden.shape[1], self.projection_dim]
            directions = hk.get_state(
                "projection", shape, hidden.dtype, init=normal(keys[2])
            )
            hidden = hidden @ (directions * shape[0] ** -0.5)
        if self.layer_norm:
            hidden = hk.LayerNorm(-1, create_scale=False, create_offset=False)(hidden)
        shape = [hidden.shape[1], self.num_features]
        w = hk.get_state("w", shape, hidden.dtype, init=normal(keys[0]))
        phases = hk.get_state("b", shape[1:], hidden.dtype, init=uniform)
        angles = hidden @ w / self.length_scale
        angles = angles + jnp.broadcast_to(phases, angles.shape)
        return (2 / self.num_features) ** 0.5 * jnp.cos(angles)


def make_sngp_mlp_enn(
    output_sizes: Sequence[int],
    num_features: int = 1024,
    projection_dim: int | None = None,
    length_scale: float = 2.0,
    bound: float = 0.95,
    is_training: bool = True,
) -> EnnArray:
    """Returns an MLP of `SpectralLinear`s with a last layer on random features.

    Its index is a key that nothing uses: train it as any network, then fit the
    posterior to the network for evaluation, with the same parameters and state.

    >>> import jax, numpy as np
    >>> from enn import datasets, networks, posteriors
    >>> x, key = np.linspace(-1, 1, 10)[:, None], jax.random.key(0)
    >>> enn = networks.make_sngp_mlp_enn([20, 1], num_features=32)
    >>> params, state = enn.init(key, x, key)  # To be trained
    >>> test_enn = networks.make_sngp_mlp_enn([20, 1], 32, is_training=False)
    >>> data = datasets.ArrayBatch(x=x, y=np.sin(x))
    >>> last = {"structure": "shared", "last_layer": "linear", "bias": False}
    >>> sngp = posteriors.fit_laplace(test_enn, params, state, data, "gaussian", **last)
    >>> mean_index = 0 * sngp.enn.indexer(key)
    >>> mean, _ = sngp.enn.apply(sngp.params, sngp.state, x, mean_index)
    >>> np.allclose(mean.preds, test_enn.apply(params, state, x, key)[0].preds)
    True

    This covariance (Φᵀ Φ + I)⁻¹ is that of the authors' code, for classification too,
    where their paper (equation 9) has a Laplace approximation instead: the likelihood
    "categorical" with the structure "per_output".

    Args:
      output_sizes: width of every layer, at least one of them hidden.
      num_features: number of random features.
      projection_dim: see `RandomFourierFeatures`, as for the next.
      length_scale: of the kernel.
      bound: on the spectral norm of every hidden layer.
      is_training: whether the spectral norms follow the weights.

    Returns:
      Network on inputs `[batch, ...]`; `OutputWithPrior` of
      `[batch, output_sizes[-1]]`, with the random features in `extra["features"]`.

    Raises:
      ValueError: for a number out of range, and without a hidden layer.
    """
    *hidden_sizes, num_outputs = layer_sizes("output_sizes", output_sizes)
    if not hidden_sizes:
        raise ValueError(
            f"output_sizes must have a hidden layer, got {list(output_sizes)}."
        )
    _checks.positive(bound=bound, length_scale=length_scale)
    _checks.positive_int("num_features", num_features)
    if projection_dim is not None:
        _checks.positive_int("projection_dim", projection_dim)

    def forward(inputs: chex.Array) -> OutputWithPrior:
        hidden = flat_inputs(inputs)
        for size in hidden_sizes:
            hidden = jax.nn.relu(SpectralLinear(size, is_training, bound)(hidden))
        features = RandomFourierFeatures(
            num_features, length_scale, projection_dim=projection_dim
        )(hidden)
        logits = hk.Linear(num_outputs)(features)
        return OutputWithPrior(logits, extra={FEATURES: features})

    return wrap_net_fn_as_enn(forward)
