"""Loading published networks, and their predictions at many epistemic indices.

Parameters are loaded once, when a sampler is made, and are arguments of its compiled
program. What does not depend on the index, such as the base network of an epinet, is
computed once per call.
"""

import contextlib
import functools
import math
import os
import pathlib
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks, base
from enn.checkpoints import downloads
from enn.checkpoints.unpickling import UnsafePickleError, load_arrays
from enn.networks.base import OutputWithPrior
from enn.networks.checkpoints import EnnCheckpoint, ParamsStateLoadFn
from enn.networks.epinet.checkpoint import EpinetCheckpoint
from enn.networks.forwarders import predict_at_indices
from enn.networks.indexers import draw_indices
from enn.networks.many_indices.index_map import map_indices
from enn.networks.utils import parse_net_output

URL_PATH = "https://storage.googleapis.com/dm-enn"
_Sample = Callable[[Any, chex.Array, chex.PRNGKey], chex.Array]
"""Variables, inputs and a key -> logits `[num_enn_samples, batch, num_classes]`."""


def init_from_file(
    file_name: str,
    url_path: str | os.PathLike[str] = URL_PATH,
    sha256: str | None = None,
    allow: Mapping[str, Callable[..., Any]] | None = None,
) -> tuple[hk.Params, hk.State]:
    """Returns the parameters and state in a published file.

    The file is `url_path/file_name.npzs`: one pickle of a dict with the keys `params`
    and `state`, each a nested mapping of arrays. It is never unpickled as Python does
    it: see `enn.checkpoints.downloads` and `enn.checkpoints.unpickling`. All leaves
    become JAX arrays of the types that JAX has.

    Args:
      file_name: name of the file without its suffix.
      url_path: address of its folder, or a folder on this computer.
      sha256: hexadecimal SHA-256 that the file must have; by default that of its first
        download.
      allow: see `enn.checkpoints.unpickling.load_arrays`.

    Raises:
      OSError, ValueError: as `downloads.read_url` does; ValueError for a file that
        holds anything but arrays, or arrays in another place, naming the file.
    """
    address = f"{str(url_path).rstrip('/')}/{file_name}.npzs"
    content = read_arrays(address, sha256, allow)
    if not isinstance(content, dict) or not {"params", "state"} <= set(content):
        raise ValueError(f"{address} has no dict with keys 'params' and 'state'.")

    def to_jax(path: Any, leaf: Any) -> jax.Array:
        if not isinstance(leaf, str | bytes | bytearray):
            with contextlib.suppress(OverflowError):  # Integers may be of any size.
                return jnp.array(leaf)
        where = jax.tree_util.keystr(path)
        raise ValueError(f"{address}: {where} must be an array, got {leaf!r:.80}.")

    tree = {name: content[name] for name in ("params", "state")}
    loaded = jax.tree.map_with_path(to_jax, tree)
    return loaded["params"], loaded["state"]


def load_from_file(
    file_name: str,
    url_path: str | os.PathLike[str] = URL_PATH,
    sha256: str | None = None,
    allow: Mapping[str, Callable[..., Any]] | None = None,
) -> ParamsStateLoadFn:
    """Returns a function that calls `init_from_file` when the parameters are needed."""
    return functools.partial(init_from_file, file_name, url_path, sha256, allow)


def read_arrays(
    address: str,
    sha256: str | None = None,
    allow: Mapping[str, Callable[..., Any]] | None = None,
) -> Any:
    """Returns the NumPy arrays and plain containers in a published file.

    Args:
      address: URL of the file, or its path on this computer.
      sha256: as in `init_from_file`.
      allow: as in `init_from_file`.

    Raises:
      OSError: if the file cannot be had.
      ValueError: if it holds anything else, naming the file.
    """

    def read(content: bytes) -> Any:
        try:
            return load_arrays(content, allow)
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{address}: {error}") from error

    url = urllib.parse.urlsplit(address)
    if "://" in address and url.scheme != "file":
        return downloads.read_url(address, read, sha256)
    path = urllib.request.url2pathname(url.path) if url.scheme == "file" else address
    content = pathlib.Path(path).read_bytes()
    downloads.check_sha256(address, content, sha256)
    return read(content)


