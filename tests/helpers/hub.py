"""A stand-in for the Hub on loopback: the part of its API that pushing, card and loading use, kept in memory."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


USER = "tester"
TOKEN = "hf_of_the_tester"
# As on the Hub, these go by the large-file protocol, the others within the commit.
LARGE = (".safetensors", ".bin", ".model")


@dataclass
class Repository:
    """Files by path, of each branch, and the messages of the commits."""

    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)
    private: bool = False

    def head(self, revision: str) -> str:
        """A commit id that changes with the content."""
        files = self.branches[revision]
        return hashlib.sha1(repr(sorted((name, digest(files[name])) for name in files)).encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds; `others` is the name of an owner for whom the tester may not write."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    others: str = "somebody-else"

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that takes this for the Hub."""
        return os.environ | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
        }


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """The hub, while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        for method, pattern, name in ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, path)):
                if self.command in ("POST", "PUT") and not self.may_write(match.groupdict(), body, name):
                    return
                getattr(self, name)(body, **{key: unquote(value) for key, value in match.groupdict().items()})
                return
        self.send(404, {"error": f"no such route: {self.command} {path}"})

    def may_write(self, parts: dict[str, str], body: bytes, name: str) -> bool:
        owner = parts.get("repo", "").partition("/")[0]
        if name == "create":
            owner = json.loads(body).get("organization") or USER
        if name not in ("validate", "upload") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, {"error": "Invalid username or password."})
        elif owner == self.hub.others:
            self.send(403, {"error": f'You don\'t have the rights to create a model under the namespace "{owner}"'})
        else:
            return True
        return False

    def send(self, status: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        if status == 404 and "X_Error_Code" not in headers:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def whoami(self, body: bytes) -> None:
        self.send(200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---", content, re.DOTALL).group(1))
        wrong = [] if isinstance(metadata.get("license", ""), str) else [{"message": '"license" must be a string'}]
        self.send(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        known = name in self.hub.repositories
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories.setdefault(name, Repository(private=private))
        self.send(409 if known else 200, {"url": f"{self.hub.url}/{name}", "error": "exists"})

    def repository(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        if repo not in self.hub.repositories:
            self.send(404)
        elif revision not in (branches := self.hub.repositories[repo].branches):
            heads = {self.hub.repositories[repo].head(branch): files for branch, files in branches.items()}
            if revision in heads:
                return heads[revision]
            self.send(404, X_Error_Code="RevisionNotFound")
        else:
            return branches[revision]
        return None

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if (files := self.repository(repo, revision)) is not None:
            siblings = [{"rfilename": name} for name in files]
            sha = self.hub.repositories[repo].head(revision)
            self.send(200, {"id": repo, "sha": sha, "private": False, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, repo: str, revision: str, path: str = "") -> None:
        if (files := self.repository(repo, revision)) is not None:
            rows = [
                {"type": "file", "path": name, "size": len(content), "oid": digest(content)[:40]}
                for name, content in files.items()
                if name.startswith(f"{path}/" if path else "")
            ]
            self.send(200, json.dumps(rows).encode())

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        branches = self.hub.repositories[repo].branches
        known = revision in branches
        branches.setdefault(revision, dict(branches["main"]))
        self.send(409 if known else 200)

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self.repository(repo, revision) is not None:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular"} for path in paths]
            self.send(200, {"files": [mode | {"shouldIgnore": False} for mode in modes]})

    def batch(self, body: bytes, repo: str) -> None:
        objects = [
            wanted | {"actions": {"upload": {"href": f"{self.hub.url}/{repo}/large/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, repo: str, oid: str) -> None:
        assert digest(body) == oid
        self.hub.large[oid] = body
        self.send(200)

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        files = self.repository(repo, revision)
        if files is None:
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.repositories[repo].messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                raise NotImplementedError(line["key"])
        oid = self.hub.repositories[repo].head(revision)
        self.send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid, "success": True})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        files = self.repository(repo, revision)
        if files is None:
            return
        if path not in files:
            self.send(404, X_Error_Code="EntryNotFound")
            return
        commit = self.hub.repositories[repo].head(revision) if len(revision) < 40 else revision
        self.send(200, files[path], ETag=f'"{digest(files[path])}"', X_Repo_Commit=commit)


ROUTES = [
    (("GET",), "/api/whoami-v2", "whoami"),
    (("POST",), "/api/validate-yaml", "validate"),
    (("POST",), "/api/repos/create", "create"),
    (("GET",), "/api/models/(?P<repo>[^/]+/[^/]+)", "info"),
    (("GET",), "/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "info"),
    (("GET",), "/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
    (("GET",), "/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/(?P<path>.+)", "tree"),
    (("POST",), "/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)", "branch"),
    (("POST",), "/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
    (("POST",), "/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
    (("POST",), r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    (("PUT",), "/(?P<repo>[^/]+/[^/]+)/large/(?P<oid>[^/]+)", "upload"),
    (("GET", "HEAD"), "/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
