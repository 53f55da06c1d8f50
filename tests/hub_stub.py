"""A Hugging Face hub on loopback: what huggingface_hub asks of the real one to look at a repository and to
fetch its files, with the faults that a test asks for.

Large files are redirected to another host, as the hub does: 127.0.0.2, which must never see a token.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

#: What is at least that large is kept outside git, under its sha256.
LARGE_BYTES = 1024
CHUNK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Asked:
    """A request the hub has had."""

    method: str
    host: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(slots=True)
class Faults:
    """What shall go wrong. `cuts`: the next answers with content break off after so many bytes of it.
    `statuses`: the next requests for content are answered so. `hold_after`: content stops there until
    `go`. `is_dumb`: nothing is answered at all until then."""

    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    ends_early: int | None = None
    ignores_range: bool = False
    hold_after: int | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    api_status: int | None = None
    is_dumb: bool = False
    #: A captive portal: what is asked (of "api", "head", "content") is answered with `page`, as
    #: `page_type`; with `login` only after a redirection there.
    portal: frozenset[str] = frozenset()
    page: bytes = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    page_type: str = "text/html"
    login: str | None = None


@dataclass(frozen=True, slots=True)
class Mirror:
    """How a mirror differs from the hub: it sends content itself, with an `etag` of its own kind or none; its
    list tells of a file only what is in `lists`; it may answer GET or HEAD without telling the length."""

    etag: Callable[[bytes], str] | None = None
    lists: frozenset[str] = frozenset({"size", "blobId", "lfs"})
    tells_length: bool = True
    head_length: bool = True


@dataclass(slots=True)
class StubRepo:
    """`served` replaces what is sent for a path, against what is listed; `listed` adds names to the list, and
    `unlisted` has contents of such."""

    files: dict[str, bytes]
    commit: str = field(default_factory=lambda: secrets.token_hex(20))
    gated: bool = False
    needs_token: str | None = None
    served: dict[str, bytes] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)
    mirror: Mirror | None = None
    unlisted: dict[str, bytes] = field(default_factory=dict)


class HubStub:
    """`repos` by their names; `url` is what HF_ENDPOINT must be."""

    def __init__(self) -> None:
        self.repos: dict[str, StubRepo] = {}
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.url = ""
        self.cdn_port = 0
        self._cdn = ""

    def add(self, name: str, files: Mapping[str, bytes], **more: Any) -> StubRepo:
        self.repos[name] = StubRepo(dict(files), **more)
        return self.repos[name]

    def environ(self, folder: Path, **more: str) -> dict[str, str]:
        """For a router that is to use this hub, with a cache in `folder`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder),
            "HF_TOKEN_PATH": str(folder / "none"),
            **more,
        }

    def content_requests(self) -> list[Asked]:
        return [one for one in self.asked if one.method == "GET" and not one.path.startswith("/api/")]

    # --- how it answers ---

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[HubStub]:
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}", self._info)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}/auth-check", self._auth_check)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}/revision/{revision}", self._info)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}/refs", self._refs)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}/tree/{revision}", self._tree)
        app.router.add_get("/{repo:[^/]+/[^/]+}/resolve/{revision}/{path:.+}", self._resolve)
        app.router.add_get("/cdn/{repo:[^/]+/[^/]+}/{path:.+}", self._content)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            for host in ("127.0.0.1", "127.0.0.2"):
                await web.TCPSite(runner, host, 0, ssl_context=tls).start()
            (_, port), (_, self.cdn_port) = runner.addresses
            scheme = "http" if tls is None else "https"
            self.url, self._cdn = f"{scheme}://127.0.0.1:{port}", f"{scheme}://127.0.0.2:{self.cdn_port}"
            yield self
        finally:
            self.faults.go.set()
            await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        headers = request.headers
        self.asked.append(
            Asked(
                request.method,
                request.host.partition(":")[0],
                request.path,
                headers.get("Range"),
                headers.get("Authorization"),
            )
        )
        if self.faults.api_status is not None and request.path.startswith("/api/"):
            return web.Response(status=self.faults.api_status)
        if self.faults.is_dumb:
            self.faults.holding.set()
            await self.faults.go.wait()
        if request.path == "/login" or self._asks(request) in self.faults.portal:
            return self._portal(request)
        return await handler(request)

    def _asks(self, request: web.Request) -> str:
        if request.path.startswith("/api/"):
            return "api"
        return "head" if request.method == "HEAD" else "content"

    def _portal(self, request: web.Request) -> web.Response:
        if self.faults.login is not None and request.path != "/login":
            return web.Response(status=302, headers={"Location": self.faults.login})
        return web.Response(body=self.faults.page, content_type=self.faults.page_type)

    def _repo(self, request: web.Request) -> tuple[str, StubRepo]:
        name = request.match_info["repo"]
        if name not in self.repos:
            raise web.HTTPUnauthorized(headers={"X-Error-Code": "RepoNotFound"})
        repo = self.repos[name]
        if request.match_info.get("revision", "main") not in ("main", repo.commit):
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
        return name, repo

    def _check_token(self, request: web.Request, repo: StubRepo) -> None:
        if repo.gated and request.headers.get("Authorization") != f"Bearer {repo.needs_token}":
            raise web.HTTPForbidden(headers={"X-Error-Code": "GatedRepo"})

    async def _info(self, request: web.Request) -> web.Response:
        name, repo = self._repo(request)
        siblings = [_sibling(path, content) for path, content in sorted(repo.files.items())] + repo.listed
        if repo.mirror is not None:
            kept = {"rfilename", *repo.mirror.lists}
            siblings = [{key: one[key] for key in one if key in kept} for one in siblings]
        return web.json_response(
            {
                "id": name,
                "modelId": name,
                "sha": repo.commit,
                "private": False,
                "gated": "manual" if repo.gated else False,
                "siblings": siblings,
            }
        )

    async def _refs(self, request: web.Request) -> web.Response:
        """As llama.cpp asks."""
        _, repo = self._repo(request)
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commit}
        return web.json_response({"branches": [branch], "tags": [], "converts": []})

    async def _tree(self, request: web.Request) -> web.Response:
        _, repo = self._repo(request)
        return web.json_response([_entry(path, content) for path, content in sorted(repo.files.items())])

    async def _auth_check(self, request: web.Request) -> web.Response:
        self._check_token(request, self._repo(request)[1])
        return web.Response()

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        name, repo = self._repo(request)
        self._check_token(request, repo)
        path = request.match_info["path"]
        content = repo.files.get(path, repo.unlisted.get(path))
        if content is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": repo.commit}
        if repo.mirror is not None:
            headers |= {"ETag": repo.mirror.etag(content)} if repo.mirror.etag is not None else {}
            return await self._send(request, repo, path, headers)
        if len(content) < LARGE_BYTES:
            return await self._send(request, repo, path, headers | {"ETag": f'"{_git_hash(content)}"'})
        headers |= {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self._cdn}/cdn/{name}/{path}?X-Signature=very-secret",
        }
        return web.Response(status=302, headers=headers)

    async def _content(self, request: web.Request) -> web.StreamResponse:
        repo = self.repos[request.match_info["repo"]]
        if "X-Signature" not in request.query:
            raise web.HTTPForbidden
        return await self._send(request, repo, request.match_info["path"], {})

    async def _send(
        self, request: web.Request, repo: StubRepo, path: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        faults = self.faults
        content = repo.served.get(path) or repo.files.get(path) or repo.unlisted[path]
        if request.method == "GET" and faults.statuses:
            after = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            return web.Response(status=faults.statuses.pop(0), headers=after)
        if request.method == "GET" and faults.ends_early is not None:
            content = content[: faults.ends_early]
        begin = 0
        if (asked := request.headers.get("Range")) is not None and not faults.ignores_range:
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            if begin >= len(content):
                return web.Response(status=416)
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        status = 206 if begin else 200
        mirror = repo.mirror or Mirror()
        if mirror.head_length if request.method == "HEAD" else mirror.tells_length:
            headers["Content-Length"] = str(len(content) - begin)
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        cut = faults.cuts.pop(0) if faults.cuts else None
        at = begin
        while at < len(content):
            if faults.hold_after is not None and at >= faults.hold_after:
                faults.holding.set()
                await faults.go.wait()
            if cut is not None and at - begin >= cut:
                assert request.transport is not None
                request.transport.close()
                raise ConnectionResetError
            bounds = [at + CHUNK_BYTES, len(content)]
            bounds += [begin + cut] if cut is not None else []
            bounds += [faults.hold_after] if faults.hold_after is not None and faults.hold_after > at else []
            await response.write(content[at : min(bounds)])
            at = min(bounds)
        return response


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    listed: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_hash(content)}
    if len(content) >= LARGE_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        listed["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
    return listed


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _git_hash(content), "size": len(content), "path": path}
    if len(content) >= LARGE_BYTES:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