@runtime_checkable
class EnnSampler(Protocol):
    """Draws predictions of a trained network."""

    def __call__(self, inputs: base.AnyArray, key: chex.PRNGKey, /) -> chex.Array:
        """Returns logits `[num_enn_samples, batch, num_classes]`."""
        ...


@jax.jit
def average_logits(array: chex.Array) -> jax.Array:
    """Returns the logits of the average probabilities, log (1/S) Σ_s softmax(x_s).

    They are finite for every class that is not itself at -inf, however unlikely.

    Args:
      array: logits `[num_enn_samples, batch, num_classes]`.

    Returns:
      Log-probabilities `[batch, num_classes]`.

    Raises:
      ValueError: for another number of axes.
    """
    _check("array", array)
    log_probs = jax.nn.log_softmax(jnp.asarray(array))
    return jax.nn.logsumexp(log_probs, axis=0) - math.log(array.shape[0])


def make_enn_sampler_from_checkpoint(
    checkpoint: EnnCheckpoint,
    num_enn_samples: int,
    temperature_rescale: bool = False,
    batch_z: int | None = None,
) -> EnnSampler:
    """Returns a sampler of a trained network, compiled at its first call.

    Args:
      checkpoint: the network. Its parameters are loaded now.
      num_enn_samples: how many indices to draw in a call.
      temperature_rescale: whether to divide logits by the checkpoint's
        `tuned_eval_temperature`, where it has one.
      batch_z: how many indices to evaluate at once. By default so many that memory
        stays bounded; the result does not depend on it.

    Raises:
      ValueError: unless `num_enn_samples` is an integer >= 1; by a call, unless
        `batch_z` is one, or if the network's output at an index is not
        `[batch, num_classes]`.
    """
    sample, variables = _enn_sample(
        checkpoint, num_enn_samples, temperature_rescale, batch_z
    )
    return functools.partial(jax.jit(sample), variables)


def load_checkpoint_as_logit_fn(
    checkpoint: EnnCheckpoint,
    num_enn_samples: int = 1,
    temperature_rescale: bool = False,
    seed: int = 0,
    batch_z: int | None = None,
) -> Callable[[chex.Array], OutputWithPrior]:
    """Returns the marginal prediction of a trained network, at fixed indices.

    Args:
      checkpoint: as in `make_enn_sampler_from_checkpoint`.
      num_enn_samples: how many indices to average over.
      temperature_rescale: as in `make_enn_sampler_from_checkpoint`.
      seed: seed of the indices.
      batch_z: as in `make_enn_sampler_from_checkpoint`.

    Returns:
      Function of inputs, with the `average_logits` `[batch, num_classes]` as `train`
      and a zero prior.
    """
    forward = _average(
        *_enn_sample(checkpoint, num_enn_samples, temperature_rescale, batch_z), seed
    )
    return lambda inputs: OutputWithPrior(train=forward(inputs))


def make_epinet_sampler_from_checkpoint(
    epinet_cpt: EpinetCheckpoint,
    num_enn_samples: int = 1000,
    temperature_rescale: bool = False,
    batch_z: int | None = None,
) -> EnnSampler:
    """Returns a sampler of a trained epinet on its base network.

    The base network runs once a call, whatever the number of indices, and so does
    what the epinet computes without its index.

    Args:
      epinet_cpt: the epinet. Its parameters and the base network's are loaded now.
      num_enn_samples: how many indices to draw in a call.
      temperature_rescale: whether to divide logits by the `tuned_eval_temperature` of
        the epinet's checkpoint, where it has one.
      batch_z: as in `make_enn_sampler_from_checkpoint`.

    Raises:
      ValueError: unless `num_enn_samples` is an integer >= 1; by a call, unless
        `batch_z` is one, or if the network's output at an index is not
        `[batch, num_classes]`.
    """
    sample, variables = _epinet_sample(
        epinet_cpt, num_enn_samples, temperature_rescale, batch_z
    )
    return functools.partial(jax.jit(sample), variables)


