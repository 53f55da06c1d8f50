"""One request from its lease to its last byte where nothing has to be waited for: its model is ready. It
runs from one callback of the loop to the next, without a task of its own.

All else is left to `forward`: until the child has begun its answer the request can be given to it as it came,
and is, with what was tried, whenever something goes wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Final, Protocol

from router.errors import RouterError
from router.pool import Lease, Pool
from router.proxy.answer import Answer
from router.proxy.ask import Account, Dialect
from router.proxy.client import Client, Connected
from router.proxy.failures import Broken, Failures
from router.proxy.idle import Idle
from router.proxy.outbox import Outbox
from router.proxy.telling import tell_within
from router.proxy.upstream import Upstream, open_now
from router.stall import Passage, Traffic

log = logging.getLogger("router.proxy")

#: What nginx notes for a client that left before its answer.
CLIENT_LEFT: Final = 499


class Front(Connected, Protocol):
    """The connection that a request came on."""

    on_taken: Callable[[], object] | None

    @property
    def peer(self) -> str | None: ...
    def begun(self) -> None:
        """Its answer has: the request is not needed any more."""

    def answered(self, exchange: Exchange, *, keeps_alive: bool) -> None:
        """Its answer is complete as far as it goes; without `keeps_alive` the connection is to be closed."""

    def give_up(self, exchange: Exchange, tried: Broken) -> None:
        """The request is to be read by aiohttp's server; whoever answers it there finds what was
        `tried_before`.
        """


def tried_before(connection: object) -> Broken | None:
    """The attempt that was made at the request that this connection of aiohttp's server brings, once."""
    tried = getattr(connection, "tried", None)
    if tried is None:
        return None
    assert isinstance(tried, Broken), "of our own connections"
    connection.tried = None  # type: ignore[attr-defined]
    return tried


class Lane:
    """What all exchanges share."""

    def __init__(self, pool: Pool, idle: Idle, traffic: Traffic, failures: Failures) -> None:
        self.pool = pool
        self.idle = idle
        self.traffic = traffic
        self.failures = failures
        self.outbox = Outbox()
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: asyncio.Task[None]) -> None:
        """Hold it until it ends."""
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)


class _InFront(Client):
    """The client of an exchange."""

    __slots__ = ("front", "outbox")
    front: Front
    outbox: Outbox

    def _begin(self, status: int) -> None:
        self.has_begun, self.status = True, status
        self.front.begun()

    def write_last(self, data: bytes) -> None:
        if self.outbox.is_worth_it:
            self.outbox.put(partial(self._write, data))
        else:
            self._write(data)

    def when_taken(self, told: Callable[[], object]) -> None:
        self.front.on_taken = told

    def no_matter_when(self) -> None:
        self.front.on_taken = None


