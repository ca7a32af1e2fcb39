import collections
import pathlib
import pickle
from typing import Any

import dill
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from haiku._src.data_structures import FlatMapping

from enn.checkpoints import utils
from enn.checkpoints.unpickling import UnsafePickleError
from enn.checkpoints.utils import init_from_file, load_from_file, read_arrays
from tests.checkpoints import hostile
from tests.checkpoints.server import Server, content, sha256, status

pytest.importorskip("pooch")

PARAMS = {"res_net/~/final_fc": {"w": np.ones((1, 2, 3)), "b": np.arange(3)}}
STATE = {"res_net/~/bn/~/mean_ema": {"counter": jnp.array([7], jnp.int32)}}
FILE = dill.dumps({"params": FlatMapping(PARAMS), "state": STATE})


def _assert_loaded(params: Any, state: Any) -> None:
    assert type(params) is type(params["res_net/~/final_fc"]) is dict
    leaves = params["res_net/~/final_fc"]
    x64 = jax.config.jax_enable_x64
    assert isinstance(leaves["w"], jax.Array)
    assert leaves["w"].dtype == (jnp.float64 if x64 else jnp.float32)
    assert leaves["b"].dtype == (jnp.int64 if x64 else jnp.int32)
    np.testing.assert_array_equal(leaves["w"], np.ones((1, 2, 3)))
    np.testing.assert_array_equal(leaves["b"], np.arange(3))
    assert list(state) == list(STATE)
    np.testing.assert_array_equal(state["res_net/~/bn/~/mean_ema"]["counter"], [7])


@pytest.mark.strict
def test_loads_when_it_is_called_and_downloads_once(server: Server) -> None:
    server.put("models/resnet.npzs", FILE)
    load = load_from_file("resnet", f"{server.url}/models")
    assert server.requests == []
    for _ in range(2):
        _assert_loaded(*load())
    _assert_loaded(*init_from_file("resnet", f"{server.url}/models/"))
    assert server.requests == ["/models/resnet.npzs"]


def test_loads_from_a_folder(tmp_path: pathlib.Path, server: Server) -> None:
    (tmp_path / "resnet.npzs").write_bytes(FILE)
    for folder in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        _assert_loaded(*init_from_file("resnet", folder))
    with pytest.raises(FileNotFoundError, match=r"other\.npzs"):
        init_from_file("other", tmp_path)


def test_a_pinned_hash_holds_wherever_the_file_is(
    tmp_path: pathlib.Path, server: Server
) -> None:
    server.put("resnet.npzs", FILE)
    (tmp_path / "resnet.npzs").write_bytes(FILE)
    for folder in (server.url, tmp_path):
        with pytest.raises(
            ValueError, match=rf"resnet\.npzs has SHA-256 {sha256(FILE)}"
        ):
            init_from_file("resnet", folder, sha256=sha256(b""))
        _assert_loaded(*init_from_file("resnet", folder, sha256=sha256(FILE)))


def test_public_names_and_the_published_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert utils.load_from_file is load_from_file
    assert utils.init_from_file is init_from_file
    asked: list[str] = []
    monkeypatch.setattr(utils, "read_arrays", lambda url, *_: asked.append(url))
    with pytest.raises(ValueError, match="has no dict"):
        load_from_file("resnet18_cifar10")()
    assert asked == ["https://storage.googleapis.com/dm-enn/resnet18_cifar10.npzs"]


def test_hostile_files_from_a_server_are_refused_and_not_kept(
    server: Server, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "touched"
    folder.mkdir()
    cases = [case for case in hostile.cases(folder).values() if len(case[0]) < 50_000]
    assert len(cases) > 80
    for i, (data, message) in enumerate(cases):
        url = server.put(f"{i}.npzs", data)
        with pytest.raises(UnsafePickleError, match=f"{url}: .*({message})"):
            init_from_file(str(i), server.url)
    assert list(folder.iterdir()) == list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "answer",
    [status(404), status(500), content(FILE, len(FILE) + 1), content(FILE, 50)],
    ids=["404", "500", "cut off", "length that is too short"],
)
def test_bad_answers_leave_nothing_behind(
    server: Server, cache: pathlib.Path, answer: Any
) -> None:
    url = server.put("file.npzs", answer)
    with pytest.raises((OSError, UnsafePickleError), match=url):
        init_from_file("file", server.url)
    assert list(cache.iterdir()) == []
    server.put("file.npzs", FILE)
    _assert_loaded(*init_from_file("file", server.url))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "no dict with keys 'params' and 'state'"),
        ({"params": {}}, "no dict with keys 'params' and 'state'"),
        (
            {"params": {"net": {"w": "text"}}, "state": {}},
            r"\['params'\]\['net'\]\['w'\] must be an array, got 'text'",
        ),
        (
            {"params": {"w": 2**70}, "state": {}},
            r"\['w'\] must be an array, got 118059",
        ),
    ],
)
def test_files_of_something_else(
    tmp_path: pathlib.Path, value: Any, message: str
) -> None:
    (tmp_path / "file.npzs").write_bytes(pickle.dumps(value))
    with pytest.raises(ValueError, match=rf"file\.npzs.*{message}"):
        init_from_file("file", tmp_path)


def test_reads_files_of_other_arrays(server: Server) -> None:
    batch = {"images": np.ones((2, 4, 4, 3), np.float32), "labels": np.arange(2)}
    loaded = read_arrays(server.put("processed_batch.npzs", dill.dumps(batch)))
    assert list(loaded) == ["images", "labels"]
    np.testing.assert_array_equal(loaded["images"], batch["images"])
    assert loaded["labels"].dtype == np.int64


def test_further_names_can_be_allowed(tmp_path: pathlib.Path) -> None:
    params = {"net": collections.Counter(w=3)}
    data = pickle.dumps({"params": params, "state": {}})
    (tmp_path / "file.npzs").write_bytes(data)
    with pytest.raises(UnsafePickleError, match=r"global 'collections\.Counter'"):
        init_from_file("file", tmp_path)
    allow = {"collections.Counter": dict}
    loaded, _ = init_from_file("file", tmp_path, allow=allow)
    assert loaded == {"net": {"w": 3}}
