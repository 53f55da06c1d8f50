"""Requests that are proxied: found by path, checked as the application checks its own, their bodies read, and
handed to `router.proxy` with what their route reads of them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from inspect import iscoroutinefunction
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast

import msgspec
from multidict import CIMultiDictProxy, MultiMapping

from router.admin.access_log import AccessLog
from router.admin.allowed_hosts import AllowedHosts, is_over_unix_socket
from router.admin.context import Context
from router.admin.cors import Origins, check_page, page_headers
from router.admin.dialect import dialect_of
from router.admin.errors import check_expectation
from router.admin.headers import check_text
from router.admin.json_fields import SMALL_BYTES
from router.admin.keys import Keys, presented
from router.admin.route import METHODS, Access, FieldReader, ProxiedRoute
from router.errors import RouterError, ShuttingDown
from router.http.head import RequestHead
from router.proxy import Body, ProxiedRequest, ProxyContext, RequestInfo, RequestStats
from router.proxy.body import BodyLimits, receive_body
from router.proxy.client import ClientResponse
from router.proxy.coding import decoder_of
from router.proxy.errors import error_response
from router.proxy.request import CLIENT_CLOSED_REQUEST

if TYPE_CHECKING:
    from router.http.connection import ClientConnection

log = logging.getLogger("router.http")

_INTERNAL_ERROR: Final = "internal error; the router's log has more"
#: Heads of which is kept what is known of them.
_KEPT_HEADS: Final = 256
#: A parameter in a route's path: "{model}", or "{path:.*}" with its pattern.
_PARAMETER: Final = re.compile(r"\{\w+(?::([^{}]+))?\}")
#: The rest of a body whose request was refused is read and dropped up to this size; behind a larger one the
#: connection is closed.
DROPPED_BYTES: Final = 8 << 20
#: What is held of a body before its reader takes it; then the connection is not read.
_HELD_BODY_BYTES: Final = 256 << 10


class Counting(Protocol):
    """The requests that a shutdown waits for (router.app.requests)."""

    is_refusing: bool

    def begun(self) -> None: ...
    def ended(self) -> None: ...


class KnownHead(msgspec.Struct, frozen=True):
    """What is the same for every request with this head."""

    route: ProxiedRoute
    #: Keys that it presents.
    keys: tuple[str, ...]
    #: Whether it may come from a web page.
    is_from_page: bool
    has_coding: bool
    #: Whether its route's plan is a coroutine.
    waits: bool
    #: What is wrong with the head.
    error: RouterError | None
    #: What is wrong with its Host; over a Unix socket it may have any.
    host_error: RouterError | None
    needs_check: bool


class ProxiedRoutes:
    """One for all connections."""

    def __init__(
        self,
        routes: Iterable[ProxiedRoute],
        context: Context,
        proxy: ProxyContext,
        *,
        keys: Keys,
        hosts: AllowedHosts,
        origins: Origins,
        counting: Counting,
        access_log: AccessLog,
        body_limits: BodyLimits,
    ) -> None:
        self.context = context
        self.proxy = proxy
        self.keys = keys
        self._hosts = hosts
        self._origins = origins
        self._counting = counting
        self._access_log = access_log
        self.body_limits = body_limits
        self._exact: dict[tuple[str, str], ProxiedRoute] = {}
        self._patterns: list[tuple[re.Pattern[str], tuple[str, ...], ProxiedRoute]] = []
        for route in routes:
            methods = METHODS.get(route.method, (route.method,))
            if "{" in route.path:
                self._patterns.append((_pattern_of(route.path), methods, route))
            else:
                self._exact.update(((method, route.path), route) for method in methods)
        #: None: the request is the application's.
        self.find = lru_cache(maxsize=_KEPT_HEADS)(self._find)

    def _find(self, head: RequestHead) -> KnownHead | None:
        route = self._route_of(head)
        if route is None:
            return None
        headers = head.headers
        hosts = headers.getall("Host", [])
        if head.authority:  # RFC 9112, 3.2.2: the host that the target names counts as well
            hosts = [*hosts, head.authority]
        is_from_page = "Origin" in headers or "Sec-Fetch-Site" in headers or head.method in ("GET", "HEAD")
        error = host_error = None
        try:
            check_text(head.raw_headers)
            check_expectation(headers)
        except RouterError as wrong:
            error = wrong
        try:
            self._hosts.check(hosts, None)
        except RouterError as wrong:
            host_error = wrong
        return KnownHead(
            route,
            tuple(presented(headers.get("Authorization", ""), headers.get("x-api-key", ""))),
            is_from_page,
            "Content-Encoding" in headers,
            iscoroutinefunction(route.plan),
            error,
            host_error,
            is_from_page or error is not None or host_error is not None or self.keys.are_any,
        )

    def _route_of(self, head: RequestHead) -> ProxiedRoute | None:
        found = self._exact.get((head.method, head.path))
        if found is not None:
            return found
        path = head.url.raw_path
        for pattern, methods, route in self._patterns:
            if head.method in methods and pattern.fullmatch(path):
                return route
        return None

    def begin(
        self,
        known: KnownHead,
        head: RequestHead,
        connection: ClientConnection,
        length: int | None,
        body: bytes | None,
    ) -> None:
        """Answer a request. `length` is that of its body, None: it comes in chunks, or there is none; `body`
        None: the body is still to come."""
        transport = connection.transport
        assert transport is not None, "it has just been read from"
        stats = RequestStats("")
        client = ClientResponse(
            transport,
            connection,
            stats,
            self.proxy.coalescer,
            head.keeps_alive,
            head.is_http_11,
            head.method == "HEAD",
            b"",
            head.is_plain,
        )
        pending = PendingRequest(
            self,
            known,
            head,
            connection,
            client,
            stats,
            monotonic(),
            head.method,
            head.path,
            head.target,
            head.query,
            head.headers,
        )
        self._counting.begun()
        try:
            if self._counting.is_refusing:
                raise ShuttingDown("the router is shutting down", retry_after_seconds=5.0)
            if known.needs_check:
                self._check(known, pending)
            if (
                body is None
                or len(body) > SMALL_BYTES
                or (known.has_coding and body)
                or known.waits
                or self.proxy.relay is not None
            ):
                pending.read(length, body)
                return
            pending.body = Body([body] if body else [], len(body))  # within any limit: those are in MiB
            pending.plan()
        except RouterError as error:
            pending.refuse(error)
        except Exception:
            log.exception("%s %s failed", head.method, head.target)
            pending.refuse(RouterError(_INTERNAL_ERROR))

    def _check(self, known: KnownHead, pending: PendingRequest) -> None:
        """What the application's middlewares check of its own requests. Raises RouterError."""
        if known.error is not None:
            raise known.error.copy()
        if known.host_error is not None and not is_over_unix_socket(pending.transport):
            raise known.host_error.copy()
        if known.is_from_page:
            needs_admin = known.route.access is Access.ADMIN
            headers = page_headers(self._origins, pending, needs_admin=needs_admin)
            pending.client.more_head = "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
            pending.client.is_plain = pending.client.is_plain and not headers
            check_page(self._origins, pending, needs_admin=needs_admin)
        if self.keys.are_any and self.proxy.relay is None:
            self.keys.check(known.keys, known.route.access)

    def forward(self, pending: PendingRequest, info: RequestInfo) -> None:
        """Hand a request to the proxy."""
        head, stats, connection = pending.head, pending.stats, pending.connection
        stats.model = info.model
        request = ProxiedRequest(
            self.proxy,
            connection,
            pending.client,
            info,
            stats,
            head.method,
            head.target,
            head.raw_path,
            head.lines_for_instance if info.target is None else head.lines_for(info.target),
            pending.body,
            pending.begun_at,
            self._ended,
            head.headers,
        )
        connection.serve(request)
        request.start()

    def _ended(self, request: ProxiedRequest, status: int, seconds: float) -> None:
        self._counting.ended()
        account = request.stats if request.info.model else None
        self._access_log.ended(
            request.connection.peer, request.method, request.path, account, status, seconds
        )

    def refused(self, pending: PendingRequest, status: int) -> None:
        """The request is over without having been forwarded."""
        self._counting.ended()
        head = pending.head
        seconds = monotonic() - pending.begun_at
        self._access_log.ended(pending.connection.peer, head.method, head.raw_path, None, status, seconds)


