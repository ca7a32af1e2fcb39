"""Networks on the hub: a stand-in server on this computer, the real client."""

import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from enn import checkpoints, metrics, networks
from tests.checkpoints.hub_server import HubServer

pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors.numpy")

X = np.random.default_rng(0).normal(size=[20, 3]).astype(np.float32)
LABELS = np.arange(20) % 2
CONFIG = {
    "constructor": "MLPEnsembleMatchedPrior",
    "arguments": {"output_sizes": [4, 2], "num_ensemble": 3, "seed": 5},
}


@pytest.fixture
def server(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """A hub with an empty cache on this side, and a token that it accepts."""
    from huggingface_hub import constants

    with HubServer().running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "good")
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any]:
    """A folder, and the parameters in it."""
    enn = networks.MLPEnsembleMatchedPrior(**CONFIG["arguments"])
    params, state = enn.init(jax.random.key(0), X, 0)
    folder = tmp_path_factory.mktemp("saved")
    checkpoints.save_pretrained(folder, params, state, inputs=X, config=CONFIG)
    return folder, params


def _assert_same(tree: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_pushed_networks_are_read_by_name_also_offline(server, saved, monkeypatch):
    folder, params = saved
    oid = checkpoints.push_to_hub(folder, "me/small-ensemble")
    assert oid == list(server.commits["me/small-ensemble"])[-1]
    server.requests.clear()
    enn, loaded, _ = checkpoints.load_enn("me/small-ensemble")
    assert enn.indexer.num_ensemble == 3
    _assert_same(loaded, params)
    assert [r.split()[1].split("/")[-1] for r in server.requests] == [
        *["model.json"] * 2,
        *["model.safetensors"] * 2,
    ]
    server.requests.clear()
    monkeypatch.setenv("ENN_OFFLINE", "1")
    _assert_same(checkpoints.load_pretrained("me/small-ensemble", like=enn)[0], params)
    assert checkpoints.load_enn("me/small-ensemble", revision=oid)
    assert not server.requests


@pytest.mark.slow
def test_a_commit_stays_what_it_was(server, saved, tmp_path):
    folder, params = saved
    first = checkpoints.push_to_hub(folder, "me/net")
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    checkpoints.save_pretrained(tmp_path / "b", changed, inputs=X, config=CONFIG)
    second = checkpoints.push_to_hub(tmp_path / "b", "me/net", token="good")
    _assert_same(checkpoints.load_pretrained("me/net")[0], changed)
    for revision, expected in ((first, params), (second, changed)):
        loaded, _ = checkpoints.load_pretrained("me/net", revision=revision)
        _assert_same(loaded, expected)


@pytest.mark.slow
def test_the_card_says_what_was_measured(server, saved):
    folder, params = saved
    checkpoints.push_to_hub(folder, "me/net", test_data=(X, LABELS), tau=5)
    card = list(server.commits["me/net"].values())[-1]["README.md"].decode()
    front, text = card.removeprefix("---\n").split("---\n", 1)
    assert "library_name: enn" in front
    config = text.partition("```json\n")[2].partition("```")[0]
    assert json.loads(config) == CONFIG
    enn = networks.MLPEnsembleMatchedPrior(**CONFIG["arguments"])
    logits = networks.make_batch_fwd(enn, 100)(params, {}, X)
    marginal = metrics.make_nll_marginal_calculator()(logits, LABELS[:, None])
    joint = metrics.make_nll_polyadic_calculator(5, key=jax.random.key(0))
    assert f"| marginal NLL (nats) | {marginal:.4f} |" in text
    assert f"dyadic, τ = 5) | {joint(logits, LABELS[:, None]):.4f} |" in text
    assert "| test rows | 20 |\n| epistemic indices | 100 |" in text
    assert "| generator | threefry2x32 |" in text
    partitionable = jax.config.jax_threefry_partitionable
    assert f"| jax_threefry_partitionable | {partitionable} |" in text
    assert f"| jax | {jax.__version__} |" in text
    assert 'load_enn("me/net")' in text


def test_without_test_data_the_card_has_no_scores(server, saved):
    checkpoints.push_to_hub(saved[0], "me/net")
    card = list(server.commits["me/net"].values())[-1]["README.md"].decode()
    assert "## Scores\n\nNot measured.\n" in card


@pytest.mark.parametrize(
    ("name", "revision", "error", "message"),
    [
        ("me/none", None, FileNotFoundError, "me/none is neither a folder nor a repos"),
        ("me/net", "v9", FileNotFoundError, "me/net has no revision 'v9'"),
        ("me/other", None, FileNotFoundError, r"me/other has no model.json: it was no"),
        ("me/net.git", None, FileNotFoundError, "net.git"),
        ("../net", None, FileNotFoundError, "net"),
        ("a/b/c", "v1", ValueError, "revision belongs to a repository 'owner/name'"),
    ],
)
def test_what_cannot_be_read_is_said(server, saved, name, revision, error, message):
    checkpoints.push_to_hub(saved[0], "me/net")
    server.commits["me/other"] = {}
    server.commit("me/other", {"pytorch_model.bin": b"code"})
    with pytest.raises(error, match=message):
        checkpoints.load_pretrained(name, revision=revision)


def test_a_folder_goes_before_a_repository(server, saved, tmp_path):
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "net").symlink_to(saved[0])
    checkpoints.load_pretrained("me/net")
    assert not server.requests
    with pytest.raises(ValueError, match="revision belongs to a repository"):
        checkpoints.load_pretrained("me/net", revision="main")


