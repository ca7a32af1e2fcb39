"""The few endpoints of the Hugging Face hub that saving and reading a network use."""

import base64
import contextlib
import hashlib
import http.server
import json
from collections.abc import Iterator

from tests.checkpoints.server import serving


class HubServer:
    """Repositories in memory: commits of files, the last of which is `main`.

    Attributes:
      url: address of the server.
      commits: by repository, its commits in order: hash and files by name.
      requests: method and path of every request, in order.
      tokens: what was given as authorization, by request.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        commits = self.commits[repository]
        oid = hashlib.sha1(f"{repository}{len(commits)}".encode()).hexdigest()
        commits[oid] = {**(list(commits.values()) or [{}])[-1], **files}
        return oid

    def find(self, repository: str, revision: str, name: str) -> tuple[int, str, bytes]:
        """Returns the status, and the error or the commit, and the file."""
        if repository not in self.commits:
            return 404, "RepoNotFound", b""
        commits = self.commits[repository]
        oid = list(commits)[-1] if revision == "main" else revision
        if oid not in commits:
            return 404, "RevisionNotFound", b""
        if name not in commits[oid]:
            return 404, "EntryNotFound", b""
        return 200, oid, commits[oid][name]

    @contextlib.contextmanager
    def running(self) -> Iterator["HubServer"]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._log()
                owner, name, _, revision, *path = self.path.strip("/").split("/")
                found = outer.find(f"{owner}/{name}", revision, "/".join(path))
                status, what, content = found
                is_found = status == 200
                self.send_response(status)
                self.send_header("X-Repo-Commit" if is_found else "X-Error-Code", what)
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self) -> None:
                self._log()
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                if self.headers["Authorization"] != "Bearer good":
                    return self._answer({"error": "Unauthorized"}, 401)
                _, api, *rest = self.path.split("?")[0].split("/")
                assert api == "api"
                match rest:
                    case ["repos", "create"]:
                        named = json.loads(body)
                        name = f"{named['organization']}/{named['name']}"
                        if name in outer.commits:
                            return self._answer({"url": f"{outer.url}/{name}"}, 409)
                        outer.commits[name] = {}
                        return self._answer({"url": f"{outer.url}/{name}"})
                    case ["validate-yaml"]:
                        return self._answer({"errors": [], "warnings": []})
                    case ["models", owner, name, "preupload", "main"]:
                        files = json.loads(body)["files"]
                        modes = {"uploadMode": "regular", "shouldIgnore": False}
                        return self._answer(
                            {"files": [{"path": f["path"], **modes} for f in files]}
                        )
                    case ["models", owner, name, "commit", "main"]:
                        lines = [json.loads(line) for line in body.splitlines()]
                        oid = outer.commit(
                            f"{owner}/{name}",
                            {
                                line["value"]["path"]: base64.b64decode(
                                    line["value"]["content"]
                                )
                                for line in lines
                                if line["key"] == "file"
                            },
                        )
                        url = f"{outer.url}/{owner}/{name}/commit/{oid}"
                        return self._answer({"commitUrl": url, "commitOid": oid})
                return self._answer({"error": self.path}, 404)

            def _log(self) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                outer.tokens.append(self.headers["Authorization"])

            def _answer(self, body: dict[str, object], status: int = 200) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:  # pyrefly: ignore[bad-override]
                pass

        with serving(Handler) as self.url:
            yield self
