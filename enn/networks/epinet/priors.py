"""Fixed prior functions of images, for an epinet on top of a trained network.

Each is (x, z) -> Σ_k z_k net_k(x) for fixed random networks net_k. They do not depend
on z: under `jax.vmap` over z each network runs once.

Pretrained epinets come with the prior function of their training, remade from its
seed: it needs the random stream that JAX had by default when they were trained. See
`legacy_stream` of each function.
"""

from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.networks.base import OutputWithPrior
from enn.networks.einsum_mlp import make_ensemble_prior
from enn.networks.ensembles import Ensemble
from enn.networks.epinet.base import EpinetWithState
from enn.networks.inputs import as_images, concrete_draws, init_once
from enn.networks.priors import KernelShape, PriorFn, conv_prior_net
from enn.networks.utils import parse_net_output

_IMAGENET_SHAPE = (224, 224, 3)
_CIFAR_SHAPE = (32, 32, 3)


def combine_epinet_and_prior(
    epinet: EpinetWithState, prior_fn: PriorFn, prior_scale: float = 1
) -> EpinetWithState:
    """Returns `epinet` with `prior_scale * prior_fn(inputs, index)` added to its prior.

    >>> import jax, numpy as np
    >>> from enn.networks import epinet
    >>> net = epinet.MLPEpinetWithPrior(index_dim=2, num_classes=1, epinet_hiddens=[4])
    >>> net = epinet.combine_epinet_and_prior(net, lambda x, z: x, prior_scale=10.0)
    >>> x, features, z = np.array([[3.0]]), np.ones([1, 4]), np.zeros(2)
    >>> params, state = net.init(jax.random.key(0), x, z, features)
    >>> out, _ = net.apply(params, state, x, z, features)
    >>> print(out.prior)  # The epinet's own is 0 at z = 0.
    [[30.]]

    Args:
      epinet: the epinet.
      prior_fn: fixed function of inputs and index, `[batch, num_outputs]`.
      prior_scale: factor of the prior function.
    """

    def apply(
        params: hk.Params,
        state: hk.State,
        inputs: chex.Array,
        index: base.Index,
        hidden: chex.Array,
    ) -> tuple[OutputWithPrior, hk.State]:
        out, state = epinet.apply(params, state, inputs, index, hidden)
        prior = out.prior + prior_scale * prior_fn(inputs, index)
        return out._replace(prior=prior), state

    return EpinetWithState(apply, epinet.init, epinet.indexer)


def make_imagenet_mlp_prior(
    num_ensemble: int = 1,
    hidden_sizes: Sequence[int] = (50, 50),
    num_classes: int = 1000,
    seed: int = 23,
    legacy_stream: bool = False,
) -> PriorFn:
    """Returns a prior of MLPs on 43x43 average-pooled ImageNet images.

    (x, z) -> Σ_k z_k net_k(x), for the epinets of Osband et al., 2021,
    https://arxiv.org/abs/2107.08924.

    Args:
      num_ensemble: number of MLPs and size of the index.
      hidden_sizes: widths of their hidden layers.
      num_classes: number of outputs.
      seed: seed of their parameters.
      legacy_stream: whether to draw the parameters from the random stream that was
        JAX's default before 0.5 (`jax_threefry_partitionable` false); otherwise that
        flag decides.

    Returns:
      Function of images `[batch, 224, 224, 3]` (or `[224, 224, 3, batch]`, as the
      input pipeline hands them to a TPU) and index `[num_ensemble]`, with values
      `[batch, num_classes]`. It raises ValueError for other shapes.
    """
    with concrete_draws(legacy_stream):
        pooled = _pool(jnp.zeros((1, *_IMAGENET_SHAPE), jnp.float32))
        mlp_prior = make_ensemble_prior(
            [*hidden_sizes, num_classes], num_ensemble, pooled, seed
        )

    def prior_fn(inputs: chex.Array, index: base.Index) -> chex.Array:
        return mlp_prior(_pool(_imagenet_images(inputs)), index)

    return prior_fn


