"""A stand-in for the Hugging Face hub on loopback, which records what it is sent.

It speaks as much of the protocol as a push needs: repositories, branches, trees, preupload, the
LFS batch with single uploads, and commits. Xet is switched off for it.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_TokenOfTheTestThatNobodyMaySee"
OWNER = "me"
_LARGE = (".safetensors", ".gguf")
_ATTRIBUTES = {".gitattributes": b"*.safetensors filter=lfs\n"}


@dataclasses.dataclass
class Repository:
    """One repository: branch -> path -> content, and branch -> id of its newest commit."""

    private: bool
    branches: dict[str, dict[str, bytes]]
    commits: dict[str, str]

    def advance(self, branch: str) -> str:
        """Put another commit on a branch; returns its id, 40 digits as in git."""
        self.commits[branch] = hashlib.sha1(self.commits[branch].encode()).hexdigest()
        return self.commits[branch]


class Hub(ThreadingHTTPServer):
    """The server, with what it holds and what it was asked.

    Attributes:
        repositories: by id.
        large: uploaded LFS objects, by SHA-256.
        requests: method, path and body of every request that it has answered.
        spoils: whether it keeps other bytes than those it was sent.
        intrudes: whether somebody else commits just before every commit.
        fails: whether it breaks down at every commit.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, bytes]] = []
        self.spoils = self.intrudes = self.fails = False

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def has(self, hub_id: str, *, private: bool = True, **files: bytes) -> Repository:
        """Make a repository as somebody has left it."""
        main = {**_ATTRIBUTES, **files}
        self.repositories[hub_id] = Repository(private, {"main": main}, {"main": "0" * 40})
        return self.repositories[hub_id]

    def changes(self) -> list[str]:
        """Method and path of the requests that ask for a change."""
        return [f"{method} {path}" for method, path, _ in self.requests if method != "GET"]


class _Refused(Exception):
    """An answer with an error: status, and the code by which the hub names it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, body))
        headers: dict[str, str] = {}
        try:
            status, content = 200, self._result(path, body)
        except _Refused as refused:
            status, content = refused.status, {"error": str(refused)}
            headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _result(self, path: str, body: bytes) -> Any:
        if self.command == "PUT" and path.startswith("/lfs/"):  # an address signed by itself
            self.server.large[path.removeprefix("/lfs/")] = body
            return {}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Invalid username or password.")
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path)
        if not found:
            raise _Refused(404, f"no such place: {path}")
        hub_id, action, name = found.groups()
        if hub_id not in self.server.repositories:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        if self.command == "POST":
            self._check_owner(hub_id)
        return self._of_repository(hub_id, action, name, body)

    def _check_owner(self, hub_id: str) -> None:
        if hub_id.split("/")[0] != OWNER:
            raise _Refused(403, "You don't have the rights to write there")

    def _create(self, asked: dict[str, Any]) -> Any:
        hub_id = f"{asked['organization']}/{asked['name']}"
        self._check_owner(hub_id)
        # hub libraries of different ages say it in one of two ways.
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.has(hub_id, private=private)
        return {"url": f"{self.server.url}/{hub_id}"}

    def _batch(self, asked: dict[str, Any]) -> Any:
        def upload(one: dict[str, Any]) -> dict[str, Any]:
            if one["oid"] in self.server.large:
                return one
            return {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}

        return {"transfer": "basic", "objects": [upload(one) for one in asked["objects"]]}

    def _of_repository(self, hub_id: str, action: str | None, name: str, body: bytes) -> Any:
        repository = self.server.repositories[hub_id]
        if action == "branch":
            repository.branches[name] = dict(repository.branches["main"])
            repository.commits[name] = repository.commits["main"]
            return {}
        branch = name or "main"
        if branch not in repository.branches:
            raise _Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if action == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return {"files": modes}
        if action == "tree":
            return [self._entry(*file) for file in repository.branches[branch].items()]
        if action == "commit":
            return self._commit(hub_id, branch, [json.loads(x) for x in body.splitlines()])
        commit = repository.commits[branch]
        return {"id": hub_id, "private": repository.private, "sha": commit, "tags": []}

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry = {"type": "file", "path": path, "size": len(content), "oid": git}
        if path.endswith(_LARGE):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def _commit(self, hub_id: str, branch: str, lines: list[dict[str, Any]]) -> Any:
        repository = self.server.repositories[hub_id]
        header, *operations = lines
        if self.server.fails:
            raise _Refused(500, "Internal error")
        if self.server.intrudes:
            repository.advance(branch)
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != repository.commits[branch]:
            raise _Refused(412, "A commit has happened since")
        files = repository.branches[branch]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
                continue
            if operation["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
            else:
                content = base64.b64decode(value["content"])
            files[value["path"]] = content[:-1] if self.server.spoils else content
        commit = repository.advance(branch)
        return {"commitUrl": f"{self.server.url}/{hub_id}/commit/{commit}", "commitOid": commit}
