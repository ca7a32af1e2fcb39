"""Files from the web, kept in a cache that notices when one has changed."""

import base64
import hashlib
import io
import ipaddress
import os
import pathlib
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

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
    folder = pathlib.Path(os.environ.get("ENN_CACHE") or pooch.os_cache("enn"))
    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    file, record = folder / name, folder / f"{name}.sha256"
    source = "as asked for"
    if sha256 is None and record.exists():
        sha256, source = record.read_text(encoding="ascii").strip(), f"as in {record}"
    content = file.read_bytes() if file.exists() else None
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    partial = folder / f"{name}.{os.getpid()}"
    try:
        # A file that has changed in the cache is downloaded again.
        if content is None or (sha256 is not None and digest != sha256.lower()):
            _download(url, partial, max_bytes)
            content = partial.read_bytes()
            digest = check_sha256(url, content, sha256, source)
            if sha256 is not None:
                partial.replace(file)
        value = read(content)
        if sha256 is None:
            if partial.exists():
                partial.replace(file)
            partial.write_text(str(digest), encoding="ascii")
            partial.replace(record)
        return value
    finally:
        partial.unlink(missing_ok=True)


def check_sha256(
    name: str, content: bytes, sha256: str | None, source: str = "as asked for"
) -> str:
    """Returns the SHA-256 of `content`; raises ValueError unless it is the given one.

    Args:
      name: where the content is from, for the message.
      content: content of a file.
      sha256: its hexadecimal SHA-256; None accepts any.
      source: who says so, for the message.
    """
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise ValueError(f"{name} has SHA-256 {digest}, and not {sha256} {source}.")
    return digest


def is_offline() -> bool:
    """Returns whether `ENN_OFFLINE` forbids downloads."""
    return os.environ.get("ENN_OFFLINE", "0") not in ("", "0")


def _download(url: str, path: pathlib.Path, max_bytes: int) -> None:
    """Downloads a file, retrying after failures that may be temporary."""
    if is_offline():
        raise OSError(f"ENN_OFFLINE is set, and {path.parent} does not hold {url}.")
    requests = _extras.require("requests", "checkpoints")
    for wait in (*_WAITS, None):
        try:
            _attempt(url, path, max_bytes)
            break
        except requests.RequestException as error:
            if wait is None or not _is_transient(requests, error):
                raise OSError(f"{url} could not be downloaded: {error}") from error
            time.sleep(wait)


def _attempt(url: str, path: pathlib.Path, max_bytes: int) -> None:
    requests = _extras.require("requests", "checkpoints")
    pooch = _extras.require("pooch", "checkpoints")
    name = url.rpartition("/")[2]
    with (
        open(path, "wb") as file,
        tqdm.tqdm(desc=name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        transfer = _Transfer(url, file, bar, max_bytes)
        pooch.HTTPDownloader(
            chunk_size=2**16,
            timeout=_TIMEOUT,
            headers={"Accept-Encoding": "identity"},
            hooks={"response": transfer.check_response},
            proxies=_proxies(url),
        )(url, transfer, None)
    if transfer.sent_md5 not in (None, transfer.md5.digest()):
        raise requests.ConnectionError("it arrived damaged")


class _Transfer:
    """One attempt: the file that pooch writes to, which checks what arrives.

    Attributes:
      md5: of what was written.
      sent_md5: what the server says it is; None if it says nothing.
    """

    def __init__(self, url: str, file: BinaryIO, bar: tqdm.tqdm, max_bytes: int):
        self._url = url
        self._file = file
        self._bar = bar
        self._max_bytes = max_bytes
        self.flush = file.flush
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sent_md5: bytes | None = None

    def check_response(self, response: Any, **kwargs: Any) -> None:
        """Raises an error for an answer that is not the file as it is stored."""
        if response.is_redirect:
            target = urllib.parse.urljoin(response.url, response.headers["location"])
            _check_scheme(target, loopback=response.url.startswith("http:"))
            # Otherwise its content would be read, to whatever length.
            response.close()
            response.raw = io.BytesIO()
            return
        requests = _extras.require("requests", "checkpoints")
        if response.status_code != 200:
            reason = f"status {response.status_code} {response.reason}"
            raise requests.HTTPError(reason, response=response)
        for name, pattern in _HEADERS.items():
            value = response.headers.get(name)
            if value is not None and not re.fullmatch(pattern, value):
                raise requests.exceptions.InvalidHeader(f"{name}: {value}")
        self._bar.total = int(response.headers.get("content-length", 0))
        self._check_size(self._bar.total)
        self.sent_md5 = _stored_md5(response.headers)

    def write(self, chunk: bytes) -> None:
        self._check_size(self._file.tell() + len(chunk))
        self._file.write(chunk)
        self.md5.update(chunk)
        self._bar.update(len(chunk))

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise ValueError(f"{self._url} has more than {self._max_bytes} bytes.")


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
