import enum
import pathlib
from typing import Any

import dill
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.checkpoints import downloads, utils
from enn.checkpoints.base import EnnCheckpoint
from enn.checkpoints.catalog import Cifar10Models, Cifar100Models, ImagenetModels
from enn.checkpoints.epinet import EpinetCheckpoint
from enn.datasets.cifar import Cifar10, Cifar100
from enn.datasets.imagenet import Imagenet
from enn.networks.epinet.last_layer import parse_base_hidden
from enn.networks.epinet.priors import make_cifar_conv_prior, make_imagenet_conv_prior
from enn.networks.resnet.lib import CanonicalResNets
from tests.support import golden

pooch = pytest.importorskip("pooch")

URL = "https://storage.googleapis.com/dm-enn"
LAYERS = {
    Cifar10Models: (18, 32, 44, 56, 110),
    Cifar100Models: (18, 32, 44, 56, 110),
    ImagenetModels: (50, 101, 152, 200),
}
MODELS = [(models, n) for models, layers in LAYERS.items() for n in layers]
# Temperatures of networks and of epinets, factor of the logits under an epinet, then
# classes, index, scales of the two priors, and the function that is the second one.
SETTINGS: dict[Any, Any] = {
    Cifar10Models: (None, None, 1, 10, 20, 4.0, 0.0, make_cifar_conv_prior),
    Cifar100Models: (None, None, 1, 100, 20, 0.5, 0.5, make_cifar_conv_prior),
    ImagenetModels: (0.8, 0.7, 1.25, 1000, 30, 1.0, 1.0, make_imagenet_conv_prior),
}
DATASETS = {Cifar10Models: Cifar10, Cifar100Models: Cifar100, ImagenetModels: Imagenet}
NAMES = {
    Cifar10Models: "cifar10",
    Cifar100Models: "cifar100",
    ImagenetModels: "imagenet",
}


