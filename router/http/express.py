"""The short way of a request for a model that is ready: read from the bytes that came, checked as any other,
and handed to its instance in the same step. What is unusual takes the long way, which can do everything."""

from __future__ import annotations

import asyncio
from functools import lru_cache, partial
from time import monotonic
from typing import Final, Protocol

import msgspec

from router.admin.access_log import AccessLog
from router.admin.allowed_hosts import AllowedHosts
from router.admin.context import Context
from router.admin.dialect import ANTHROPIC_PATHS
from router.admin.head import read_fields
from router.admin.json_fields import SMALL_BYTES
from router.admin.keys import Keys, presented
from router.admin.openai import INFERENCE_PATHS, STREAMED_PATHS
from router.admin.requests import InFlight
from router.admin.route import Access
from router.errors import RouterError
from router.proxy import Dialect, RequestStats
from router.proxy.express import Exchange, Front
from router.proxy.plain import read_plain, split

#: So many different heads are kept as they were read.
_HEADS: Final = 256
_DIALECTS: Final = {
    path: Dialect.ANTHROPIC if path in ANTHROPIC_PATHS else Dialect.OPENAI for path in INFERENCE_PATHS
}


class Counting(Protocol):
    """Of the requests that a shutdown waits for."""

    is_refusing: bool

    def begun(self) -> None: ...
    def ended(self) -> None: ...


class _Head(msgspec.Struct, frozen=True):
    """Of a request for inference."""

    said: bytes  # as the child gets it, up to the length
    target: str
    dialect: Dialect
    may_stream: bool
    presented: tuple[str, ...]  # to open the door with
    keeps_alive: bool


def _read(hosts: AllowedHosts, block: bytes) -> _Head | None:
    """`block` is a head without the line of its length. None: it is for the long way."""
    head = read_plain(block)
    if head is None or head.target not in _DIALECTS:
        return None
    try:
        if not hosts.allows(head.host):
            return None  # refused there, or not, where it comes over a Unix socket
    except ValueError:
        return None
    shown = tuple(presented(head.authorization, head.x_api_key))
    target = head.target
    return _Head(head.lines, target, _DIALECTS[target], target in STREAMED_PATHS, shown, head.keeps_alive)


class Coming(msgspec.Struct, frozen=True):
    """A request whose body may still be on its way: it is to be the bytes from `body_at` to `end` of what
    came.
    """

    head: _Head
    body_at: int
    end: int


class Express:
    """One for all connections."""

    def __init__(
        self,
        context: Context,
        keys: Keys,
        hosts: AllowedHosts,
        in_flight: InFlight,
        counting: Counting,
        access_log: AccessLog,
    ) -> None:
        self._context = context
        self._keys = keys
        self._in_flight = in_flight
        self._counting = counting
        self._access_log = access_log
        self._read = lru_cache(maxsize=_HEADS)(partial(_read, hosts))

    def look(self, data: bytes) -> Coming | None:
        """What `data` begins with; None: something for the long way."""
        found = split(data)
        if found is None:
            return None
        block, size, body_at = found
        head = self._read(block)
        if head is None or not 0 < size <= SMALL_BYTES:
            return None
        return Coming(head, body_at, body_at + size)

    def begin(
        self, coming: Coming, data: bytes, front: Front, transport: asyncio.Transport
    ) -> Exchange | None:
        """Ask the child; `data` is the whole request. None: nothing has been done, it is for the long way."""
        if self._counting.is_refusing:
            return None
        head, body = coming.head, data[coming.body_at :]
        try:
            if self._keys.are_asked_for:
                self._keys.check(head.presented, Access.INFERENCE)
            fields = read_fields(body)
            context = self._context
            model = context.name_or_default(fields.model)
        except RouterError:
            return None  # it is told there
        said = b"%b%d\r\n\r\n%b" % (head.said, len(body), body)
        lane, target = context.proxy.lane, head.target
        lease = context.pool.take(model, keep_alive=fields.keep_alive, size=fields.size)
        if lease is None:
            return None
        flow = lane.traffic.enter(lease.instance)
        exchange = Exchange(
            lane,
            lease,
            RequestStats(model, lease.action, instance=lease.instance, attempts=1),
            head.dialect,
            data,
            said,
            target,
            front,
            transport,
            head.keeps_alive,
            monotonic(),
            self._ended,
            flow,
            flow.begun,
            fields.stream and head.may_stream,
        )
        self._counting.begun()
        self._in_flight.enter(exchange)
        exchange.begin()
        return exchange

    def _ended(self, exchange: Exchange, status: int | None, total_seconds: float) -> None:
        self._in_flight.leave(exchange)
        self._counting.ended()
        if status is not None:
            self._access_log.ended(
                exchange.front.peer, exchange.method, exchange.path, exchange.account, status, total_seconds
            )
