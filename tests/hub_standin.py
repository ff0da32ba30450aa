"""A Hub in memory, for the tests of publishing: what the real clients ask of huggingface.co, answered on
loopback.

It keeps repositories of all three kinds with their commits, branches and tags, stores large files by the
git-lfs batch protocol, knows a token that may write and one that may only read, and can be told to break a
connection. What keeps it honest: test_publish.py drives it with huggingface_hub, transformers, timm and
datasets as they are installed.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pytest
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

WRITER, READER = "hf_may_write", "hf_may_read"
KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
LARGE = (".safetensors", ".onnx", ".parquet", ".png", ".wasm")


class Problem(Exception):
    """An answer other than the one asked for, with the headers from which clients tell one from another."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.response = JSONResponse(
            {"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message}
        )


@dataclass(frozen=True)
class Blob:
    """A stored file; `large` ones are known by their SHA-256, the others by git's own hash."""

    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0%s" % (len(self.content), self.content)).hexdigest()

    def listed(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        return entry | (
            {"lfs": {"oid": self.oid, "size": len(self.content), "pointerSize": 130}} if self.large else {}
        )


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repository: commits by hash, and the names that point at them."""

    kind: str
    name: str
    asked: dict
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        return self.asked.get("visibility") == "private" or bool(self.asked.get("private"))

    def add(self, branch: str, title: str, files: dict[str, Blob]) -> str:
        oid = hashlib.sha1(f"{self.kind}{self.name}{branch}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files)
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> Commit:
        revision = unquote(revision)
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits up to a revision, newest first."""
        upto = list(self.commits).index(self.at(revision).oid)
        return list(self.commits.values())[upto::-1]


class Hub:
    """The server's state, and what a test may do to it.

    Attributes:
        url: where it listens.
        repos: by kind and name, `hub.repos["models", "org/name"]`.
        log: (method, path, status) of every request.
        env: environment of a subprocess that is to use it, cache folder included.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int]] = []
        self.url, self.env = "", {}
        self._faults: list[list] = []

    def break_next(self, part: str, times: int = 1, after: bool = False) -> None:
        """Cut the connection of the next requests with `part` in their path, before or `after` doing what
        they ask.
        """
        self._faults.append([part, times, after])

    def fault(self, path: str) -> str | None:
        for fault in self._faults:
            if fault[0] in path and fault[1]:
                fault[1] -= 1
                return "after" if fault[2] else "before"
        return None

    def find(self, request: Request) -> Repo:
        """The repository a path names; a private one is hidden from strangers, as on the Hub."""
        p = request.path_params
        repo = self.repos.get((p.get("kind", "models"), f"{p['owner']}/{p['name'].removesuffix('.git')}"))
        if repo is None or (repo.private and token(request) is None):
            raise Problem(404 if token(request) else 401, "RepoNotFound", "Repository not found")
        return repo


def token(request: Request) -> str | None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    return given if given in (WRITER, READER) else None


def may_write(request: Request) -> None:
    if token(request) is None:
        raise Problem(401, "", "Invalid username or password.")
    if token(request) != WRITER:
        raise Problem(
            403, "", "Forbidden: you don't have the required permissions: this token may only read."
        )


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1]) or {} if text.startswith("---\n") else {}


def routes(hub: Hub) -> list[Route]:
    """The paths the clients call, each with its answer."""

    async def whoami(request: Request):
        if token(request) is None:
            raise Problem(401, "", "Invalid username or password.")
        role = "write" if token(request) == WRITER else "read"
        access = {
            "type": "access_token",
            "accessToken": {"displayName": role, "role": role, "createdAt": now()},
        }
        return {"type": "user", "id": "1", "name": "org", "fullname": "Org", "orgs": [], "auth": access}

    async def create(request: Request):
        may_write(request)
        asked = await request.json()
        kind, name = (
            (asked.get("type") or "model") + "s",
            f"{asked.get('organization') or 'org'}/{asked['name']}",
        )
        url = f"{hub.url}/{KINDS[kind]}{name}"
        if (kind, name) in hub.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        if asked.get("organization") not in (None, "org"):
            raise Problem(403, "", f"Forbidden: no right to create in {asked['organization']}.")
        repo = hub.repos[kind, name] = Repo(kind, name, asked)
        repo.add("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        return {"url": url, "name": name, "id": name}

    async def info(request: Request):
        repo = hub.find(request)
        commit = repo.at(request.path_params.get("revision", "main"))
        readme = commit.files.get("README.md")
        card = front_matter(readme.content.decode()) if readme else {}
        found = {key: card.get(key) for key in ("pipeline_tag", "library_name")}
        if "config.json" in commit.files:
            found["config"] = json.loads(commit.files["config.json"].content)
        if repo.kind == "spaces":
            found |= {"sdk": repo.asked.get("sdk"), "runtime": {"stage": "RUNNING", "hardware": {}}}
        blobs = "blobs" in request.query_params
        siblings = []
        for path, blob in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if blobs:
                siblings[-1] |= {"size": len(blob.content), "blobId": blob.oid}
            if blobs and blob.large:
                siblings[-1]["lfs"] = {"sha256": blob.oid, "size": len(blob.content), "pointerSize": 130}
        return {
            "_id": repo.name,
            "id": repo.name,
            "modelId": repo.name,
            "sha": commit.oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "lastModified": now(),
            "createdAt": now(),
            "tags": card.get("tags", []),
            "cardData": card,
            "siblings": siblings,
            **found,
        }

    async def tree(request: Request):
        commit = hub.find(request).at(request.path_params["revision"])
        base = request.path_params.get("path", "").strip("/")
        below = {path: blob for path, blob in commit.files.items() if not base or path.startswith(base + "/")}
        if base and not below:
            raise Problem(404, "EntryNotFound", f"{base} does not exist")
        deep = request.query_params.get("recursive", "").lower() in ("1", "true")
        entries, depth = {}, base.count("/") + 1 if base else 0
        for path, blob in sorted(below.items()):
            parts = path.split("/")
            for length in range(depth + 1, len(parts) if deep else min(depth + 2, len(parts))):
                folder = "/".join(parts[:length])
                entries.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            if deep or len(parts) == depth + 1:
                entries[path] = blob.listed(path)
        return list(entries.values())

    async def paths_info(request: Request):
        commit = hub.find(request).at(request.path_params["revision"])
        if "json" in request.headers.get("content-type", ""):
            paths = (await request.json())["paths"]
        else:
            paths = (await request.form()).getlist("paths")
        folders = [p for p in paths if any(file.startswith(p.rstrip("/") + "/") for file in commit.files)]
        return [commit.files[p].listed(p) for p in paths if p in commit.files] + [
            {"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in folders
        ]

    async def preupload(request: Request):
        may_write(request)
        files = hub.find(request).at(request.path_params["revision"]).files
        answers = []
        for asked in (await request.json())["files"]:
            there = files.get(asked["path"])
            mode = "lfs" if asked["path"].endswith(LARGE) else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False,
                            "oid": there.oid if there else None})  # fmt: skip
        return {"files": answers}

    async def commit(request: Request):
        may_write(request)
        repo, branch = hub.find(request), unquote(request.path_params["revision"])
        if branch not in repo.branches:
            raise Problem(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        head, files, title = repo.at(branch).oid, dict(repo.at(branch).files), ""
        for line in (await request.body()).splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    raise Problem(412, "", "A commit has happened since. Please refresh and try again.")
            elif step["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif step["key"] == "lfsFile":
                if value["oid"] not in hub.large:
                    raise Problem(422, "", f"{value['path']} was not uploaded")
                files[value["path"]] = Blob(hub.large[value["oid"]], True)
            elif step["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Problem(404, "EntryNotFound", "A file with this name doesn't exist")
            elif step["key"] == "deletedFolder":
                files = {p: b for p, b in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        oid = repo.add(branch, title, files)
        return {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{hub.url}/{KINDS[repo.kind]}{repo.name}/commit/{oid}",
        }

    async def lfs_batch(request: Request):
        hub.find(request)
        objects = [
            {"oid": asked["oid"], "size": asked["size"]}
            | (
                {}
                if asked["oid"] in hub.large
                else {"actions": {"upload": {"href": f"{hub.url}/lfs/{asked['oid']}"}}}
            )
            for asked in (await request.json())["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    async def lfs_put(request: Request):
        content, oid = await request.body(), request.path_params["oid"]
        if hashlib.sha256(content).hexdigest() != oid:
            raise Problem(400, "", "not the announced content")
        hub.large[oid] = content
        return {}

    async def refs(request: Request):
        repo = hub.find(request)

        def listed(names: dict[str, str], folder: str) -> list[dict]:
            return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in names.items()]

        return {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []}

    async def add_branch(request: Request):
        may_write(request)
        repo, name = hub.find(request), unquote(request.path_params["revision"])
        if name in repo.branches:
            return JSONResponse({"error": "Reference already exists"}, 409)
        repo.branches[name] = repo.branches["main"]
        return {}

    async def add_tag(request: Request):
        may_write(request)
        repo, name = hub.find(request), (await request.json())["tag"]
        if name in repo.tags:
            return JSONResponse({"error": "Tag already exists"}, 409)
        repo.tags[name] = repo.at(request.path_params["revision"]).oid
        return {}

    async def history(request: Request):
        commits = hub.find(request).history(request.path_params["revision"])
        return [{"id": c.oid, "title": c.title, "message": "", "authors": [], "date": now()} for c in commits]

    async def validate(request: Request):
        try:
            front_matter((await request.json())["content"])
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return {"errors": [], "warnings": []}

    async def resolve(request: Request):
        found = hub.find(request).at(request.path_params["revision"])
        blob = found.files.get(request.path_params["path"])
        if blob is None:
            problem = Problem(404, "EntryNotFound", "Entry not found")
            problem.response.headers["X-Repo-Commit"] = found.oid
            raise problem
        headers = {"X-Repo-Commit": found.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content))}
        content, status = blob.content, 200
        if (wanted := request.headers.get("range", "")).startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        if request.method == "HEAD":
            return Response(b"", headers=headers | {"Content-Length": str(len(content))})
        return Response(content, status, headers, "application/octet-stream")

    def guarded(endpoint):
        async def answer(request: Request) -> Response:
            try:
                found = await endpoint(request)
            except Problem as problem:
                return problem.response
            return found if isinstance(found, Response) else JSONResponse(found)

        return answer

    repo = "/api/{kind}/{owner}/{name}"
    table = [
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/repos/create", create),
        ("POST", "/api/validate-yaml", validate),
        ("PUT", "/lfs/{oid}", lfs_put),
        ("GET", repo, info),
        ("GET", repo + "/revision/{revision:path}", info),
        ("GET", repo + "/tree/{revision}", tree),
        ("GET", repo + "/tree/{revision}/{path:path}", tree),
        ("POST", repo + "/paths-info/{revision}", paths_info),
        ("POST", repo + "/preupload/{revision:path}", preupload),
        ("POST", repo + "/commit/{revision:path}", commit),
        ("GET", repo + "/refs", refs),
        ("GET", repo + "/commits/{revision}", history),
        ("POST", repo + "/branch/{revision:path}", add_branch),
        ("POST", repo + "/tag/{revision:path}", add_tag),
        ("POST", "/{kind}/{owner}/{name}/info/lfs/objects/batch", lfs_batch),
        ("POST", "/{owner}/{name}/info/lfs/objects/batch", lfs_batch),
        ("GET", "/{kind}/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
        ("GET", "/{owner}/{name}/resolve/{revision}/{path:path}", resolve),
    ]
    return [Route(path, guarded(endpoint), methods=[method]) for method, path, endpoint in table]


def application(hub: Hub):
    """The ASGI application: the routes, the log, and the connections that break on request."""
    inner = Starlette(routes=routes(hub))

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return await inner(scope, receive, send)
        fault = hub.fault(scope["path"])

        async def spy(message):
            if message["type"] == "http.response.start":
                hub.log.append((scope["method"], scope["path"], message["status"]))
            if fault is None:
                await send(message)

        if fault != "before":
            await inner(scope, receive, spy)
        if fault is not None:  # an answer that promises bytes and never sends them: the server hangs up
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


@contextmanager
def running(cache: Path) -> Iterator[Hub]:
    """An empty Hub on a free port; `cache` becomes HF_HOME of the subprocesses that use `hub.env`."""
    hub = Hub()
    config = uvicorn.Config(
        application(hub), host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    hub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    hub.env = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_TOKEN": WRITER,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(5)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub that this process' huggingface_hub talks to, as a user who may write."""
    from huggingface_hub import constants

    with running(tmp_path / "hub-cache") as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "hub-cache" / "hub"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield hub
