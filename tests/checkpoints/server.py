"""A real HTTP server on this computer, which misbehaves as the tests ask it to."""

import collections
import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Gives the address of a server on this computer, which stops at the end."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Server:
    """Answers `GET /path` with the next of the answers queued for it, or the last.

    Attributes:
      url: address of the server, without a slash at the end.
      requests: paths that were asked for, in order.
      answers: what to answer to each path.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.answers: dict[str, collections.deque[Answer]] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator["Server"]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                answers = outer.answers.get(self.path)
                if not answers:
                    return self.send_error(404)
                answer = answers.popleft() if len(answers) > 1 else answers[0]
                return answer(self)

            def log_message(self, *args: object) -> None:  # pyrefly: ignore[bad-override]
                pass

        with serving(Handler) as self.url:
            yield self

    def put(self, name: str, *answers: Answer | bytes) -> str:
        """Serves `/name`; returns its URL. Bytes are a good answer."""
        path = f"/{name}"
        self.answers[path] = collections.deque(
            content(answer) if isinstance(answer, bytes) else answer
            for answer in answers
        )
        return self.url + path


def content(data: bytes, length: int | None = None, **headers: str) -> Answer:
    """Answers with `data`, perhaps lying about its length."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        num_bytes = str(len(data) if length is None else length)
        for name, value in ({"content_length": num_bytes} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            handler.wfile.write(data)

    return answer


def endless(
    handler: http.server.BaseHTTPRequestHandler, code: int = 200, **headers: str
) -> None:
    """Does not say how much there is, and does not stop by itself."""
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            handler.wfile.write(bytes(2**16))


def status(code: int, **headers: str) -> Answer:
    """Answers with a status and a page that is no file."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(b"<html>An error page</html>")

    return answer


def slowly(data: bytes, seconds: float) -> Answer:
    """Answers in ten parts with a pause before each."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        step = -(-len(data) // 10)
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), step):
                time.sleep(seconds)
                handler.wfile.write(data[start : start + step])

    return answer


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