@pytest.mark.parametrize("setting", ["ENN_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_and_not_in_the_cache(server, setting, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv(setting, "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", setting == "HF_HUB_OFFLINE")
    with pytest.raises(ConnectionError, match="me/net is neither a folder nor in the"):
        checkpoints.load_enn("me/net")
    assert not server.requests


def test_damaged_files_and_those_that_name_code_are_refused(server, saved):
    checkpoints.push_to_hub(saved[0], "me/net")
    files = list(server.commits["me/net"].values())[-1]
    layout = json.loads(files["model.json"])
    layout["config"] = {"constructor": "os.system", "arguments": {"command": "true"}}
    server.commit("me/net", {"model.json": json.dumps(layout).encode()})
    with pytest.raises(ValueError, match=r"'os\.system' is neither of enn\.networks"):
        checkpoints.load_enn("me/net")
    server.commit("me/net", {"model.safetensors": b"other"})
    with pytest.raises(ValueError, match=r"damaged, or belongs to another model\.json"):
        checkpoints.load_pretrained("me/net")


@pytest.mark.parametrize("name", ["net", "a/b/c", "me/..", "me/net.git", "me/n t", 3])
def test_pushing_needs_a_name_of_owner_and_network(server, saved, name):
    with pytest.raises(ValueError, match="A repository is named 'owner/name', got "):
        checkpoints.push_to_hub(saved[0], name)
    assert not server.requests


def test_pushing_without_a_folder_or_the_right_token(server, saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="call save_pretrained"):
        checkpoints.push_to_hub(tmp_path / "none", "me/net")
    with pytest.raises(OSError, match="me/net was not pushed; `hf auth login`"):
        checkpoints.push_to_hub(saved[0], "me/net", token="bad")


@pytest.mark.slow
def test_pushing_without_a_network(saved, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=r"me/net was not pushed; .*refused"):
        checkpoints.push_to_hub(saved[0], "me/net", token="good")


def test_the_extra_is_named(server, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: checkpoints.push_to_hub(saved[0], "me/net"),
        lambda: checkpoints.load_enn("me/net"),
    ):
        with pytest.raises(ImportError, match=r'pip install "enn\[hub\]"'):
            call()
