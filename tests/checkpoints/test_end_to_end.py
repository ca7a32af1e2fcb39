"""A residual network and its epinet: trained, saved, loaded, sampled."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import dill
import haiku as hk
import jax
import numpy as np
import optax
import pytest

from enn import datasets, losses, supervised
from enn.checkpoints import load_pretrained, save_pretrained, utils
from enn.networks.base import EnnArray
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.epinet.priors import make_cifar_conv_prior
from enn.networks.epinet.resnet import (
    ResnetFinalEpinet,
    ResnetFinalEpinetConfig,
    make_checkpoint_from_config,
)
from enn.networks.forwarders import predict_at_indices
from enn.networks.resnet.base import EnsembleResNetENN
from enn.networks.resnet.lib import ResNetConfig
from tests.checkpoints.server import Server
from tests.support import fast, stored

for package in ("datasets", "grain", "pooch", "safetensors"):
    pytest.importorskip(package)

RESNET = ResNetConfig((16,), (1,), (4,), "V1")
NUM_SAMPLES = 1000


@pytest.fixture(scope="module")
def cifar(store: pathlib.Path) -> datasets.Cifar10:
    folder = store / "end_to_end"
    images = stored.random_images(24, (32, 32, 3))
    encoded = [stored.png(image) for image in images]
    labels = [i % 10 for i in range(24)]
    source = {
        split: str(stored.write_parquet(folder / f"{split}.parquet", encoded, labels))
        for split in ("train", "test")
    }
    return datasets.Cifar10(
        train_batch=8, eval_batch=8, train_data_parallelism=False, source=source
    )


def _batches(cifar: datasets.Cifar10) -> Iterator[datasets.ArrayBatch]:
    for batch in cifar.train_dataset():
        yield batch.replace(y=batch.y[:, None], data_index=batch.data_index[:, None])


def _make_base(is_training: bool) -> EnsembleResNetENN:
    return EnsembleResNetENN(10, is_training=is_training, config=RESNET)


def _config(
    load_base: Any, is_training: bool = False, **kwargs: Any
) -> ResnetFinalEpinetConfig:
    make_base = functools.partial(_make_base, is_training)
    return ResnetFinalEpinetConfig(
        base_checkpoint=EnnCheckpoint("base", load_base, make_base),
        index_dim=3,
        num_classes=10,
        epinet_hiddens=[5],
        epi_prior_scale=4.0,
        add_prior_scale=0.5,
        prior_fn_ctor=functools.partial(make_cifar_conv_prior, 3, legacy_stream=True),
        **kwargs,
    )


def _train(cifar: datasets.Cifar10) -> tuple[Any, Any]:
    """Returns parameters and state of the residual network and the epinet together."""

    images = np.zeros((1, 24, 24, 3), np.float32)
    initial = fast.random_params(_make_base(is_training=True), images)
    config = _config(lambda: initial, is_training=True, freeze_base=False)
    enn = ResnetFinalEpinet(config)
    # Compiled, initialising takes a tenth of the time.
    enn = EnnArray(enn.apply, fast.compiled(enn.init), enn.indexer)
    loss = losses.average_single_index_loss(losses.XentLoss(10), 2)
    experiment = supervised.Experiment(
        enn, loss, optax.adam(1e-2), _batches(cifar), train_log_freq=100
    )
    experiment.train(3)
    return experiment.state.params, experiment.state.network_state


@pytest.mark.slow
def test_loaded_epinet_gives_the_logits_of_the_trained_one(
    cifar: datasets.Cifar10, server: Server, tmp_path: pathlib.Path
) -> None:
    trained, state = _train(cifar)
    base_params, params = hk.data_structures.partition(
        lambda module, *_: module.startswith("res_net"), trained
    )
    assert len(params) == 4
    enn = ResnetFinalEpinet(_config(lambda: (base_params, state)))
    images = next(cifar.eval_datasets()["eval"]).x
    key = jax.random.PRNGKey(5)
    indices = jax.vmap(enn.indexer)(jax.random.split(key, NUM_SAMPLES))
    predict = jax.jit(functools.partial(predict_at_indices, enn))
    expected = predict(params, {}, images, indices)
    assert expected.std(axis=0).min() > 1e-3

    # As the published files are stored.
    for name, variables in [("base", (base_params, state)), ("epinet", (params, {}))]:
        arrays = jax.tree.map(np.asarray, variables)
        content = {"params": arrays[0], "state": arrays[1]}
        server.put(f"{name}.npzs", dill.dumps(content))
    load_base, load = (
        utils.load_from_file(name, server.url) for name in ("base", "epinet")
    )
    checkpoint = make_checkpoint_from_config("epinet", load, _config(load_base))
    sampler = utils.make_epinet_sampler_from_checkpoint(checkpoint, NUM_SAMPLES)
    logits = sampler(images, key)
    assert logits.shape == (NUM_SAMPLES, 8, 10)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert sorted(server.requests) == ["/base.npzs", "/epinet.npzs"]

    # The same from files of one's own, bit by bit.
    save_pretrained(tmp_path / "epinet", params)
    save_pretrained(tmp_path / "base", base_params, state)
    own = tuple(load_pretrained(tmp_path / name) for name in ("epinet", "base"))
    np.testing.assert_array_equal(sampler.func(own, images, key), logits)
