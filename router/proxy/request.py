"""One proxied request, from its place in the queue to the last byte of its answer.

The states, and what moves a request from one to the next:

    QUEUED      waits for a lease on an instance of its model. An instance that is ready is granted at once
    SENDING     is written to the instance; nothing of the answer has come
    STREAMING   the answer passes to the client, chunk by chunk
    DONE        the lease is released, or held by `Endings` until the instance has ended an abandoned request

SENDING goes back to QUEUED once, where the instance died before its answer began. In each state the client
may disconnect (`client_lost`), an operator may end the request (`end_by`), and a stream of which nothing has
come is kept alive by heartbeats (`heartbeat`).

Everything runs in callbacks of the loop. A task is made only where something has to be waited for: a lease
that is not there at once, a body that does not fit into the socket's buffer, the exit of an instance that
failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from enum import Enum
from functools import partial
from time import monotonic, time
from typing import Final, Protocol

import msgspec
from multidict import CIMultiDictProxy

from router.engines.llama_server import RESTATED_STATUS
from router.errors import LoadFailed, RouterError, UpstreamFailed
from router.proxy.answer import Answer
from router.proxy.body import Body
from router.proxy.client import ClientResponse, Connection
from router.proxy.coalescer import MIN_REQUESTS, WriteCoalescer
from router.proxy.endings import Endings
from router.proxy.errors import error_response, send_rejection, send_stream_error
from router.proxy.failures import AttemptFailed, Failures
from router.proxy.framing import Malformed
from router.proxy.heads import BODILESS, END_OF_HEAD, Head, read_head
from router.proxy.heartbeat import Heartbeat, HeartbeatConfig, Serving, SnapshotCache
from router.proxy.idle import IdleConnections
from router.proxy.in_flight import InFlight
from router.proxy.info import RequestInfo, RequestStats
from router.proxy.upstream import ONE_WRITE_BYTES, ClosedEarly, Upstream, open_upstream
from router.proxy.usage import note_whole
from router.scheduler.types import ModelName
from router.supervisor.pool import HandedOver, Lease, Pool
from router.supervisor.stall import InstanceTraffic, Traffic

log = logging.getLogger("router.proxy")

#: The header by which a client names what it may come back to.
CONVERSATION: Final = "X-Conversation-Id"
#: The status that the access log shows for a client that disconnected before its answer was complete, as
#: nginx's does.
CLIENT_CLOSED_REQUEST = 499
#: An instance that dies in its first request counts as a failed load, and its model pauses: a retry waits for
#: a
#: pause of at most this many seconds.
RETRY_PAUSE_SECONDS = 5.0


class RequestState(Enum):
    QUEUED = "queued"
    SENDING = "sending"
    STREAMING = "streaming"
    DONE = "done"


#: A member of an enumeration is found by a descriptor, at 30 ns each time.
_QUEUED, _SENDING, _STREAMING, _DONE = RequestState


class Relay(Protocol):
    """Passes requests to the process that has taken over (router.app.relay)."""

    async def answer(self, request: ProxiedRequest) -> None:
        """Pass the request on, and the answer to `request.client`. Raises RouterError where nothing was sent
        to the client."""


class Ended(Protocol):
    """Called once for each request that is over for its client. `seconds` have passed since its arrival."""

    def __call__(self, request: ProxiedRequest, status: int, seconds: float) -> None: ...


class ProxyContext:
    """What all requests share: the pool, the connections to its instances, and what is counted of them."""

    def __init__(
        self,
        pool: Pool,
        heartbeats: Callable[[], HeartbeatConfig] = HeartbeatConfig,
        slots: Callable[[ModelName], int | None] = lambda _: None,
    ) -> None:
        """`slots` returns how many requests an instance of the model serves at a time, None where that is not
        known."""
        self.pool = pool
        self.heartbeats = heartbeats
        self.slots = slots
        self.traffic = Traffic()
        self.idle = IdleConnections()
        self.endings = Endings()
        self.failures = Failures(pool, self.traffic)
        self.snapshots = SnapshotCache(pool)
        self.coalescer = WriteCoalescer()
        self.in_flight = InFlight()
        #: Set while a process that has taken over answers; None: this one does.
        self.relay: Relay | None = None
        #: Streams of which nothing has come, oldest first, with the monotonic time of their first heartbeat.
        self._silent: dict[ProxiedRequest, float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Close the idle connections, and stop waiting for abandoned requests."""
        self.idle.close()
        self.endings.close()

    def spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        """A task that is held until it ends."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def watch(self, request: ProxiedRequest, now: float) -> None:
        """Have `request.heartbeat` called if nothing has come of its stream by then. One timer serves all
        requests: nearly every stream has begun before it is due."""
        seconds = self.heartbeats().head_seconds
        if seconds:
            self._silent[request] = now + seconds
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(seconds, self._call_due)

    def unwatch(self, request: ProxiedRequest) -> None:
        self._silent.pop(request, None)

    def _call_due(self) -> None:
        now, self._sweep = monotonic(), None
        while self._silent:
            request, due = next(iter(self._silent.items()))
            if due > now:
                self._sweep = asyncio.get_running_loop().call_later(due - now, self._call_due)
                return
            del self._silent[request]
            request.heartbeat()


class ProxiedRequest(msgspec.Struct, eq=False):
    """`start` it once; it ends by itself, or by `client_lost` or `end_by`. A struct, as one is made for every
    request: its constructor runs in C."""

    context: ProxyContext
    connection: Connection
    client: ClientResponse
    info: RequestInfo
    stats: RequestStats
    method: str
    #: The path and the query as they came, and the path alone.
    target: str
    path: str
    #: The head as the instance gets it, up to its Content-Length.
    head_lines: bytes
    body: Body
    #: Monotonic time of the arrival.
    begun_at: float
    ended: Ended
    headers: CIMultiDictProxy[str]
    #: In the list of requests in flight.
    id: int = 0
    state: RequestState = _QUEUED
    _lease: Lease | None = None
    _traffic: InstanceTraffic | None = None
    #: Its number in `_traffic`.
    _number: int = 0
    _upstream: Upstream | None = None
    #: Whether `_upstream` has served another request before.
    _is_reused: bool = False
    _answer: Answer | None = None
    _heartbeat: Heartbeat | None = None
    #: What failed in the first attempt; a second failure is final.
    _first_failure: RouterError | None = None
    #: What is being waited for: a lease, or what became of a failed instance.
    _task: asyncio.Task[None] | None = None

    @property
    def account(self) -> RequestStats | None:
        """None where the request is relayed as it came: its model is not known here."""
        return self.stats if self.info.model else None

    @property
    def conversation(self) -> str | None:
        """By which the client may come back to the answer."""
        return self.headers.get(CONVERSATION)

    @property
    def peer(self) -> str | None:
        return self.connection.peer

    @property
    def transport(self) -> asyncio.Transport | None:
        return self.connection.transport

    @property
    def since(self) -> float:
        """When the request arrived, in Unix time."""
        return time() - (monotonic() - self.begun_at)

    # --- QUEUED ---

    def start(self) -> None:
        context, info = self.context, self.info
        context.coalescer.requests += 1
        context.in_flight.enter(self)
        if info.stream:
            context.watch(self, self.begun_at)
        if context.relay is not None:
            self._run(self._relay, "relay a request")
            return
        lease = context.pool.acquire_nowait(
            info.model, priority=info.priority, keep_alive=info.keep_alive, size=info.size
        )
        if lease is not None:
            self._send(lease, self.begun_at)
        else:
            self._run(self._acquire, f"a request waits for {info.model}")

    async def _acquire(self) -> None:
        """Wait for a lease, and send."""
        queued_at = monotonic()
        try:
            lease = await self._lease_of_pool()
        except HandedOver:
            await self._relay()
            return
        except RouterError as error:
            self._note_wait(monotonic() - queued_at, error)
            self._refuse(self._with_first_failure(error))
            return
        self._task = None
        self._send(lease, monotonic())

    async def _lease_of_pool(self) -> Lease:
        """Raises RouterError and HandedOver."""
        pool, info = self.context.pool, self.info

        async def acquire() -> Lease:
            return await pool.acquire(
                info.model, priority=info.priority, keep_alive=info.keep_alive, size=info.size
            )

        try:
            return await acquire()
        except LoadFailed as error:
            pause = error.retry_after_seconds
            if self._first_failure is None or pause is None or pause > RETRY_PAUSE_SECONDS:
                raise
            await asyncio.sleep(pause)
            return await acquire()

    def _note_wait(self, seconds: float, error: RouterError) -> None:
        if self._first_failure is None:
            self.stats.attempts += 1
            self.stats.queue_seconds = seconds
            if not self.client.has_begun:
                self.stats.action = "rejected"

    def _with_first_failure(self, error: RouterError) -> RouterError:
        first = self._first_failure
        if first is None:
            return error
        return UpstreamFailed(
            f"{first.message}; the second try: {error.message}",
            retry_after_seconds=error.retry_after_seconds,
            details=first.details,
        )

    async def _relay(self) -> None:
        relay = self.context.relay
        assert relay is not None, "the pool was handed over without a relay"
        self._stop_heartbeat()
        try:
            await relay.answer(self)
        except RouterError as error:
            self._task = None
            self._refuse(error)
        else:
            self._task = None
            self._finish(self.client.status, keeps_alive=self.client.keeps_alive)

    # --- SENDING ---

    def _send(self, lease: Lease, now: float) -> None:
        """`now` is monotonic time."""
        context, stats = self.context, self.stats
        self.state, self._lease = _SENDING, lease
        stats.attempts += 1
        stats.action, stats.instance, stats.evicted = lease.action, lease.instance, lease.evicted
        stats.queue_seconds, stats.load_seconds = lease.queue_seconds, lease.load_seconds
        traffic = self._traffic = context.traffic.enter(lease.instance)
        self._number = traffic.begun
        if self._heartbeat is not None:
            self._heartbeat.serving(self._serving(traffic))
        upstream = context.idle.take(lease.address.socket, now)
        self._is_reused = upstream is not None
        self._write(upstream)

    def _write(self, upstream: Upstream | None) -> None:
        """`upstream` None: over a new connection."""
        lease, body, coalescer = self._lease, self.body, self.context.coalescer
        assert lease is not None, "it is being sent"
        size = body.size
        first = self.head_lines
        first += b"Content-Length: %d\r\n\r\n" % size if size or self.method not in BODILESS else b"\r\n"
        if size <= ONE_WRITE_BYTES:
            first = b"".join((first, *body.pieces))
        if upstream is None:
            upstream = self._upstream = open_upstream(lease.address.socket, first, self)
        else:
            self._upstream = upstream
            upstream.begin(self)
            upstream.write(first, coalescer if coalescer.requests >= MIN_REQUESTS else None)
        if size > ONE_WRITE_BYTES:
            self.context.spawn(upstream.write_body(body), f"send a body to {lease.instance}")

    def lost(self, error: Exception | None) -> None:
        """The instance closed the connection before its answer began (router.proxy.upstream.Listener)."""
        if self._is_reused and isinstance(error, ConnectionError):
            # It was closed while the request was written: the instance has not read all of it.
            self._is_reused = False
            self._write(None)
            return
        self._fail(error or ClosedEarly("it closed the connection"))

    def received(self, data: bytes) -> None:
        """The answer begins. In the usual case of an answer that is no stream `data` is all of it, with its
        length: then it is passed on in one step."""
        body_at = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        try:
            head = read_head(data[:body_at]) if body_at >= len(END_OF_HEAD) else None
        except Malformed:
            head = None  # `Answer` meets and reports the same
        size = len(data) - body_at
        body = data[body_at:]
        is_whole = head is not None and head.counted_bytes == size and head.status != RESTATED_STATUS
        if head is None or not is_whole or not self.client.write_whole(head, body):
            self._stream(head, data, body_at)
            return
        now, stats, context = monotonic(), self.stats, self.context
        stats.first_byte_seconds = now - self.begun_at
        stats.sent_bytes = size
        assert self._traffic is not None and self._lease is not None, "it is being sent"
        self._traffic.moved_bytes += size
        note_whole(body, stats)
        upstream, self._upstream = self._upstream, None
        assert upstream is not None, "it has just been read from"
        if upstream.end():
            context.idle.put(self._lease.address.socket, upstream, head.promised_seconds, now)
        else:
            upstream.close()
        self._finish(head.status, keeps_alive=True, now=now)

    # --- STREAMING ---

    def _stream(self, head: Head | None, data: bytes, body_at: int) -> None:
        """Pass the answer on as it comes; `head` None: it is not whole, or wrong."""
        upstream, traffic = self._upstream, self._traffic
        assert upstream is not None and traffic is not None, "something was received"
        answer = self._answer = Answer(
            upstream, self.client, self.stats, traffic, self._answer_over, self.begun_at, self._answer_begun
        )
        if self._heartbeat is not None:
            self._heartbeat.answer = answer
        upstream.hand_on(answer)
        if head is None or head.status < 200:
            answer.received(data)
        else:
            answer.begin(head, data[body_at:])

    def _answer_begun(self) -> None:
        self.state = _STREAMING
        self._forget_request()

    def _answer_over(self) -> None:
        answer, upstream, lease = self._answer, self._upstream, self._lease
        assert answer is not None and upstream is not None and lease is not None, "the answer has come"
        if answer.error is not None:
            if self._is_reused and not answer.has_data and isinstance(answer.error, ConnectionError):
                self.lost(answer.error)
                return
            self._fail(answer.error)
            return
        head = answer.head
        if answer.can_reuse and head is not None:
            self.context.idle.put(lease.address.socket, upstream, head.promised_seconds, monotonic())
        else:
            upstream.close()
        self._upstream = None
        send_rejection(self.client, answer, self.stats, self.info.dialect)
        self._finish(self.client.status, keeps_alive=self.client.keeps_alive)

    # --- heartbeats ---

    def heartbeat(self) -> None:
        """Begin the stream of a request of which nothing has come for as long as a client is left waiting."""
        context, traffic = self.context, self._traffic
        self._heartbeat = Heartbeat(
            context.snapshots, context.heartbeats(), self.client, self.info, self.stats, self.begun_at
        )
        self._heartbeat.start(None if traffic is None else self._serving(traffic), self._answer)

    def _serving(self, traffic: InstanceTraffic) -> Serving:
        return Serving(traffic, self._number, self.context.slots(self.info.model))

    # --- failures ---

    def _fail(self, error: Exception) -> None:
        self._run(partial(self._handle_failure, error), f"{self.info.model} failed a request")

    async def _handle_failure(self, error: Exception) -> None:
        """Find out what became of the instance, then retry, or tell the client."""
        lease, upstream = self._lease, self._upstream
        assert lease is not None, "an instance has failed"
        failures = self.context.failures
        if self.state is _STREAMING:
            failure = await failures.within_answer(lease, error)
        else:
            was_connected = upstream is not None and upstream.was_connected
            failed = await failures.before_answer(lease, error, was_connected=was_connected)
            if failed.may_retry and self._first_failure is None:
                self._retry(failed)
                await self._acquire()
                return
            failure = failed.error
        self._task = None
        self._refuse(failure)

    def _retry(self, failed: AttemptFailed) -> None:
        log.warning("%s; the request is tried once more", failed.error.message)
        self._first_failure = failed.error
        if self._answer is not None:
            self._answer.end()
        self._release()
        self.state, self._upstream, self._answer = _QUEUED, None, None
        if self._heartbeat is not None:
            self._heartbeat.requeue()

    def _refuse(self, error: RouterError) -> None:
        """Answer with the error: as a whole answer where nothing was sent yet, else as an event of the
        stream, or by closing the connection."""
        client = self.client
        self.stats.error = error.code
        if client.has_begun:
            send_stream_error(client, self._answer, error, self.info.dialect)
            self._finish(client.status, keeps_alive=client.keeps_alive)
            return
        self._forget_request()
        error_response(client, error, self.info.dialect, self.stats)
        self._finish(error.status, keeps_alive=client.keeps_alive)

    def client_lost(self) -> None:
        """The client has closed the connection."""
        if self.state is not _DONE:
            self._abandon()
            self._forget_request()
            self._finish(CLIENT_CLOSED_REQUEST, keeps_alive=False)

    def end_by(self, error: RouterError) -> None:
        """End the request by an operator's word; its client gets `error`."""
        if self.state is _DONE or self.stats.ended_by is not None:
            return
        self.stats.ended_by = error
        self._abandon()
        self._refuse(error)

    def _abandon(self) -> None:
        """Give up what is being waited for, and have the instance end its work."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if self._answer is not None:
            self._answer.end()
        upstream, self._upstream = self._upstream, None
        if upstream is None:
            return
        on_abandoned = self.info.on_abandoned
        if on_abandoned is not None and self.stats.ended_by is None:
            upstream.close()
            on_abandoned(self.stats)
            return
        lease, traffic, held = self._lease, self._traffic, AsyncExitStack()
        assert lease is not None and traffic is not None, "it was sent"
        held.callback(self.context.pool.release, lease)
        held.callback(self.context.traffic.leave, traffic, lease.instance, self._number)
        has_generated = self._answer is not None and self._answer.has_generated
        self.context.endings.begin(upstream, lease, traffic, self.stats, held, has_generated=has_generated)

    # --- DONE ---

    def _finish(self, status: int, *, keeps_alive: bool, now: float | None = None) -> None:
        if self.state is _DONE:
            return
        self.state = _DONE
        if self.info.stream:
            self._stop_heartbeat()
        if self._answer is not None:
            self._answer.end()
        self.context.coalescer.requests -= 1
        self.context.in_flight.leave(self)
        self._release()
        self.ended(self, status, (monotonic() if now is None else now) - self.begun_at)
        self.connection.answered(keeps_alive=keeps_alive)

    def _release(self) -> None:
        """Give the lease back, unless `Endings` holds it until the instance has ended the request."""
        lease, self._lease = self._lease, None
        if lease is None or self.stats.ending is not None:
            return
        assert self._traffic is not None, "it was entered with the lease"
        self.context.traffic.leave(self._traffic, lease.instance, self._number)
        self._traffic = None
        self.context.pool.release(lease)

    def _stop_heartbeat(self) -> None:
        self.context.unwatch(self)
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _forget_request(self) -> None:
        """It is not sent again. A stream may last, and its prompt may be long."""
        self.body.forget()
        self.head_lines = b""

    def _run(self, work: Callable[[], Coroutine[object, object, None]], name: str) -> None:
        self._task = self.context.spawn(self._guarded(work), name)

    async def _guarded(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """A request ends also where the router's own code fails."""
        try:
            await work()
        except Exception:
            log.exception("a request for %s failed", self.info.model)
            self._task = None
            self.client.cut()
            self._finish(500, keeps_alive=False)