class PendingRequest(msgspec.Struct, eq=False):
    """A request whose body is being read, and whose model is being found (router.admin.route.Pending)."""

    takes_framing = False

    _routes: ProxiedRoutes
    _known: KnownHead
    head: RequestHead
    connection: ClientConnection
    client: ClientResponse
    stats: RequestStats
    #: Monotonic time of the arrival.
    begun_at: float
    #: As in the head.
    method: str
    path: str
    #: As it came, with the query.
    raw_path: str
    query: MultiMapping[str]
    headers: CIMultiDictProxy[str]
    body: Body = msgspec.field(default_factory=Body)
    #: What was read of the body as it came; None: the body is short, and is read at once.
    fields: FieldReader | None = None
    _incoming: IncomingBody | None = None
    _task: asyncio.Task[None] | None = None
    _is_over: bool = False

    # --- what its route sees ---

    @property
    def context(self) -> Context:
        return self._routes.context

    @property
    def keys(self) -> Keys:
        return self._routes.keys

    @property
    def content_type(self) -> str:
        return self.head.content_type

    @property
    def transport(self) -> asyncio.Transport | None:
        return self.connection.transport

    # --- its body ---

    def read(self, length: int | None, body: bytes | None) -> None:
        """Read the body as it comes, in a task."""
        self._routes.body_limits.check(length or 0)
        self.connection.serve(self, self)
        incoming = self._incoming = IncomingBody(self.connection)
        if body is not None:
            incoming.feed(body)
            incoming.end()
        elif self.head.is_http_11 and "Expect" in self.head.headers:
            self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        work = self._guarded(incoming)
        self._task = self._routes.proxy.spawn(work, name="read a request")

    async def _read(self, incoming: IncomingBody) -> None:
        make_reader, limits = self._known.route.fields, self._routes.body_limits
        fields = self.fields = None if make_reader is None else make_reader(self)
        decoder = decoder_of(self.head.headers, limits.max_bytes) if incoming.has_data else None
        each = None if fields is None else fields.feed
        self.body = await receive_body(incoming.read, limits, decoder, each)
        if self._routes.proxy.relay is not None:
            info = RequestInfo("", dialect=dialect_of(self.path))
        else:
            planned = self._known.route.plan(self)
            info = planned if isinstance(planned, RequestInfo) else await planned
        self._routes.forward(self, info)

    def body_received(self, data: bytes) -> None:
        if self._incoming is not None:
            self._incoming.feed(data)

    def body_ended(self) -> None:
        if self._incoming is not None:
            self._incoming.end()

    def body_failed(self, error: RouterError) -> bool:
        self.client.keeps_alive = False
        self._cancel()
        self.refuse(error)
        return True

    # --- its end ---

    def plan(self) -> None:
        """Forward what the route's plan asks the pool for. Raises RouterError."""
        self._routes.forward(self, cast(RequestInfo, self._known.route.plan(self)))

    def refuse(self, error: RouterError) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._incoming = None  # what still comes of the body is dropped
        self.connection.resume_reading("body")
        left = self.connection.left_bytes
        # A client that waits for 100 Continue need not send the body any more.
        if left and (left > DROPPED_BYTES or "Expect" in self.headers):
            self.client.keeps_alive = False
        error_response(self.client, error, dialect_of(self.path))
        self._routes.refused(self, error.status)
        self.connection.answered(keeps_alive=self.client.keeps_alive)

    def client_lost(self) -> None:
        self._cancel()
        if not self._is_over:
            self._is_over = True
            self._routes.refused(self, CLIENT_CLOSED_REQUEST)

    def _cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _guarded(self, incoming: IncomingBody) -> None:
        try:
            await self._read(incoming)
        except RouterError as error:
            self.refuse(error)
        except Exception:
            log.exception("%s %s failed", self.head.method, self.head.target)
            self.refuse(RouterError(_INTERNAL_ERROR))


class IncomingBody:
    """The pieces of a body between the connection and its reader."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._is_ended = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_data(self) -> bool:
        """Whether the request has a body at all."""
        return bool(self._size) or not self._is_ended

    def feed(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _HELD_BODY_BYTES:
            self._connection.pause_reading("body")
        self._wake()

    def end(self) -> None:
        self._is_ended = True
        self._wake()

    async def read(self) -> bytes:
        """All that has come; b"": nothing more will."""
        while not self._pieces and not self._is_ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = b"".join(self._pieces) if len(self._pieces) > 1 else (self._pieces or [b""])[0]
        self._pieces.clear()
        self._size = 0
        self._connection.resume_reading("body")
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _pattern_of(path: str) -> re.Pattern[str]:
    """A path in aiohttp's notation as a regular expression for encoded paths."""
    parts, at = [], 0
    for parameter in _PARAMETER.finditer(path):
        parts += [re.escape(path[at : parameter.start()]), parameter[1] or "[^{}/]+"]
        at = parameter.end()
    return re.compile("".join(parts) + re.escape(path[at:]))