def make_epinet_forward_fn(
    epinet_cpt: EpinetCheckpoint,
    num_enn_samples: int = 1000,
    temperature_rescale: bool = False,
    seed: int = 44,
    batch_z: int | None = None,
) -> Callable[[chex.Array], jax.Array]:
    """Returns the marginal prediction of a trained epinet, at fixed indices.

    Args:
      epinet_cpt: as in `make_epinet_sampler_from_checkpoint`.
      num_enn_samples: how many indices to average over.
      temperature_rescale: as in `make_epinet_sampler_from_checkpoint`.
      seed: seed of the indices.
      batch_z: as in `make_enn_sampler_from_checkpoint`.

    Returns:
      Function of inputs, with the `average_logits` `[batch, num_classes]`.
    """
    return _average(
        *_epinet_sample(epinet_cpt, num_enn_samples, temperature_rescale, batch_z), seed
    )


def _enn_sample(
    checkpoint: EnnCheckpoint,
    num_enn_samples: int,
    temperature_rescale: bool,
    batch_z: int | None,
) -> tuple[_Sample, Any]:
    enn = checkpoint.enn_ctor()
    _checks.positive_int("num_enn_samples", num_enn_samples)
    temperature = _temperature(checkpoint, temperature_rescale)

    def sample(variables: Any, inputs: chex.Array, key: chex.PRNGKey) -> jax.Array:
        params, state = variables
        indices = draw_indices(enn.indexer, key, num_enn_samples)
        logits = predict_at_indices(enn, params, state, inputs, indices, batch_z)
        _check("The network's outputs", logits)
        return logits / temperature

    return sample, _load(checkpoint)


def _epinet_sample(
    epinet_cpt: EpinetCheckpoint,
    num_enn_samples: int,
    temperature_rescale: bool,
    batch_z: int | None,
) -> tuple[_Sample, Any]:
    base_cpt = epinet_cpt.base_cpt
    epinet, base_enn = epinet_cpt.epinet_ctor(), base_cpt.enn_ctor()
    _checks.positive_int("num_enn_samples", num_enn_samples)
    temperature = _temperature(epinet_cpt, temperature_rescale)
    base_index = epinet_cpt.base_index
    if base_index is None:
        base_index = base_enn.indexer(jax.random.PRNGKey(0))

    def sample(variables: Any, inputs: chex.Array, key: chex.PRNGKey) -> jax.Array:
        (params, state), (base_params, base_state) = variables
        base_out, _ = base_enn.apply(base_params, base_state, inputs, base_index)
        hidden = epinet_cpt.parse_hidden(base_out)
        base_logits = parse_net_output(base_out) * epinet_cpt.base_scale

        def predict(index: base.Index) -> jax.Array:
            out, _ = epinet.apply(params, state, inputs, index, hidden)
            return base_logits + parse_net_output(out)

        indices = draw_indices(epinet.indexer, key, num_enn_samples)
        logits = map_indices(predict, indices, batch_z)
        _check("The network's outputs", logits)
        return logits / temperature

    variables = _load(epinet_cpt)
    # An epinet that was trained with its base network has one file for both.
    is_shared = base_cpt.load_fn is epinet_cpt.load_fn
    return sample, (variables, variables if is_shared else _load(base_cpt))


def _average(
    sample: _Sample, variables: Any, seed: int
) -> Callable[[chex.Array], jax.Array]:
    @jax.jit
    def forward(variables: Any, inputs: chex.Array) -> jax.Array:
        return average_logits(sample(variables, inputs, jax.random.PRNGKey(seed)))

    return functools.partial(forward, variables)


def _temperature(
    checkpoint: EnnCheckpoint | EpinetCheckpoint, temperature_rescale: bool
) -> float:
    tuned = checkpoint.tuned_eval_temperature if temperature_rescale else None
    return tuned or 1.0


def _load(checkpoint: EnnCheckpoint | EpinetCheckpoint) -> Any:
    return jax.tree.map(jnp.asarray, checkpoint.load_fn())


def _check(name: str, logits: chex.Array) -> None:
    axes = "[num_enn_samples, batch, num_classes]"
    _checks.shape(name, logits, (None, None, None), axes)