class Exchange:
    """`begin` it; then it ends by itself, or by `left` when its client is gone, or by `end_by`. `ended` is
    called once, with the status, or None where the request is given up for aiohttp to answer.
    """

    method: Final = "POST"
    conversation: Final = None

    __slots__ = (
        "_answer", "_begun_at", "_client", "_dialect", "_ended", "_failing", "_front", "_has_ended",
        "_is_kept", "_lane", "_lease", "_passage", "_said", "_upstream", "account", "id", "path", "since",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        lease: Lease,
        dialect: Dialect,
        said: bytes,
        path: str,
        front: Front,
        transport: asyncio.Transport,
        ended: Callable[[Exchange, int | None, float], object],
        *,
        keeps_alive: bool,
    ) -> None:
        """`said` is the request as the child gets it; the lease is from now on given back here."""
        self._lane = lane
        self._lease = lease
        self._dialect = dialect
        self._said = said
        self._front = front
        self._ended = ended
        self.id = ""
        self.path = path
        self.since = 0.0
        self._begun_at = monotonic()
        account = self.account = Account(lease.model, lease.action, instance=lease.instance, attempts=1)
        client = self._client = _InFront(transport, front, account, keeps_alive=keeps_alive)
        client.front, client.outbox = front, lane.outbox
        lane.outbox.requests += 1
        self._passage: Passage = lane.traffic.enter(lease.instance)
        self._answer: Answer | None = None
        self._upstream: Upstream | None = None
        self._is_kept = False
        self._has_ended = False
        self._failing: asyncio.Task[None] | None = None

    @property
    def client(self) -> str | None:
        return self._front.peer

    def begin(self) -> None:
        upstream = self._lane.idle.take(self._lease.address.socket)
        self._is_kept = upstream is not None
        self._ask_child(upstream if upstream is not None else open_now(self._lease.address.socket))

    def _ask_child(self, upstream: Upstream) -> None:
        self._upstream = upstream
        answer = self._answer = Answer(upstream, self._client, self.account, self._passage, self._over)
        upstream.begin(answer)
        outbox = self._lane.outbox
        upstream.write(self._said, outbox if outbox.is_worth_it else None)

    def forget_request(self) -> None:
        """Its answer has begun, so it is not said again. A stream may last, and its prompt may be long."""
        self._said = b""

    # --- how it ends ---

    def left(self) -> None:
        """The client is gone."""
        self._let_go()
        self._end(CLIENT_LEFT)

    def end_by(self, error: RouterError) -> None:
        """An operator ends it."""
        if self._has_ended:
            return
        self.account.ended_by = error
        self._let_go()
        if self._client.has_begun:
            self._tell(error)
        else:
            self._give_up(Broken(error, may_retry=False))

    def _over(self) -> None:
        """The answer will have nothing more."""
        answer, upstream = self._answer, self._upstream
        assert answer is not None and upstream is not None, "it has been asked for"
        if answer.error is not None:
            self._failed(answer.error)
            return
        head = answer.head
        if answer.can_reuse and head is not None:
            self._lane.idle.put(self._lease.address.socket, upstream, head.promised_seconds)
        else:
            upstream.close()
        self._upstream = None
        self._end(self._client.status)

    def _failed(self, error: Exception) -> None:
        answer = self._answer
        assert answer is not None, "it has been asked for"
        if self._is_kept and not answer.has_heard and isinstance(error, ConnectionError):
            # It was closed while we wrote: the child has not read all of it, so it has not begun it.
            self._is_kept = False
            self._ask_child(open_now(self._lease.address.socket))
            return
        working = self._work_out(error, has_begun=answer.head is not None)
        task = asyncio.get_running_loop().create_task(working, name=f"{self._lease.model} failed a request")
        self._failing = task
        self._lane.run(task)

    async def _work_out(self, error: Exception, *, has_begun: bool) -> None:
        """What became of its child, and what is to be done."""
        try:
            await (self._cut_short(error) if has_begun else self._broken(error))
        except Exception:
            log.exception("%s: a failed request could not be told", self._lease.instance)
            self._client.cut()
            self._end(500)

    async def _broken(self, error: Exception) -> None:
        """Before its answer began."""
        upstream = self._upstream
        was_connected = upstream is not None and upstream.was_connected
        broken = await self._lane.failures.before_answer(self._lease, error, was_connected=was_connected)
        self._failing = None
        self._give_up(broken)

    async def _cut_short(self, error: Exception) -> None:
        """In the middle of its answer."""
        failure = await self._lane.failures.within_answer(self._lease, error)
        self._failing = None
        self._tell(failure)

    def _tell(self, error: RouterError) -> None:
        """As an event, or by a cut."""
        self.account.error = error.code
        tell_within(self._client, self._answer, error, self._dialect)
        self._end(self._client.status)

    def _give_up(self, tried: Broken) -> None:
        self._has_ended = True
        self._free()
        self._ended(self, None, 0.0)
        self._front.give_up(self, tried)

    def _end(self, status: int) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._free()
        self._ended(self, status, monotonic() - self._begun_at)
        self._front.answered(self, keeps_alive=self._client.keeps_alive)

    def _free(self) -> None:
        """What it holds, each once."""
        self._lane.outbox.requests -= 1
        if self._answer is not None:
            self._answer.end()
        self._lane.traffic.leave(self._passage, self._lease.instance)
        self._lane.pool.give_back(self._lease)

    def _let_go(self) -> None:
        if self._failing is not None:
            self._failing.cancel()
            self._failing = None
        if self._answer is not None:
            self._answer.end()
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
