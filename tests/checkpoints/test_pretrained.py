import hashlib
import json
import pathlib
import sys
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from enn import checkpoints, networks
from enn.checkpoints import load_pretrained, save_pretrained
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.resnet.base import EnsembleResNetENN
from tests.support import fast
from tests.support.resnets import IMAGES, TINY

safetensors = pytest.importorskip("safetensors.numpy")

PARAMS = {
    "net/~/linear": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)},
    "net/~/linear_1": {"b": jnp.ones(3, jnp.bfloat16), "c": np.array(2.5, np.float16)},
    "net": {},
    "deep": {"er": {"a b": {"": np.zeros((0, 3), np.int8)}}},
    "deep er": {"a b": np.array([[True], [False]])},
}
STATE = {"bn/~/mean_ema": {"counter": jnp.array([7], jnp.int32), "64": np.arange(3)}}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    save_pretrained(tmp_path / "new" / "model", PARAMS, STATE)
    return tmp_path / "new" / "model"


def _assert_same(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


@pytest.mark.strict
def test_names_types_and_state_come_back(folder: pathlib.Path) -> None:
    params, state = load_pretrained(folder)
    _assert_same((params, state), (PARAMS, STATE))
    assert isinstance(params["net/~/linear_1"]["b"], jax.Array)
    assert sorted(file.name for file in folder.iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def test_containers_of_haiku_and_no_state(tmp_path: pathlib.Path) -> None:
    params = {"net": {"w": jnp.ones(2)}}
    save_pretrained(tmp_path, hk.data_structures.to_immutable_dict(params))
    _assert_same(load_pretrained(str(tmp_path)), (params, {}))


def test_other_libraries_read_the_arrays(folder: pathlib.Path) -> None:
    arrays = safetensors.load_file(folder / "model.safetensors")
    name = json.dumps(["params", "net/~/linear", "w"])
    np.testing.assert_array_equal(arrays[name], PARAMS["net/~/linear"]["w"])
    assert len(arrays) == len(jax.tree.leaves((PARAMS, STATE)))


def test_views_and_other_byte_orders(tmp_path: pathlib.Path) -> None:
    matrix = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    params = {"a": matrix.T, "b": matrix[:, ::2], "c": matrix.astype(">f4")}
    save_pretrained(tmp_path, params)
    loaded, _ = load_pretrained(tmp_path)
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value)
        assert loaded[name].dtype == np.float32


def test_saving_again_replaces(folder: pathlib.Path) -> None:
    save_pretrained(folder, {"net": {"w": np.ones(1, np.float32)}})
    params, state = load_pretrained(folder)
    np.testing.assert_array_equal(params["net"]["w"], [1])
    assert (list(params), state) == (["net"], {})


def test_what_cannot_be_saved_leaves_what_is_there(folder: pathlib.Path) -> None:
    for params, message in [
        ({"net": {"w": "text"}}, "params net w must be an array of numbers, got str"),
        ({"net": {"w": None}}, "params net w must be an array of numbers, got None"),
        ({"net": {"w": np.array([None])}}, "numbers, got object"),
        ({"net": {"w": jax.random.key(0)}}, "numbers, got key<fry>"),
        ({"net": {"w": np.ones(1, ml_dtypes.int4)}}, "numbers, got int4"),
        ({"net": {"w": np.ones(1, np.complex128)}}, "numbers, got complex128"),
        ({"net": [np.ones(1)]}, "params net must be a dict of arrays, got a list"),
        ({"net": {1: np.ones(1)}}, "params net: a name must be a string, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_pretrained(folder, params)
    _assert_same(load_pretrained(folder), (PARAMS, STATE))


def _edit(folder: pathlib.Path, **changes: Any) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_another_version(folder: pathlib.Path) -> None:
    assert json.loads((folder / "model.json").read_text())["version"] == 1
    _edit(folder, version=2, tree=[])
    with pytest.raises(ValueError, match=r"model\.json has version 2: only 1 is known"):
        load_pretrained(folder)


def test_damage_is_noticed(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arrays = folder / "model.safetensors"
    content = arrays.read_bytes()
    for damaged in (content[:-1], content[:-1] + b"x", b""):
        arrays.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            load_pretrained(folder)
    save_pretrained(tmp_path / "other", {"net": {"w": np.ones(1)}})
    arrays.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"or belongs to another model\.json"):
        load_pretrained(folder)
    deep = '{"a": ' * 9999 + "1" + "}" * 9999
    for layout in (
        *("", "[]", "{}", '{"version": 1}', '{"version": 1, "tree": {}}', deep),
        '{"version": 1, "sha256": "", "tree": {"params": ["a"], "state": {}}}',
    ):
        (folder / "model.json").write_text(layout)
        with pytest.raises(ValueError, match=r"model\.json does not describe"):
            load_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        load_pretrained(tmp_path / "nowhere")


_GOOD = safetensors.save({"w": np.ones(2)})


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("b", _GOOD, "'b'"),
        (1, _GOOD, "1"),
        ("w", b"garbage", "header"),
        ("w", b"\xff" * 8 + _GOOD[8:], "header too large"),
        ("w", _GOOD.replace(b"F64", b"ZIP"), "unknown variant `ZIP`"),
        ("w", _GOOD.replace(b"[2]", b"[9]"), "offset"),
    ],
)
def test_files_that_are_made_up(
    folder: pathlib.Path, name: Any, arrays: bytes, message: str
) -> None:
    (folder / "model.safetensors").write_bytes(arrays)
    tree = {"params": {"w": name}, "state": {}}
    _edit(folder, sha256=hashlib.sha256(arrays).hexdigest(), tree=tree)
    message = rf"model\.safetensors cannot be read as model\.json says: .*{message}"
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_another_network_is_named_by_its_first_difference(
    tmp_path: pathlib.Path,
) -> None:
    enn = EnsembleResNetENN(2, is_training=False, config=TINY)
    variables = fast.random_params(enn, IMAGES)
    save_pretrained(tmp_path, *variables)
    key = jax.random.PRNGKey(0)
    like = jax.eval_shape(enn.init, key, IMAGES, 0)
    with pytest.warns(UserWarning, match="could not be checked"):
        _assert_same(load_pretrained(tmp_path, like), variables)
    wider = EnsembleResNetENN(5, is_training=False, config=TINY)
    with pytest.raises(
        ValueError,
        match=r"\['params'\]\['res_net/~/final_fc'\]\['b'\] has shape \[1, 2\], "
        r"not \[1, 5\] \(1 more\)",
    ):
        load_pretrained(tmp_path, jax.eval_shape(wider.init, key, IMAGES, 0))
    params, state = like
    with pytest.raises(ValueError, match=r"\['state'\]\['other'\] is missing\."):
        load_pretrained(tmp_path, (params, {**state, "other": np.ones(1)}))
    with pytest.raises(ValueError, match=r"\['state'\].* is unexpected \([0-9]+ more"):
        load_pretrained(tmp_path, (params, {}))


def test_missing_package_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "enn\[checkpoints\]"'):
        save_pretrained(tmp_path, PARAMS)
    assert list(tmp_path.iterdir()) == []


def test_public_names() -> None:
    assert checkpoints.__all__ == [
        "load_enn",
        "load_pretrained",
        "push_to_hub",
        "register_constructor",
        "save_pretrained",
    ]


X = np.ones([2, 3], np.float32)


def _ensemble(**kwargs: Any) -> networks.EnnArray:
    return networks.MLPEnsembleMatchedPrior([4, 2], num_ensemble=3, **kwargs)


def _epinet_on(base_seed: int) -> networks.EnnArray:
    resnet = EnsembleResNetENN(2, is_training=False, config=TINY)
    checkpoint = EnnCheckpoint(
        "base",
        lambda: fast.random_params(resnet, IMAGES, base_seed),
        lambda: resnet,
    )
    return networks.epinet.ResnetFinalEpinet(
        networks.epinet.ResnetFinalEpinetConfig(checkpoint, 3, 2, [4])
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("enn", "same", "other", "inputs"),
    [
        (_ensemble(seed=3), _ensemble(seed=3), _ensemble(seed=7), X),
        (_ensemble(), _ensemble(), _ensemble(prior_scale=1.1), X),
        (_epinet_on(1), _epinet_on(1), _epinet_on(2), IMAGES),
    ],
    ids=["seed", "scale", "base"],
)
def test_a_network_of_other_priors_or_base_is_refused(
    enn: Any, same: Any, other: Any, inputs: Any, tmp_path: pathlib.Path
) -> None:
    variables = fast.random_params(enn, inputs)
    save_pretrained(tmp_path, *variables, enn=enn, inputs=np.zeros_like(inputs))
    _assert_same(load_pretrained(tmp_path, like=same), variables)
    message = r"is of another network: with the same parameters .* seed"
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path, like=other)


