"""Files from the web, kept in a cache that notices when one has changed."""

import base64
import functools
import hashlib
import io
import ipaddress
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tqdm

from enn import _extras

T = TypeVar("T")

MAX_BYTES = 2 * 2**30
_TIMEOUT = 30.0
"""Seconds without a sign of the server after which an attempt has failed."""
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each further attempt."""
_HEADERS = {"content-encoding": "identity", "content-length": r"\d{1,18}"}
"""What answers may say: a file is asked for as it is, for little can unpack to much."""


def read_url(
    url: str,
    read: Callable[[bytes], T],
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> T:
    """Returns `read(content)` for the file at `url`, which is downloaded once.

    The file is kept in the folder that the environment variable `ENN_CACHE` names, by
    default the user's cache folder. The SHA-256 of its first download is recorded
    beside it, once `read` has accepted the content, and holds from then on, also
    where the file is deleted and downloaded again. With the environment variable
    `ENN_OFFLINE=1` nothing is downloaded.

    Downloads are over HTTPS with the server's certificate verified, also after a
    redirect. Plain HTTP is for this computer's own addresses alone: what it carries
    never leaves the computer. A connection that fails or stalls and a server that
    answers with status 5xx or 429 are tried again, after 1, 2, 4 and 8 seconds.

    Args:
      url: address of the file.
      read: function of its content, which raises for what it does not accept.
      sha256: hexadecimal SHA-256 that the file must have; by default the recorded one.
      max_bytes: size that the file may have.

    Raises:
      ImportError: without pooch, which the extra `checkpoints` installs.
      OSError: if the download fails, naming the URL and the reason, or `ENN_OFFLINE`
        forbids it.
      ValueError: if the file has another SHA-256 than it must have, or is too large,
        or the URL is neither HTTPS nor HTTP on this computer.
    """
    _check_scheme(url)
    pooch = _extras.require("pooch", "checkpoints")
    name = pooch.utils.unique_file_name(url)
    cache = pooch.create(path=pooch.os_cache("enn"), base_url="", env="ENN_CACHE")
    record = cache.abspath / f"{name}.sha256"
    source = "as asked for"
    if sha256 is None and record.exists():
        sha256, source = record.read_text(encoding="ascii").strip(), f"as in {record}"
    check = functools.partial(check_sha256, url, sha256=sha256, source=source)
    cache.registry[name], cache.urls[name] = sha256, url
    download = _Download(max_bytes, check)
    file = pathlib.Path(cache.fetch(name, downloader=download))
    content = file.read_bytes()
    check(content)
    if sha256 is not None:
        return read(content)
    try:
        value = read(content)
    except BaseException:
        file.unlink()
        raise
    new_record = record.with_suffix(f".{os.getpid()}")
    new_record.write_text(hashlib.sha256(content).hexdigest(), encoding="ascii")
    new_record.replace(record)
    return value


def check_sha256(
    name: str, content: bytes, sha256: str | None, source: str = "as asked for"
) -> None:
    """Raises ValueError unless `content` has the SHA-256, or that is None.

    Args:
      name: where the content is from, for the message.
      content: content of a file.
      sha256: its hexadecimal SHA-256.
      source: who says so, for the message.
    """
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"{name} has SHA-256 {digest}, and not {sha256} {source}.")


class _Download:
    """Downloads a file; pooch calls it for what its cache does not hold."""

    def __init__(self, max_bytes: int, check: Callable[[bytes], None]):
        self._max_bytes = max_bytes
        self._check = check

    def __call__(self, url: str, path: str, cache: Any) -> None:
        if os.environ.get("ENN_OFFLINE", "0") not in ("", "0"):
            raise OSError(f"ENN_OFFLINE is set, and {cache.path} does not hold {url}.")
        requests = _extras.require("requests", "checkpoints")
        for wait in (*_WAITS, None):
            try:
                self._attempt(url, path)
                break
            except requests.RequestException as error:
                if wait is None or not _is_transient(requests, error):
                    raise OSError(f"{url} could not be downloaded: {error}") from error
                time.sleep(wait)
        self._check(pathlib.Path(path).read_bytes())

    def _attempt(self, url: str, path: str) -> None:
        requests = _extras.require("requests", "checkpoints")
        pooch = _extras.require("pooch", "checkpoints")
        name = url.rpartition("/")[2]
        md5 = None
        with (
            open(path, "wb") as file,
            tqdm.tqdm(desc=name, unit="B", unit_scale=True, disable=None) as bar,
        ):

            def check_response(response: Any, **kwargs: Any) -> None:
                nonlocal md5
                if response.is_redirect:
                    target = urllib.parse.urljoin(
                        response.url, response.headers["location"]
                    )
                    _check_scheme(target, loopback=response.url.startswith("http:"))
                    # Else its content would be read, to whatever length.
                    response.close()
                    response.raw = io.BytesIO()
                    return
                if response.status_code != 200:
                    reason = f"status {response.status_code} {response.reason}"
                    raise requests.HTTPError(reason, response=response)
                for name, pattern in _HEADERS.items():
                    value = response.headers.get(name)
                    if value is not None and not re.fullmatch(pattern, value):
                        raise requests.exceptions.InvalidHeader(f"{name}: {value}")
                bar.total = int(response.headers.get("content-length", 0))
                check_size(bar.total)
                md5 = _stored_md5(response.headers)

            def check_size(num_bytes: int) -> None:
                if num_bytes > self._max_bytes:
                    raise ValueError(f"{url} has more than {self._max_bytes} bytes.")

            def write(chunk: bytes) -> None:
                check_size(file.tell() + len(chunk))
                file.write(chunk)
                bar.update(len(chunk))

            pooch.HTTPDownloader(
                chunk_size=2**16,
                timeout=_TIMEOUT,
                headers={"Accept-Encoding": "identity"},
                hooks={"response": check_response},
                proxies=_proxies(url),
            )(url, _Writer(write, file.flush), None)
        if md5 not in (None, _md5(path)):
            raise requests.ConnectionError("it arrived damaged")


def _md5(path: str) -> bytes:
    content = pathlib.Path(path).read_bytes()
    return hashlib.md5(content, usedforsecurity=False).digest()


class _Writer(NamedTuple):
    write: Callable[[bytes], None]
    flush: Callable[[], None]


def _check_scheme(url: str, loopback: bool = True) -> None:
    parts = urllib.parse.urlsplit(url)
    allowed = parts.scheme == "https" or (
        loopback and parts.scheme == "http" and _is_loopback(parts.hostname)
    )
    # Readers of http://one\@other differ in which of the two is the host.
    if not (allowed and parts.hostname) or "\\" in url:
        raise ValueError(
            f"A download must be from https://, or from http:// on this computer; got "
            f"{url}."
        )


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _proxies(url: str) -> dict[str, str]:
    """A proxy would take a request to this computer somewhere else."""
    parts = urllib.parse.urlsplit(url)
    return {"no_proxy": parts.hostname or ""} if parts.scheme == "http" else {}


def _is_transient(requests: Any, error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        return status >= 500 or status == 429
    if isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(
        error,
        requests.ConnectionError
        | requests.Timeout
        | requests.exceptions.ChunkedEncodingError,
    )


def _stored_md5(headers: Any) -> bytes | None:
    """What Google Cloud Storage says of a file that it stores as it sends it."""
    found = re.search(r"md5=([A-Za-z0-9+/]{22}==)", headers.get("x-goog-hash", ""))
    if (
        found
        and headers.get("x-goog-stored-content-encoding", "identity") == "identity"
    ):
        return base64.b64decode(found[1])
    return None