def _url(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns where a checkpoint's parameters would be downloaded from."""

    class Asked(Exception):  # noqa: N818
        pass

    def read_url(url: str, *args: Any) -> None:
        raise Asked(url)

    monkeypatch.setattr(downloads, "read_url", read_url)
    with pytest.raises(Asked) as asked:
        checkpoint.load_fn()
    return asked.value.args[0]


@pytest.mark.parametrize("models", LAYERS)
def test_members(models: type[enum.Enum]) -> None:
    names = [f"RESNET_{n}" for n in LAYERS[models]]
    assert list(models.__members__) == [*names, *(f"{n}_FINAL_EPINET" for n in names)]
    assert len(set(models)) == len(models.__members__)


@pytest.mark.parametrize(("models", "n"), MODELS)
def test_base_networks(models: Any, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[models]
    checkpoint = models[f"RESNET_{n}"].value
    assert isinstance(checkpoint, EnnCheckpoint)
    assert checkpoint.name == f"{name}_resnet{n}"
    assert checkpoint.tuned_eval_temperature == SETTINGS[models][0]
    assert type(checkpoint.dataset) is DATASETS[models]
    assert checkpoint.report_cl is None
    assert checkpoint.enn_ctor.keywords == {
        "num_ensemble": 1,
        "is_training": False,
        "enable_double_transpose": models is ImagenetModels,
        "config": CanonicalResNets[f"RESNET_{n}"].value,
    }
    assert checkpoint.enn_ctor.args == (SETTINGS[models][3],)
    assert _url(checkpoint, monkeypatch) == f"{URL}/resnet{n}_{name}.npzs"


@pytest.mark.parametrize(("models", "n"), MODELS)
def test_final_epinets(models: Any, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[models]
    _, temperature, scale, classes, index_dim, *scales, make_prior = SETTINGS[models]
    checkpoint = models[f"RESNET_{n}_FINAL_EPINET"].value
    assert isinstance(checkpoint, EpinetCheckpoint)
    # One is published under the name of another network.
    is_misnamed = models is Cifar100Models and n == 18
    assert checkpoint.name == f"{name}_final_epinet_resnet{50 if is_misnamed else n}"
    assert checkpoint.tuned_eval_temperature == temperature
    assert checkpoint.base_scale == scale
    assert checkpoint.base_cpt.name == f"{name}_resnet{n}"
    unset = (checkpoint.dataset, checkpoint.base_index, checkpoint.report_cl)
    assert unset == (None, None, None)
    assert checkpoint.parse_hidden is parse_base_hidden
    assert _url(checkpoint, monkeypatch) == f"{URL}/resnet{n}_epinet_{name}.npzs"

    (config,) = checkpoint.epinet_ctor.args
    assert config.base_checkpoint is checkpoint.base_cpt
    assert (config.num_classes, config.index_dim) == (classes, index_dim)
    assert config.epinet_hiddens == [50]
    assert config.prior_epinet_hiddens is None
    assert config.base_logits_scale == scale
    assert [config.epi_prior_scale, config.add_prior_scale] == scales
    assert (config.freeze_base, config.seed, config.base_index) == (True, 23, None)
    prior = config.prior_fn_ctor
    assert prior.func is make_prior
    expected = {"num_ensemble": index_dim, "legacy_stream": True}
    assert {"num_classes": 1000, **prior.keywords} == expected | {
        "num_classes": classes
    }


# Parameter leaves and scalars, state leaves and scalars, as they were published.
TREES = [
    (Cifar10Models.RESNET_18, 41, 172_506, 78, 1_882),
    (Cifar100Models.RESNET_18, 41, 178_356, 78, 1_882),
    (ImagenetModels.RESNET_50, 153, 25_549_352, 294, 90_978),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", *"abcd"), TREES)
def test_trees(model: Any, a: int, b: int, c: int, d: int) -> None:
    enn, images = model.value.enn_ctor(), jnp.ones((1, 32, 32, 3))
    init = jax.eval_shape(enn.init, golden.keys(0), images, 0)
    params, state = (jax.tree.leaves(tree) for tree in init)
    sizes = [sum(leaf.size for leaf in leaves) for leaves in (params, state)]
    assert (len(params), sizes[0], len(state), sizes[1]) == (a, b, c, d)


@pytest.mark.slow
def test_prior_functions_come_from_the_stream_of_their_training() -> None:
    (config,) = Cifar100Models.RESNET_18_FINAL_EPINET.value.epinet_ctor.args
    make_prior = config.prior_fn_ctor
    # The numbers of JAX before 0.5; today's are 0.015639 and 0.000126.
    prior = make_prior.func(2, 10, legacy_stream=make_prior.keywords["legacy_stream"])
    values = prior(np.ones((1, 32, 32, 3), np.float32), np.array([1.0, -1.0]))
    np.testing.assert_allclose(values[0, :2], [-0.064599, 0.301349], atol=1e-5)
    assert jax.config.jax_threefry_partitionable


def _put(cache: pathlib.Path, file_name: str, params: Any, state: Any) -> None:
    """Puts a file into the cache, as if it had been downloaded."""
    cache.mkdir(exist_ok=True)
    name = pooch.utils.unique_file_name(f"{URL}/{file_name}.npzs")
    (cache / name).write_bytes(dill.dumps({"params": params, "state": state}))


def _random(path: Any, leaf: Any) -> np.ndarray:
    """Returns values that keep activations near 1."""
    draw = np.random.default_rng(leaf.size)
    if path[-1].key == "w":
        fan_in = np.prod(leaf.shape[1:-1])
        values = draw.normal(size=leaf.shape) * np.sqrt(2 / fan_in)
    else:
        values = draw.uniform(0.5, 1.5, leaf.shape)
    return values.astype(leaf.dtype)


def _linear(num_inputs: int, num_outputs: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(num_inputs)
    w = draw.normal(size=(num_inputs, num_outputs)).astype(np.float32)
    return {"w": w / num_inputs, "b": np.zeros(num_outputs, np.float32)}


@pytest.fixture
def epinet_params() -> dict[str, dict[str, np.ndarray]]:
    """What the file of a CIFAR-10 epinet holds."""
    return {
        f"{part}/~/mlp/~/linear_{i}": _linear(*sizes)
        for part in ("train_epinet", "prior_epinet")
        for i, sizes in enumerate([(64 + 20, 50), (50, 10 * 20)])
    }


@pytest.mark.slow
def test_an_epinet_of_the_catalog_runs_offline(
    cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch, epinet_params: Any
) -> None:
    monkeypatch.setenv("ENN_OFFLINE", "1")
    checkpoint = Cifar10Models.RESNET_18_FINAL_EPINET.value
    enn = checkpoint.base_cpt.enn_ctor()
    images = golden.normal(2, 8, 8, 3)
    shapes = jax.eval_shape(enn.init, golden.keys(0), images, 0)
    params, state = jax.tree.map_with_path(_random, shapes)
    _put(cache, "resnet18_cifar10", params, state)
    _put(cache, "resnet18_epinet_cifar10", epinet_params, {})
    sampler = utils.make_epinet_sampler_from_checkpoint(checkpoint)
    key = jax.random.PRNGKey(0)
    logits = sampler(images, key)
    assert logits.shape == (1000, 2, 10)

    out, _ = jax.jit(enn.apply)(params, state, images, 0)
    hidden = np.asarray(out.extra["final_out"])
    assert hidden.shape == (2, 64)
    for sample, sample_key in zip(
        logits[::333], jax.random.split(key, 1000)[::333], strict=True
    ):
        z = np.asarray(jax.random.normal(sample_key, (20,)))
        parts = []
        for part in ("train_epinet", "prior_epinet"):
            first, last = (
                epinet_params[f"{part}/~/mlp/~/linear_{i}"] for i in range(2)
            )
            features = np.concatenate([np.tile(z, (2, 1)), hidden], axis=1)
            out_z = np.maximum(features @ first["w"], 0) @ last["w"]
            parts.append(out_z.reshape(2, 10, 20) @ z)
        expected = out.train + parts[0] + 4.0 * parts[1]
        np.testing.assert_allclose(sample, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_files_of_another_network_are_refused(
    cache: pathlib.Path, epinet_params: Any
) -> None:
    checkpoint = Cifar10Models.RESNET_18_FINAL_EPINET.value
    del epinet_params["prior_epinet/~/mlp/~/linear_1"]["b"]
    _put(cache, "resnet18_epinet_cifar10", epinet_params, {})
    with pytest.raises(
        ValueError,
        match=r"resnet18_epinet_cifar10\.npzs is of another network: "
        r"\['params'\]\['prior_epinet/~/mlp/~/linear_1'\]\['b'\] is missing\.",
    ):
        checkpoint.load_fn()
    _put(cache, "resnet18_cifar10", epinet_params, {})
    with pytest.raises(ValueError, match=r"\['res_net/~/final_fc'\]\['b'\] is missing"):
        checkpoint.base_cpt.load_fn()
