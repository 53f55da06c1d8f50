"""The data plane: hold a lease and pass the bytes of one request and its answer through, untouched, chunk
by chunk.

It knows nothing of what is inside a body: the families of `router.api` read what must be read and put it
into an `Ask`.

Every request gets a connection of its own to its child. llama-server closes a kept-alive connection
after 100 requests and after 5 s of idleness, and a POST lost to that race cannot be told from one that
was begun; a new connection over a Unix socket costs about 0.1 ms (measured) and ends the question."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from router.core.types import Cause, InstanceId, ModelName, Priority, Stop
from router.errors import LoadFailed, RouterError, ShuttingDown, Unavailable, Unloaded, UpstreamFailed
from router.pool import Lease, Pool
from router.stall import Passage, Traffic

log = logging.getLogger("router.proxy")

#: A child's death is seen on its connections a moment before the pool is told of it.
EXIT_NOTICE_SECONDS = 1.0
EXIT_POLL_SECONDS = 0.01
#: A child that dies in its first request counts as a failed load, and the model pauses: so long a retry
#: waits for it.
RETRY_PATIENCE_SECONDS = 5.0
#: Larger bodies are written in pieces of this size, so that the loop is not held up.
BODY_PIECE_BYTES = 1 << 18

_OUT_OF_FILES = "the router has as many files and connections open as it may (ulimit -n)"
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
#: Ours to read, and none of the child's business; a length is written anew, an expectation was met by us.
_NOT_FORWARDED = _HOP_BY_HOP | {"authorization", "x-api-key", "content-length", "expect"}
#: Headers that aiohttp's client would add where the client of ours sent none.
_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)


class Dialect(Enum):
    """Whose words an error inside a stream is told in."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Ask:
    """What the scheduler is told of a request. `model` is the canonical name; `keep_alive` is in seconds;
    `stream`: the client asked for server-sent events.
    """

    model: ModelName
    priority: Priority | None = None
    keep_alive: float | None = None
    size: float | None = None
    dialect: Dialect = Dialect.OPENAI
    stream: bool = False


@dataclass(slots=True)
class Account:
    """What became of a request, for its X-Router headers and its line in the access log."""

    model: ModelName
    action: str = "rejected"
    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    first_byte_seconds: float | None = None
    evicted: tuple[InstanceId, ...] = ()
    instance: InstanceId | None = None
    sent_bytes: int = 0
    # Set by an operator who ends the request, before its task is cancelled.
    ended_by: RouterError | None = None
    # What the child told at the end of its answer, None where it told nothing.
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    tokens_per_second: float | None = None

    def headers(self) -> dict[str, str]:
        return {
            "X-Router-Action": self.action,
            "X-Router-Queue-Ms": f"{self.queue_seconds * 1e3:.0f}",
            "X-Router-Load-Ms": f"{self.load_seconds * 1e3:.0f}",
        }


ACCOUNT = web.RequestKey("account", Account)


def error_body(error: RouterError) -> dict[str, object]:
    """The error in OpenAI's shape; its details stand beside the usual fields."""
    usual = {"message": error.message, "type": error.type, "code": error.code, "param": None}
    return {"error": {**error.details, **usual}}


