"""One request from its lease to its last byte where nothing has to be waited for: its model is ready. It
runs from one callback of the loop to the next, without a task of its own.

All else is left to `forward`: until the child has begun its answer the request can be given to it as it came,
and is, with what was tried, whenever something goes wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from time import monotonic, time
from typing import ClassVar, Final, Protocol

import msgspec
from aiohttp import web

from router.engines.llama_server import RESTATED_STATUS
from router.errors import RouterError
from router.proxy.answer import Answer
from router.proxy.ask import Dialect, RequestInfo, RequestStats
from router.proxy.client import Client, Connected
from router.proxy.endings import Endings
from router.proxy.failures import Broken, Failures
from router.proxy.framing import Malformed
from router.proxy.heads import END_OF_HEAD, Head, read_head
from router.proxy.idle import Idle
from router.proxy.outbox import FROM_REQUESTS, WriteCoalescer
from router.proxy.telling import send_stream_error, tell_rejection
from router.proxy.upstream import HungUp, Upstream, ask_now
from router.proxy.usage import note_whole
from router.proxy.waiting import Waiting
from router.supervisor.pool import Lease, Pool
from router.supervisor.stall import InstanceTraffic, Traffic

log = logging.getLogger("router.proxy")

#: What nginx notes for a client that left before its answer.
CLIENT_LEFT: Final = 499


class Front(Connected, Protocol):
    """The connection that a request came on."""

    on_taken: Callable[[], object] | None

    @property
    def peer(self) -> str | None: ...
    def begun(self) -> None:
        """Its answer has, and goes on: the request is not needed any more."""

    def answered(self, *, keeps_alive: bool) -> None:
        """The answer is complete as far as it goes; without `keeps_alive` the connection is to be closed."""

    def give_up(self, asked: bytes, tried: Broken) -> None:
        """What was `asked` is to be read by aiohttp's server, as a request that has `tried` under TRIED."""


#: Of a request that aiohttp's server has read: the attempt that was made at it before.
TRIED: Final = web.RequestKey("tried", Broken)


class Waited(msgspec.Struct, frozen=True):
    """A request that has been with its child for `seconds`: `number` is its own in the flow."""

    flow: InstanceTraffic
    number: int
    answer: Answer | None
    seconds: float


class LongWay(Protocol):
    """What can do everything (router.proxy.forward)."""

    def head_seconds(self) -> float: ...
    def keep_waiting(
        self, ask: RequestInfo, client: Client, account: RequestStats, at: Waited
    ) -> Waiting: ...
    async def try_again(
        self, said: bytes, ask: RequestInfo, client: Client, account: RequestStats, tried: Broken
    ) -> None: ...


class Lane:
    """What all exchanges share."""

    def __init__(
        self,
        pool: Pool,
        idle: Idle,
        traffic: Traffic,
        failures: Failures,
        endings: Endings,
        long_way: LongWay,
    ) -> None:
        self.pool = pool
        self.idle = idle
        self.traffic = traffic
        self.failures = failures
        self.endings = endings
        self.long_way = long_way
        self._silent: dict[Exchange, float] = {}  # oldest first, with the time at which each is told to wait
        self._sweep: asyncio.TimerHandle | None = None
        self.outbox = WriteCoalescer()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: asyncio.Task[None]) -> None:
        """Hold it until it ends."""
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    def watch(self, exchange: Exchange, now: float) -> None:
        """Have the exchange, of a stream, keep its client waiting if nothing of its answer comes for too
        long. One timer for all: most have begun by then. `now` is monotonic time.
        """
        seconds = self.long_way.head_seconds()
        if seconds:
            self._silent[exchange] = now + seconds
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(seconds, self._look)

    def forget(self, exchange: Exchange) -> None:
        self._silent.pop(exchange, None)

    def _look(self) -> None:
        now, self._sweep = monotonic(), None
        while self._silent:
            exchange, due = next(iter(self._silent.items()))
            if due > now:
                self._sweep = asyncio.get_running_loop().call_later(due - now, self._look)
                return
            del self._silent[exchange]
            exchange.keep_waiting()


class _InFront(Client, kw_only=True):
    """The client of an exchange."""

    front: Front
    outbox: WriteCoalescer

    def _begin(self, status: int) -> None:
        self.has_begun, self.status = True, status
        if not self.is_early:  # else it may have to be said once more
            self.front.begun()

    def write_last(self, data: bytes) -> None:
        if self.outbox.requests >= FROM_REQUESTS:
            self.outbox.say(self._transport, data)
        else:
            self.write(data)

    def on_drain(self, told: Callable[[], object]) -> None:
        self.front.on_taken = told

    def cancel_on_drain(self) -> None:
        self.front.on_taken = None