def test_inputs_of_several_arrays(tmp_path: pathlib.Path) -> None:
    def forward(inputs: Any) -> jax.Array:
        return hk.Linear(2)(inputs[0]) + inputs[1]

    inputs = (X, np.array([1, 0]))
    pair = networks.wrap_net_fn_as_enn(forward)
    named = networks.wrap_net_fn_as_enn(lambda x: forward((x["a"], x["b"]["c"])))
    for enn, tree in ((pair, inputs), (named, {"a": X, "b": {"c": inputs[1]}})):
        tree = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else leaf[:, None], tree)
        save_pretrained(tmp_path, *fast.init(enn, tree), enn=enn, inputs=tree)
        load_pretrained(tmp_path, enn, tree)
        if enn is named:
            load_pretrained(tmp_path, enn)
            continue
        with pytest.raises(TypeError, match="inputs must be given"):
            load_pretrained(tmp_path, enn)


def test_what_cannot_be_compared_is_said(tmp_path: pathlib.Path) -> None:
    enn = _ensemble()
    variables = fast.random_params(enn, X)
    save_pretrained(tmp_path, *variables)
    _edit(tmp_path, probe=None)
    message = "prior functions.*could not be checked: it was saved without `enn`"
    for inputs in (None, X):
        with pytest.warns(UserWarning, match=message):
            _assert_same(load_pretrained(tmp_path, enn, inputs), variables)
    wider = networks.MLPEnsembleMatchedPrior([4, 3], num_ensemble=3)
    with pytest.raises(ValueError, match=r"has shape \[3, 2\], not \[3, 3\]"):
        load_pretrained(tmp_path, wider, X)
    with pytest.warns(UserWarning, match="`like` is only shapes"):
        load_pretrained(tmp_path, variables)
    with pytest.raises(TypeError, match=r"must be an .*EpistemicNetwork.* got list"):
        load_pretrained(tmp_path, [])
    with pytest.raises(ValueError, match="enn and inputs must be given together"):
        save_pretrained(tmp_path, *variables, enn=enn)


def test_rounding_is_not_another_network(tmp_path: pathlib.Path) -> None:
    enn = _ensemble()
    params, state = fast.random_params(enn, X)
    save_pretrained(tmp_path, params, state, enn=enn, inputs=X)
    probe = json.loads((tmp_path / "model.json").read_text())["probe"]
    largest = max(map(abs, probe["predictions"]))
    for change, is_same in ((1e-5, True), (1e-2, False)):
        moved = [value + change * largest for value in probe["predictions"]]
        _edit(tmp_path, probe=probe | {"predictions": moved})
        if is_same:
            load_pretrained(tmp_path, enn)
            continue
        with pytest.raises(ValueError, match="another network"):
            load_pretrained(tmp_path, enn)