def make_imagenet_conv_prior(
    num_ensemble: int = 1,
    num_classes: int = 1000,
    seed: int = 23,
    output_channels: Sequence[int] = (4, 8, 8),
    kernel_shapes: Sequence[KernelShape] = (10, 10, 3),
    strides: Sequence[int] = (5, 5, 2),
    legacy_stream: bool = False,
) -> PriorFn:
    """Returns a prior of small convolutional networks on ImageNet images.

    (x, z) -> Σ_k z_k net_k(x), for the epinets of Osband et al., 2021,
    https://arxiv.org/abs/2107.08924.

    Args:
      num_ensemble: number of networks and size of the index.
      num_classes: number of outputs.
      seed: seed of their parameters.
      output_channels: channels of each convolution.
      kernel_shapes: kernel size of each convolution.
      strides: stride of each convolution.
      legacy_stream: as in `make_imagenet_mlp_prior`.

    Returns:
      Function as in `make_imagenet_mlp_prior`.

    Raises:
      ValueError: if the three lists have different lengths.
    """
    net = conv_prior_net(num_classes, output_channels, kernel_shapes, strides)

    def preprocessed(inputs: chex.Array) -> jax.Array:
        return net(_imagenet_images(inputs))

    return _make_conv_prior(
        preprocessed, _IMAGENET_SHAPE, num_ensemble, seed, legacy_stream
    )


def make_cifar_conv_prior(
    num_ensemble: int = 1,
    num_classes: int = 10,
    seed: int = 23,
    output_channels: Sequence[int] = (4, 8, 4),
    kernel_shapes: Sequence[KernelShape] | None = None,
    legacy_stream: bool = False,
) -> PriorFn:
    """Returns a prior of small convolutional networks on images resized to 32x32.

    (x, z) -> Σ_k z_k net_k(x), for the epinets of Osband et al., 2021,
    https://arxiv.org/abs/2107.08924.

    Args:
      num_ensemble: number of networks and size of the index.
      num_classes: number of outputs.
      seed: seed of their parameters.
      output_channels: channels of each convolution; all have stride 2.
      kernel_shapes: kernel size of each convolution, 5 by default.
      legacy_stream: as in `make_imagenet_mlp_prior`.

    Returns:
      Function of images `[batch, height, width, channels]` and index
      `[num_ensemble]`, with values `[batch, num_classes]`.

    Raises:
      ValueError: if the lists have different lengths.
    """
    num_layers = len(output_channels)
    kernels = [5] * num_layers if kernel_shapes is None else kernel_shapes
    net = conv_prior_net(num_classes, output_channels, kernels, [2] * num_layers)

    def preprocessed(inputs: chex.Array) -> jax.Array:
        images = as_images(inputs)
        shape = (images.shape[0], *_CIFAR_SHAPE)
        return net(jax.image.resize(images, shape, "bilinear"))

    return _make_conv_prior(
        preprocessed, _CIFAR_SHAPE, num_ensemble, seed, legacy_stream
    )


def _make_conv_prior(
    net: Callable[[chex.Array], chex.Array],
    image_shape: tuple[int, ...],
    num_ensemble: int,
    seed: int,
    legacy_stream: bool,
) -> PriorFn:
    model = hk.without_apply_rng(hk.transform(net))
    ensemble = Ensemble(model, num_ensemble)
    with concrete_draws(legacy_stream):
        dummy = jnp.zeros((1, *image_shape), jnp.float32)
        rng = hk.PRNGSequence(seed)
        # The first key is left out: the numbers of the original `enn` depend on it.
        next(rng)
        params = init_once(ensemble.init, next(rng), dummy, 0)

    @jax.jit
    def combine(params: hk.Params, inputs: chex.Array, index: base.Index) -> jax.Array:
        networks = jnp.arange(num_ensemble)
        outputs = jax.vmap(ensemble.apply, (None, None, 0))(params, inputs, networks)
        return jnp.tensordot(index, parse_net_output(outputs), 1)

    def prior_fn(inputs: chex.Array, index: base.Index) -> jax.Array:
        _checks.shape("index", index, (num_ensemble,), f"[{num_ensemble}]")
        return combine(params, inputs, index)

    return prior_fn


def _pool(images: jax.Array) -> jax.Array:
    return hk.avg_pool(images, (10, 10, 1), (5, 5, 1), "VALID")


def _imagenet_images(inputs: chex.Array) -> jax.Array:
    """Returns images as `[batch, 224, 224, 3]`, from either order of the axes."""
    images = as_images(inputs)
    if images.shape[:-1] == _IMAGENET_SHAPE:
        images = jnp.transpose(images, (3, 0, 1, 2))
    expected = (None, *_IMAGENET_SHAPE)
    _checks.shape("inputs", images, expected, "[batch, 224, 224, 3]")
    return images