class Exchange(msgspec.Struct, eq=False):
    """`begin` it; then it ends by itself, or by `left` when its client is gone, or by `end_by`. `ended` is
    called once, with the status, or None where the request is given up for aiohttp to answer.

    It is made for every request, and most of it in C: `asked` is the request as it came, `said` as the child
    gets it, `begun_at` monotonic time; the lease is given back here.
    """

    method: ClassVar[str] = "POST"
    conversation: ClassVar[None] = None

    _lane: Lane
    _lease: Lease
    account: RequestStats
    _dialect: Dialect
    _asked: bytes
    _said: bytes
    path: str
    front: Front
    _transport: asyncio.Transport
    _keeps_alive: bool
    _begun_at: float
    _ended: Callable[[Exchange, int | None, float], object]
    _flow: InstanceTraffic
    _number: int
    _is_stream: bool = False
    id: int = 0
    _upstream: Upstream | None = None
    _is_kept: bool = False
    #: These two read an answer that does not come whole.
    _client: _InFront | None = None
    _answer: Answer | None = None
    _has_ended: bool = False
    _has_freed: bool = False  # what it holds; the lease may be held until its child has ended the request
    _waiting: Waiting | None = None
    _failing: asyncio.Task[None] | None = None

    @property
    def client(self) -> str | None:
        return self.front.peer

    @property
    def since(self) -> float:
        """When it came, in Unix time."""
        return time() - (monotonic() - self._begun_at)

    def begin(self) -> None:
        lane, path = self._lane, self._lease.address.socket
        lane.outbox.requests += 1
        if self._is_stream:
            lane.watch(self, self._begun_at)
        upstream = lane.idle.take(path, self._begun_at)
        if upstream is None:
            self._upstream = ask_now(path, self._said, self)
            return
        self._is_kept, self._upstream = True, upstream
        upstream.begin(self)
        upstream.write(self._said, lane.outbox if lane.outbox.requests >= FROM_REQUESTS else None)

    # --- told by the upstream, until an answer is to be read step by step ---

    def lost(self, error: Exception | None) -> None:
        if self._is_kept and isinstance(error, ConnectionError):
            # It was closed while we wrote: the child has not read all of it, so it has not begun it.
            self._is_kept = False
            self._upstream = ask_now(self._lease.address.socket, self._said, self)
            return
        self._failed(error or HungUp("it closed the connection"))

    def received(self, data: bytes) -> None:
        """In the usual case of an answer that is no stream `data` is all of it, and counted: then it is
        passed on in one step.
        """
        upstream = self._upstream
        assert upstream is not None, "it has just been heard"
        body_at = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        try:
            head = read_head(data[:body_at]) if body_at >= len(END_OF_HEAD) else None
        except Malformed:
            head = None  # it is told there
        size = len(data) - body_at
        is_usual = head is not None and head.counted_bytes == size and head.status != RESTATED_STATUS
        if head is None or not is_usual or not self._keeps_alive or self._client is not None:
            self._read(upstream, head, data, body_at)
            return
        now, account, lane, body = monotonic(), self.account, self._lane, data[body_at:]
        account.first_byte_seconds = now - self._begun_at
        account.sent_bytes = size
        self._flow.moved_bytes += size
        if lane.outbox.requests >= FROM_REQUESTS:
            lane.outbox.say(self._transport, head.warm + body)
        elif not self._transport.is_closing():
            self._transport.write(head.warm + body)
        note_whole(body, account)
        if upstream.end():
            lane.idle.put(self._lease.address.socket, upstream, head.promised_seconds, now)
        else:
            upstream.close()
        self._upstream = None
        self._end(head.status, now, keeps_alive=True)

    def _read(self, upstream: Upstream, head: Head | None, data: bytes, body_at: int) -> None:
        """From here on step by step; `head` None: it is not whole, or wrong."""
        answer = self._answer = Answer(
            upstream, self._answered(), self.account, self._flow, self._over, self._begun_at
        )
        if self._waiting is not None:
            self._waiting.answer = answer
        upstream.hand_on(answer)
        if head is None or head.status < 200:
            answer.received(data)
        else:
            self.forget_request()
            answer.begin(head, data[body_at:])

    def _answered(self) -> _InFront:
        """Its client, as who is told an answer in parts."""
        client = self._client
        if client is None:
            client = self._client = _InFront(
                self._transport,
                self.front,
                self.account,
                keeps_alive=self._keeps_alive,
                front=self.front,
                outbox=self._lane.outbox,
            )
        return client

    def keep_waiting(self) -> None:
        """Nothing of the stream has come for as long as a client is left without a word."""
        if self.account.sent_bytes or self._has_ended:
            return
        waited = Waited(self._flow, self._number, self._answer, monotonic() - self._begun_at)
        self._waiting = self._lane.long_way.keep_waiting(self._ask(), self._answered(), self.account, waited)

    def _ask(self) -> RequestInfo:
        return RequestInfo(self._lease.model, dialect=self._dialect, stream=True)

    def forget_request(self) -> None:
        """Its answer has begun, so it is not said again. A stream may last, and its prompt may be long."""
        self._asked = self._said = b""

    # --- how it ends ---

    def left(self) -> None:
        """The client is gone."""
        self._let_go()
        self._end(CLIENT_LEFT, monotonic(), keeps_alive=False)

    def end_by(self, error: RouterError) -> None:
        """An operator ends it."""
        if self._has_ended:
            return
        self.account.ended_by = error
        self._let_go()
        if self._client is not None and self._client.has_begun:
            self._tell(self._client, error)
        else:
            self._give_up(Broken(error, may_retry=False))

    def _over(self) -> None:
        """The answer will have nothing more."""
        answer, upstream, client = self._answer, self._upstream, self._client
        assert answer is not None and upstream is not None and client is not None, "it has been read"
        if answer.error is not None:
            self._failed(answer.error)
            return
        head, now = answer.head, monotonic()
        if answer.can_reuse and head is not None:
            self._lane.idle.put(self._lease.address.socket, upstream, head.promised_seconds, now)
        else:
            upstream.close()
        self._upstream = None
        tell_rejection(client, answer, self.account, self._dialect)
        self._end(client.status, now, keeps_alive=client.keeps_alive)

    def _failed(self, error: Exception) -> None:
        has_begun = self._answer is not None and self._answer.head is not None
        working = self._work_out(error, has_begun=has_begun)
        task = asyncio.get_running_loop().create_task(working, name=f"{self._lease.model} failed a request")
        self._failing = task
        self._lane.run(task)

    async def _work_out(self, error: Exception, *, has_begun: bool) -> None:
        """What became of its child, and what is to be done."""
        try:
            await (self._cut_short(error) if has_begun else self._broken(error))
        except Exception:
            log.exception("%s: a failed request could not be told", self._lease.instance)
            self._answered().cut()
            self._end(500, monotonic(), keeps_alive=False)

    async def _broken(self, error: Exception) -> None:
        """Before its answer began."""
        upstream = self._upstream
        was_connected = upstream is not None and upstream.was_connected
        broken = await self._lane.failures.before_answer(self._lease, error, was_connected=was_connected)
        client = self._client
        if client is None or not client.has_begun:
            self._failing = None
            self._give_up(broken)
            return
        # It has the head of its stream: aiohttp's server could not answer it any more.
        self._free()
        await self._lane.long_way.try_again(self._said, self._ask(), client, self.account, broken)
        self._failing = None
        self._end(client.status, monotonic(), keeps_alive=client.keeps_alive)

    async def _cut_short(self, error: Exception) -> None:
        """In the middle of its answer."""
        failure = await self._lane.failures.within_answer(self._lease, error)
        self._failing = None
        self._tell(self._answered(), failure)

    def _tell(self, client: _InFront, error: RouterError) -> None:
        """As an event, or by a cut."""
        self.account.error = error.code
        send_stream_error(client, self._answer, error, self._dialect)
        self._end(client.status, monotonic(), keeps_alive=client.keeps_alive)

    def _give_up(self, tried: Broken) -> None:
        self._has_ended = True
        self._free()
        self._ended(self, None, 0.0)
        self.front.give_up(self._asked, tried)

    def _end(self, status: int, now: float, *, keeps_alive: bool) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._free()
        self._ended(self, status, now - self._begun_at)
        self.front.answered(keeps_alive=keeps_alive)

    def _free(self) -> None:
        """What it holds, each once."""
        if self._has_freed:
            return
        self._has_freed = True
        lane, lease = self._lane, self._lease
        lane.outbox.requests -= 1
        if self._is_stream:
            lane.forget(self)
        if self._waiting is not None:
            self._waiting.over()
        if self._answer is not None:
            self._answer.end()
        if self.account.ending is None:
            lane.traffic.leave(self._flow, lease.instance, self._number)
            lane.pool.give_back(lease)

    def _let_go(self) -> None:
        if self._failing is not None:
            self._failing.cancel()
            self._failing = None
        if self._answer is not None:
            self._answer.end()
        if self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            self._abandon(upstream)

    def _abandon(self, upstream: Upstream) -> None:
        lane, lease, held = self._lane, self._lease, AsyncExitStack()
        held.callback(lane.pool.give_back, lease)
        held.callback(lane.traffic.leave, self._flow, lease.instance, self._number)
        has_generated = self._answer is not None and self._answer.has_generated
        lane.endings.begin(upstream, lease, self._flow, self.account, held, has_generated=has_generated)
