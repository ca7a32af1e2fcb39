import pathlib
from collections.abc import Iterator

import pytest

from enn.checkpoints import downloads
from tests.checkpoints.server import Server
from tests.support.stored import store

__all__ = ["cache", "running_server", "server", "store"]


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache, and short waits."""
    monkeypatch.setenv("ENN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ENN_OFFLINE", raising=False)
    monkeypatch.setattr(downloads, "_WAITS", (0.01, 0.02))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def running_server() -> Iterator[Server]:
    with Server().running() as server:
        yield server


@pytest.fixture
def server(running_server: Server, cache: pathlib.Path) -> Server:
    """A server on this computer, with an empty cache on this side."""
    running_server.requests.clear()
    running_server.answers.clear()
    return running_server
