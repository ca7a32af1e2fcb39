import base64
import functools
import gzip
import hashlib
import http.server
import io
import pathlib
import re
import ssl
import sys
import threading
import time
import tracemalloc
from typing import Any

import pytest

from enn.checkpoints import downloads
from enn.checkpoints.downloads import read_url
from tests.checkpoints.server import Server, content, endless, slowly, status

pytest.importorskip("pooch")

DATA = bytes(range(256)) * 400
OTHER = b"other" + DATA


def _refuse(content: bytes) -> None:
    raise ValueError("not accepted")


def _kept(cache: pathlib.Path) -> list[str]:
    """Names of the files in the cache, without what makes them unique."""
    return sorted(re.sub("^[0-9a-f]{32}-", "", file.name) for file in cache.iterdir())


def test_downloads_once_and_records_the_hash(
    server: Server, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.put("file", DATA)
    assert read_url(url, len) == len(DATA)
    assert _kept(cache) == ["file", "file.sha256"]
    (record,) = cache.glob("*.sha256")
    assert record.read_text() == hashlib.sha256(DATA).hexdigest()
    assert read_url(url, bytes) == DATA
    # Reading what is there needs no network.
    monkeypatch.setenv("ENN_OFFLINE", "1")
    assert read_url(url, bytes) == DATA
    assert server.requests == ["/file"]


def test_the_cache_may_be_in_the_home_folder(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ENN_CACHE", "~/kept")
    read_url(server.put("file", DATA), len)
    assert _kept(tmp_path / "kept") == ["file", "file.sha256"]


def test_files_of_the_same_name_are_kept_apart(server: Server) -> None:
    urls = [server.put("a/file", DATA), server.put("b/file", OTHER)]
    for _ in range(2):
        assert [read_url(url, bytes) for url in urls] == [DATA, OTHER]


def test_a_changed_file_is_refused(server: Server, cache: pathlib.Path) -> None:
    url = server.put("file", DATA, OTHER)
    read_url(url, len)
    (file,) = cache.glob("*-file")
    file.unlink()
    sha256 = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(ValueError, match=rf"{url} has SHA-256 {sha256}.*\.sha256"):
        read_url(url, len)
    assert _kept(cache) == ["file.sha256"]
    server.put("file", DATA)
    assert read_url(url, bytes) == DATA


def test_a_file_that_rots_in_the_cache_is_downloaded_again(
    server: Server, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.put("file", DATA)
    read_url(url, len)
    (file,) = cache.glob("*-file")
    file.write_bytes(DATA[:-1] + b"x")
    monkeypatch.setenv("ENN_OFFLINE", "1")
    with pytest.raises(OSError, match=f"ENN_OFFLINE is set.*{url}"):
        read_url(url, len)
    monkeypatch.delenv("ENN_OFFLINE")
    assert read_url(url, bytes) == DATA
    assert len(server.requests) == 2


def test_a_pinned_hash_holds_from_the_start(
    server: Server, cache: pathlib.Path
) -> None:
    url = server.put("file", OTHER, DATA)
    read = functools.partial(read_url, url, sha256=hashlib.sha256(DATA).hexdigest())
    with pytest.raises(ValueError, match=r"has SHA-256 .*, and not .* as asked for"):
        read(len)
    assert _kept(cache) == []
    assert read(bytes) == DATA
    # The file is not to blame for what a reader of it does.
    with pytest.raises(ValueError, match="not accepted"):
        read(_refuse)
    assert _kept(cache) == ["file"]


def test_what_is_not_accepted_is_not_kept(server: Server, cache: pathlib.Path) -> None:
    url = server.put("file", DATA)
    with pytest.raises(ValueError, match="not accepted"):
        read_url(url, _refuse)
    assert _kept(cache) == []


def test_offline_nothing_is_asked_for(
    server: Server, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENN_OFFLINE", "1")
    url = server.put("file", DATA)
    with pytest.raises(OSError, match=f"ENN_OFFLINE is set, and {cache}.*{url}"):
        read_url(url, len)
    assert server.requests == []


@pytest.mark.parametrize(
    "failure",
    [
        status(500),
        status(503),
        status(429),
        content(DATA[: len(DATA) // 2], length=len(DATA)),
        content(OTHER, x_goog_hash="md5=" + base64.b64encode(bytes(16)).decode()),
    ],
    ids=["500", "503", "429", "cut off", "damaged"],
)
def test_failures_that_may_pass_are_tried_again(
    server: Server, cache: pathlib.Path, failure: Any
) -> None:
    url = server.put("file", failure, DATA)
    assert read_url(url, bytes) == DATA
    assert server.requests == ["/file"] * 2
    assert _kept(cache) == ["file", "file.sha256"]


@pytest.mark.parametrize(
    ("failure", "attempts", "message"),
    [
        (status(500), 3, "status 500"),
        (content(DATA[:9], length=10), 3, "IncompleteRead"),
        (status(404), 1, "status 404 Not Found"),
        (status(403), 1, "status 403"),
        (status(204), 1, "status 204"),
        (status(304), 1, "status 304"),
        (content(gzip.compress(DATA), content_encoding="gzip"), 1, "encoding: gzip"),
        (content(DATA, content_length="many"), 1, "content-length: many"),
    ],
)
def test_failures_that_stay_name_the_url_and_the_reason(
    server: Server, cache: pathlib.Path, failure: Any, attempts: int, message: str
) -> None:
    url = server.put("file", failure)
    with pytest.raises(OSError, match=f"{url} could not be downloaded: .*{message}"):
        read_url(url, len)
    assert len(server.requests) == attempts
    assert _kept(cache) == []


def test_waits_grow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(downloads, "_WAITS", (1.0, 2.0, 4.0))
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(OSError, match="status 500"):
        read_url(server.put("file", status(500)), len)
    assert waits == [1.0, 2.0, 4.0]


@pytest.mark.slow
def test_a_server_that_stalls_is_asked_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.3)
    url = server.put("file", slowly(DATA, seconds=0.6))
    with pytest.raises(OSError, match=f"{url} could not be downloaded: .*timed out"):
        read_url(url, bytes)
    assert server.requests == ["/file"] * 3


@pytest.mark.slow
def test_a_slow_server_is_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each part in time, together longer than the timeout.
    monkeypatch.setattr(downloads, "_TIMEOUT", 1.0)
    assert read_url(server.put("file", slowly(DATA, 0.12)), bytes) == DATA
    assert server.requests == ["/file"]


def test_nobody_there() -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9/file could not be"):
        read_url("http://127.0.0.1:9/file", len)


@pytest.mark.parametrize("answer", [content(DATA), content(DATA[:9], 10**12), endless])
def test_a_file_that_is_too_large_is_refused(
    server: Server, cache: pathlib.Path, answer: Any
) -> None:
    url = server.put("file", answer)
    with pytest.raises(ValueError, match=f"{url} has more than {len(DATA) - 1} bytes"):
        read_url(url, len, max_bytes=len(DATA) - 1)
    assert len(server.requests) == 1
    assert _kept(cache) == []


def test_a_file_longer_than_its_length_is_cut_off_there(server: Server) -> None:
    # HTTP says so. What is left of the file has to be refused by its reader.
    url = server.put("file", content(DATA, length=100))
    with pytest.raises(ValueError, match="not accepted"):
        read_url(url, _refuse)
    assert read_url(url, bytes) == DATA[:100]


def test_checksum_that_the_store_sends(server: Server) -> None:
    md5 = base64.b64encode(hashlib.md5(DATA).digest()).decode()
    url = server.put("file", content(DATA, x_goog_hash=f"crc32c=AAAAAA==,md5={md5}"))
    assert read_url(url, bytes) == DATA
    wrong = base64.b64encode(bytes(16)).decode()
    url = server.put("wrong", content(DATA, x_goog_hash=f"md5={wrong}"))
    with pytest.raises(OSError, match="arrived damaged"):
        read_url(url, bytes)


@pytest.mark.parametrize(
    "url",
    [
        "http://storage.googleapis.com/dm-enn/file",
        "http://127.0.0.1.example.com/file",
        "http://192.168.0.1/file",
        "http://localhost.example.com/file",
        "ftp://127.0.0.1/file",
        "https:///file",
        "http://example.com\\@127.0.0.1/file",
        "file",
    ],
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"from https://.*got " + re.escape(url)):
        read_url(url, len)


def test_redirects_are_followed_but_not_out_of_what_is_allowed(server: Server) -> None:
    url = server.put("file", DATA)
    moved = server.put("moved", status(302, Location=url))
    assert read_url(moved, bytes) == DATA
    outside = server.put("out", status(302, Location="http://192.0.2.1/file"))
    with pytest.raises(ValueError, match=r"got http://192\.0\.2\.1/file"):
        read_url(outside, bytes)


def test_the_content_of_a_redirect_is_not_read(server: Server) -> None:
    url = server.put("file", DATA)
    moved = server.put("moved", functools.partial(endless, code=302, Location=url))
    tracemalloc.start()
    assert read_url(moved, bytes) == DATA
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_proxies_do_not_see_requests_to_this_computer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert read_url(server.put("file", DATA), bytes) == DATA


# A certificate for localhost that nobody vouches for, and its key.
CERTIFICATE = """
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7OE4lyLcxOLZMJir
IS+RCoEPkxmFcDCxP5CjCfw59FehRANCAARxUaOIi4VZdDCwr28rF9ELf03LB5gs
vPTZja+yqwzOfCzTThDGXHDGVog1dst2azU9ENEZq/iQk+DOgESaCzI7
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUduy12AMXhsv3WbUx+MK6paz9UVUwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzIyMTcwOVoYDzIxMjYxMDMw
MjIxNzA5WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARxUaOIi4VZdDCwr28rF9ELf03LB5gsvPTZja+yqwzOfCzTThDGXHDG
Vog1dst2azU9ENEZq/iQk+DOgESaCzI7o28wbTAdBgNVHQ4EFgQUKGKzMb3/eJWf
oC2acPzOenn0c3MwHwYDVR0jBBgwFoAUKGKzMb3/eJWfoC2acPzOenn0c3MwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIhAMt0A9Y0L0i9XFO9ExUDCwh3S7knGaOLyF1PZmtwwljSAiAB
gYqTlb2LGh0CWVGS0Llc3hVFmGr3cCiWmlq0O7MHYQ==
-----END CERTIFICATE-----
"""


def test_certificates_are_verified(
    cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    handler = http.server.SimpleHTTPRequestHandler
    handler = functools.partial(handler, directory=str(tmp_path))
    (tmp_path / "file").write_bytes(DATA)
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"https://localhost:{server.server_port}/file"
        try:
            for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setattr(downloads, "_WAITS", (1000.0,))
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                read_url(url, bytes)
            # The same with a certificate that the user trusts.
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
            assert read_url(url, bytes) == DATA
        finally:
            server.shutdown()
            thread.join()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [_Terminal, io.StringIO])
def test_progress_shows_on_a_terminal(
    server: Server, monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    read_url(server.put("file", DATA), len)
    shown = sys.stderr.getvalue()
    assert ("file: 100%" in shown and "102k/102k" in shown) == (stream is _Terminal)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "enn\[checkpoints\]"'):
        read_url("https://example.com/file", len)
