"""Variational autoencoders, trained as epistemic networks.

Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114. The epistemic index is the
noise of the latents.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import _checks, base, loggers, losses, supervised
from enn.datasets.base import ArrayBatch
from enn.datasets.in_memory import make_batch_iterator
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.indexers import GaussianIndexer, PrngIndexer
from enn.networks.inputs import init_once


class MeanLogVariance(NamedTuple):
    """Parameters of independent normal variables.

    Attributes:
      mean: `[batch, dim]`; the logits, where they describe Bernoulli variables.
      log_var: logarithms of the variances, `[batch, dim]`.
    """

    mean: jax.Array
    log_var: jax.Array


PreTransformFn = Callable[[base.AnyArray], MeanLogVariance]
"""An encoder or decoder as a function to be transformed by Haiku."""

PostTransformFn = Callable[[base.AnyArray], MeanLogVariance]
"""An encoder or decoder as a pure function."""


class TrainedVAE(NamedTuple):
    """A trained variational autoencoder, as two compiled functions.

    Attributes:
      encoder: maps data `[batch, dim]` to the distribution of their latents.
      decoder: maps latents `[batch, latent_dim]` to the distribution of data.
    """

    encoder: PostTransformFn
    decoder: PostTransformFn


@dataclasses.dataclass
class MLPVAEConfig:
    """Settings of a variational autoencoder of MLPs.

    Attributes:
      hidden_sizes: widths of the encoder's hidden layers; the decoder has them in
        reverse.
      latent_dim: number of latents.
      activation: nonlinearity after every hidden layer.
      bernoulli_decoder: whether data are Bernoulli rather than normal variables.
      num_batches: number of training steps.
      batch_size: number of rows of a batch; may exceed the data.
      learning_rate: of Adam.
      noise_per_row: see `make_vae_enn`.
    """

    hidden_sizes: Sequence[int] = (256, 64)
    latent_dim: int = 2
    activation: Callable[[jax.Array], jax.Array] = jax.nn.tanh
    bernoulli_decoder: bool = True
    num_batches: int = 10_000
    batch_size: int = 1_000
    learning_rate: float = 1e-3
    noise_per_row: bool = False


def get_mlp_vae_encoder_decoder(
    data_x: chex.Array,
    config: MLPVAEConfig | None = None,
    seed: int = 0,
    logger: loggers.Logger | None = None,
) -> TrainedVAE:
    """Trains a variational autoencoder of MLPs.

    As in Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, appendix C.

    >>> import numpy as np
    >>> from enn import extra, loggers
    >>> x, quiet = np.eye(4)[np.arange(100) % 4], loggers.NullLogger()
    >>> sizes = {"hidden_sizes": [16], "num_batches": 300, "batch_size": 100}
    >>> config = extra.MLPVAEConfig(**sizes, learning_rate=0.01)
    >>> vae = extra.get_mlp_vae_encoder_decoder(x, config, logger=quiet)
    >>> decoded = vae.decoder(vae.encoder(x[:4]).mean).mean
    >>> print(decoded.argmax(axis=1))  # Each row again, from two numbers
    [0 1 2 3]

    Args:
      data_x: `[num_data, dim]`; in [0, 1] for the Bernoulli decoder, whose `log_var`
        is zero.
      config: network and training; `MLPVAEConfig()` if None.
      seed: seed of initialisation, noise and the order of the data.
      logger: where training writes; by default rows are printed.

    Raises:
      ValueError: unless `data_x` is a matrix with rows and every size an integer >= 1.
    """
    config = config or MLPVAEConfig()
    data_x = _checks.float_rows("data_x", data_x)
    sizes = [_checks.positive_int("hidden_sizes", s) for s in config.hidden_sizes]

    def hidden(name: str, sizes: Sequence[int], inputs: chex.Array) -> chex.Array:
        for size in sizes:
            inputs = config.activation(hk.Linear(size, name=name)(inputs))
        return inputs

    def encoder(inputs: chex.Array) -> MeanLogVariance:
        out = hidden("encoder", sizes, inputs)
        return MeanLogVariance(
            hk.Linear(config.latent_dim, name="encoder_mean")(out),
            hk.Linear(config.latent_dim, name="encoder_log_var")(out),
        )

    def decoder(latents: chex.Array) -> MeanLogVariance:
        out = hidden("decoder", sizes[::-1], latents)
        mean = hk.Linear(data_x.shape[1], name="decoder_mean")(out)
        if config.bernoulli_decoder:
            return MeanLogVariance(mean, jnp.zeros_like(mean))
        log_var = hk.Linear(data_x.shape[1], name="decoder_log_var")(out)
        return MeanLogVariance(mean, log_var)

    return train_vae(
        encoder,
        decoder,
        config.latent_dim,
        data_x,
        losses.get_log_likelihood_fn(config.bernoulli_decoder),
        optax.adam(config.learning_rate),
        config.num_batches,
        config.batch_size,
        seed,
        config.noise_per_row,
        logger,
    )


def make_vae_enn(
    encoder: PreTransformFn,
    decoder: PreTransformFn,
    latent_dim: int,
    noise_per_row: bool = False,
) -> EnnArray:
    """Returns the network that encodes, adds noise to the latents and decodes.

    Its output is the decoder's mean, with `latent_mean`, `latent_log_var`, `out_mean`
    and `out_log_var` in `extra`.

    Latents are mean + exp(log_var / 2) · z for z ~ N(0, I) (Kingma & Welling, 2014,
    https://arxiv.org/abs/1312.6114, section 2.4).

    Args:
      encoder: Haiku function of data `[batch, dim]`.
      decoder: Haiku function of latents `[batch, latent_dim]`.
      latent_dim: number of latents.
      noise_per_row: whether each row has noise of its own, which makes the gradient
        less noisy; the index is then a random key. Otherwise the index is the noise,
        `[latent_dim]`, of all rows: numbers follow the original `enn`.

    Raises:
      ValueError: unless `latent_dim` is an integer >= 1; by the network, if the encoder
        or decoder returns another shape than it should.
    """
    _checks.positive_int("latent_dim", latent_dim)

    def forward(inputs: chex.Array, index: base.Index) -> OutputWithPrior:
        latent = _encode(encoder, latent_dim, inputs)
        if noise_per_row:
            noise = jax.random.normal(index, latent.mean.shape, latent.mean.dtype)
        else:
            noise = index[None]
        out = decoder(latent.mean + jnp.exp(latent.log_var / 2) * noise)
        _check_shape("decoder", out, inputs.shape)
        extra: dict[str, chex.Array] = {
            "latent_mean": latent.mean,
            "latent_log_var": latent.log_var,
            "out_mean": out.mean,
            "out_log_var": out.log_var,
        }
        return OutputWithPrior(train=out.mean, extra=extra)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    indexer = PrngIndexer() if noise_per_row else GaussianIndexer(latent_dim)
    init = functools.partial(init_once, transformed.init)
    return EnnArray(transformed.apply, init, indexer)


def train_vae(
    encoder: PreTransformFn,
    decoder: PreTransformFn,
    latent_dim: int,
    data_x: chex.Array,
    log_likelihood_fn: losses.LogLikelihoodFn,
    optimizer: optax.GradientTransformation,
    num_batches: int = 10_000,
    batch_size: int = 1_000,
    seed: int = 0,
    noise_per_row: bool = False,
    logger: loggers.Logger | None = None,
) -> TrainedVAE:
    """Trains an encoder and a decoder.

    By `losses.VaeLoss` (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114).

    Args:
      encoder: as for `make_vae_enn`.
      decoder: as for `make_vae_enn`.
      latent_dim: number of latents.
      data_x: `[num_data, dim]`.
      log_likelihood_fn: log-likelihood of a batch under the network's output, such as
        `enn.losses.get_log_likelihood_fn(bernoulli_decoder=True)`.
      optimizer: any optax transformation.
      num_batches: number of training steps, about 100 of which are logged.
      batch_size: number of rows of a batch; may exceed the data.
      seed: seed of initialisation, noise and the order of the data.
      noise_per_row: as for `make_vae_enn`.
      logger: where training writes; by default rows are printed.

    Raises:
      ValueError: unless `data_x` is a matrix with rows, or if a number or the shape of
        what the encoder or decoder returns is wrong.
    """
    _checks.non_negative_int("num_batches", num_batches)
    data_x = _checks.float_rows("data_x", data_x)
    num_data, dim = data_x.shape
    single_loss = losses.VaeLoss(log_likelihood_fn, losses.latent_kl_fn)
    experiment = supervised.Experiment(
        make_vae_enn(encoder, decoder, latent_dim, noise_per_row),
        losses.average_single_index_loss(single_loss, 1),
        optimizer,
        make_batch_iterator(
            ArrayBatch(x=data_x, y=np.zeros(num_data)), batch_size, seed
        ),
        seed=seed,
        logger=logger,
        train_log_freq=max(num_batches // 100, 1),
    )
    experiment.train(num_batches)
    params, state, _ = experiment.state

    def encode(inputs: chex.Array) -> MeanLogVariance:
        return _encode(encoder, latent_dim, inputs)

    def decode(latents: chex.Array) -> MeanLogVariance:
        # Haiku numbers modules of one name in the order of their making: the decoder's
        # follow those of the encoder.
        encoder(jnp.zeros([1, dim], data_x.dtype))
        out = decoder(latents)
        _check_shape("decoder", out, (latents.shape[0], dim))
        return out

    def trained(function: PreTransformFn) -> PostTransformFn:
        transformed = hk.without_apply_rng(hk.transform_with_state(function))
        return jax.jit(lambda inputs: transformed.apply(params, state, inputs)[0])

    return TrainedVAE(trained(encode), trained(decode))


def _encode(
    encoder: PreTransformFn, latent_dim: int, inputs: chex.Array
) -> MeanLogVariance:
    latent = encoder(inputs)
    _check_shape("encoder", latent, (inputs.shape[0], latent_dim))
    return latent


def _check_shape(name: str, out: MeanLogVariance, shape: tuple[int, ...]) -> None:
    for field, array in zip(("mean", "log_var"), out, strict=True):
        _checks.shape(f"{field} of the {name}", array, shape, str(list(shape)))