class _Broken(Exception):
    """An attempt ended before anything of its answer was sent to the client."""

    def __init__(self, error: RouterError, *, may_retry: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.may_retry = may_retry


class Proxy:
    """Passes requests to the instances of one pool. `traffic` tells what each of them moves."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.traffic = Traffic()

    async def forward(
        self, request: web.Request, body: bytes, ask: Ask, *, target: str | None = None
    ) -> web.StreamResponse:
        """Answer `request` from an instance of its model. Raises RouterError as long as nothing was sent.
        `target` is the path and query that the child is asked for, encoded; None: those of `request`.

        A child that dies before its answer began is replaced once. One that dies later ends the answer with
        an error event in a server-sent stream, else with a closed connection: never with what looks like a
        proper end.
        """
        account = request[ACCOUNT] = Account(ask.model)
        begun = asyncio.get_running_loop().time()
        try:
            return await self._attempt(request, body, ask, account, target)
        except _Broken as broken:
            if not broken.may_retry:
                raise broken.error from broken
            first = broken.error
        except RouterError:
            account.queue_seconds = asyncio.get_running_loop().time() - begun
            raise
        log.warning("%s; the request is tried once more", first.message)
        return await self._retry(request, body, ask, account, target, first)

    async def _retry(
        self,
        request: web.Request,
        body: bytes,
        ask: Ask,
        account: Account,
        target: str | None,
        first: RouterError,
    ) -> web.StreamResponse:
        try:
            try:
                return await self._attempt(request, body, ask, account, target)
            except LoadFailed as pausing:
                pause = pausing.retry_after_seconds
                if pause is None or pause > RETRY_PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(pause)
                return await self._attempt(request, body, ask, account, target)
        except _Broken as broken:
            raise broken.error from broken
        except RouterError as refusal:
            raise UpstreamFailed(
                f"{first.message}; the second try: {refusal.message}",
                retry_after_seconds=refusal.retry_after_seconds,
                details=first.details,
            ) from refusal

    async def _attempt(
        self, request: web.Request, body: bytes, ask: Ask, account: Account, target: str | None
    ) -> web.StreamResponse:
        async with self._pool.lease(
            ask.model, priority=ask.priority, keep_alive=ask.keep_alive, size=ask.size
        ) as lease:
            account.action = lease.action
            account.queue_seconds, account.load_seconds = lease.queue_seconds, lease.load_seconds
            account.evicted = lease.evicted
            account.instance = lease.instance
            with self.traffic.passage(lease.instance) as passage:
                return await self._exchange(request, body, ask, account, target, lease, passage)

    async def _exchange(
        self,
        request: web.Request,
        body: bytes,
        ask: Ask,
        account: Account,
        target: str | None,
        lease: Lease,
        passage: Passage,
    ) -> web.StreamResponse:
        granted = asyncio.get_running_loop().time()
        async with _session(lease.address.socket) as session:
            try:
                upstream = await session.request(
                    request.method,
                    URL(f"http://llama-server{target or request.rel_url.raw_path_qs}", encoded=True),
                    headers=_request_headers(request, body),
                    data=body if len(body) <= BODY_PIECE_BYTES else _pieces(body),
                    allow_redirects=False,
                )
            except (aiohttp.ClientError, OSError) as error:
                raise await self._broken(lease, error) from error
            account.first_byte_seconds = asyncio.get_running_loop().time() - granted
            async with upstream:
                headers = _response_headers(upstream, account)
                response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
                return await self._pass_on(request, upstream, response, lease, ask.dialect, passage)

    async def _pass_on(
        self,
        request: web.Request,
        upstream: aiohttp.ClientResponse,
        response: web.StreamResponse,
        lease: Lease,
        dialect: Dialect,
        passage: Passage,
    ) -> web.StreamResponse:
        await response.prepare(request)
        last = b""
        while True:
            try:
                chunk = await upstream.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                failure = await self._cut(lease, error)
                await _end_with_error(request, response, failure, dialect, last)
                return response
            except asyncio.CancelledError:
                ended_by, task = request[ACCOUNT].ended_by, asyncio.current_task()
                if ended_by is None or task is None:
                    raise
                task.uncancel()
                await _end_with_error(request, response, ended_by, dialect, last)
                return response
            if not chunk:
                break
            last = chunk
            passage.moved(len(chunk))
            await response.write(chunk)
            passage.taken()
            request[ACCOUNT].sent_bytes += len(chunk)
        await response.write_eof()
        return response

    # --- when a child fails ---

    async def _broken(self, lease: Lease, error: Exception) -> _Broken:
        """Nothing was sent yet. To be called under the lease: the scheduler then sees the child die in
        service."""
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return _Broken(Unavailable(_OUT_OF_FILES, retry_after_seconds=1.0), may_retry=False)
        is_gone = await self._is_gone(lease.instance)
        never_connected = isinstance(error, aiohttp.ClientConnectorError)
        is_own_death = self._stopped_for(lease.instance) is None and self._verdict(lease) is None
        failure = self._failure(lease, error, "before its answer began")
        return _Broken(failure, may_retry=is_own_death and (is_gone or never_connected))

    async def _cut(self, lease: Lease, error: Exception) -> RouterError:
        await self._is_gone(lease.instance)
        failure = self._failure(lease, error, "in the middle of its answer")
        log.warning("%s", failure.message)
        return failure

    async def _is_gone(self, instance: InstanceId) -> bool:
        """Wait a moment for the pool to be told of the child's exit; False: it still lives."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + EXIT_NOTICE_SECONDS
        while any(one.id == instance for one in self._pool.snapshot().instances):
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(EXIT_POLL_SECONDS)
        return True

    def _stopped_for(self, instance: InstanceId) -> Cause | None:
        """Why the router itself stopped the instance, if it did."""
        for entry in reversed(self._pool.journal.entries()):
            for command in entry.commands:
                if isinstance(command, Stop) and command.instance == instance:
                    return command.cause
        return None

    def _verdict(self, lease: Lease) -> str | None:
        """Why the instance was given up as stuck, if it was. Its next request loads it anew; this one is not
        tried again, as it may be what the instance was stuck in.
        """
        flow = self.traffic.flows.get(lease.instance)
        return flow.verdict if flow is not None else None

    def _failure(self, lease: Lease, error: Exception, when: str) -> RouterError:
        match self._stopped_for(lease.instance):
            case None:
                tail = self._pool.log_tail(lease.instance)
                last = f"; its last line: {tail[-1]}" if tail else ""
                why = self._verdict(lease) or _words(error)
                return UpstreamFailed(
                    f"the llama-server of {lease.model} failed {when}: {why}{last}",
                    details={"instance": lease.instance, "log_tail": list(tail)},
                )
            case Cause.SHUTDOWN:
                return ShuttingDown(f"the router shut down {when}", retry_after_seconds=5.0)
            case cause:
                return Unloaded(f"{lease.model} was stopped {when}: {cause.value}", retry_after_seconds=1.0)


def _words(error: Exception) -> str:
    match error:
        case aiohttp.ServerDisconnectedError() | ConnectionResetError() | BrokenPipeError():
            return "it closed the connection"
        case aiohttp.ClientPayloadError():
            return "its connection broke off"
        case aiohttp.ClientConnectorError():
            return f"cannot connect to it: {error.os_error.strerror or error.os_error}"
        case _:
            return str(error) or type(error).__name__


def _session(socket: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(socket, limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_NOT_ADDED,
        auto_decompress=False,
        timeout=_NO_TIMEOUT,
    )


def _request_headers(request: web.Request, body: bytes) -> CIMultiDict[str]:
    headers = _without(request.headers, _NOT_FORWARDED)
    headers["Content-Length"] = str(len(body))
    return headers


def _response_headers(upstream: aiohttp.ClientResponse, account: Account) -> CIMultiDict[str]:
    headers = _without(upstream.headers, _HOP_BY_HOP)
    # Who may read the answer in a browser is said by our configuration alone.
    for name in [name for name in headers if name.lower().startswith("access-control-")]:
        del headers[name]
    headers.update(account.headers())
    if upstream.content_type == "text/event-stream":
        headers.setdefault("X-Accel-Buffering", "no")  # else an nginx in front collects the stream
    return headers


def _without(headers: CIMultiDictProxy[str], unwanted: frozenset[str]) -> CIMultiDict[str]:
    """A copy without `unwanted` and without what the Connection header names (RFC 9110, 7.6.1)."""
    named = {name.strip().lower() for line in headers.getall("Connection", ()) for name in line.split(",")}
    kept = CIMultiDict[str]()
    for name, value in headers.items():
        if name.lower() not in unwanted and name.lower() not in named:
            kept.add(name, value)
    return kept


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), BODY_PIECE_BYTES):
        yield body[start : start + BODY_PIECE_BYTES]


async def _end_with_error(
    request: web.Request, response: web.StreamResponse, error: RouterError, dialect: Dialect, last: bytes
) -> None:
    """End an answer that its child did not end, so that nobody takes it for complete. `last` is its last
    chunk."""
    if response.content_type == "text/event-stream" and "Content-Encoding" not in response.headers:
        # An event that was cut in half must be ended, or the error would become a part of it.
        between = b"" if not last or last.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        await response.write(between + _error_event(error, dialect))
        await response.write_eof()
    elif request.transport is not None:
        request.transport.close()  # what was written is still sent, but nothing that says "complete"


def _error_event(error: RouterError, dialect: Dialect) -> bytes:
    match dialect:
        case Dialect.OPENAI:
            return b"data: " + msgspec.json.encode(error_body(error)) + b"\n\n"
        case Dialect.ANTHROPIC:  # its clients look at named events only
            body = {"type": "error", "error": {"type": "api_error", "message": error.message}}
            return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
