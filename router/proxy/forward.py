"""One request from its lease to its last byte."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from time import monotonic

from aiohttp import web

from router.errors import LoadFailed, RouterError, ShuttingDown, UpstreamFailed
from router.proxy.answer import Answer
from router.proxy.ask import REQUEST_STATS, Dialect, RequestInfo, RequestStats
from router.proxy.body import Body
from router.proxy.client import AiohttpClient, AlreadySentResponse, Client
from router.proxy.endings import Endings
from router.proxy.express import TRIED, Lane, Waited
from router.proxy.failures import Broken, Failures
from router.proxy.heads import request_head
from router.proxy.idle import Idle
from router.proxy.telling import send_stream_error, tell_rejection
from router.proxy.upstream import connect
from router.proxy.waiting import HeartbeatConfig, Serving, SnapshotCache, Waiting
from router.scheduler.types import ModelName
from router.supervisor.pool import HandedOver, Lease, Pool
from router.supervisor.stall import InstanceTraffic, Traffic

log = logging.getLogger("router.proxy")

#: A child that dies in its first request counts as a failed load, and the model pauses: so long a retry
#: waits for it.
RETRY_PATIENCE_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class _Call:
    """One request, as often as it has to be made."""

    head: bytes
    body: Body
    ask: RequestInfo
    account: RequestStats
    client: Client
    waiting: Waiting
    tried: Broken | None = None
    answer: Answer | None = None


class Begun(HandedOver):
    """Its client has heard the beginning of a stream that another process has to go on with: what that one
    says is for `client`, and `finish` the answer for aiohttp.
    """

    def __init__(self, client: AiohttpClient, dialect: Dialect, response: AlreadySentResponse) -> None:
        super().__init__()
        self.client = client
        self.dialect = dialect
        self._response = response

    def finish(self) -> web.StreamResponse:
        self._response.sent(self.client.status, keeps_alive=self.client.keeps_alive)
        return self._response


class Proxy:
    """Passes requests to the instances of one pool. `traffic` tells what each of them moves."""

    def __init__(
        self,
        pool: Pool,
        patience: Callable[[], HeartbeatConfig] = HeartbeatConfig,
        slots: Callable[[ModelName], int | None] = lambda _: None,
    ) -> None:
        """`slots` tells how many requests an instance of the model serves at a time, None where that is not
        known.
        """
        self._pool = pool
        self._patience = patience
        self._slots = slots
        self._pictures = SnapshotCache(pool)
        self._idle = Idle()
        self.traffic = Traffic()
        self._failures = Failures(pool, self.traffic)
        self.endings = Endings()
        self.lane = Lane(pool, self._idle, self.traffic, self._failures, self.endings, self)

    def close(self) -> None:
        """Let go of the connections that wait for more requests, and of the requests that are ending."""
        self._idle.close()
        self.endings.close()

    async def forward(
        self, request: web.Request, body: bytes | Body, ask: RequestInfo, *, target: str | None = None
    ) -> web.StreamResponse:
        """Answer `request` from an instance of its model. Raises RouterError as long as nothing was sent, and
        HandedOver or Begun when another process is to answer it.
        `target` is the path and query that the child is asked for, encoded; None: those of `request`.

        A child that dies before its answer began is replaced once. One that dies later ends the answer with
        an error event in a server-sent stream, else with a closed connection: never with what looks like a
        proper end.
        """
        account = request[REQUEST_STATS] = RequestStats(ask.model)
        held = body if isinstance(body, Body) else Body.of(body)
        response = AlreadySentResponse()
        client = AiohttpClient.of(request, account, await _more_head(request, response))
        head = request_head(
            request.method, target or request.rel_url.raw_path_qs, request.raw_headers, held.size
        )
        with Waiting(self._pictures, self._patience(), client, ask, account) as waiting:
            call = _Call(head, held, ask, account, client, waiting, request.get(TRIED))
            try:
                await self._answer(call)
            except RouterError as error:
                self._tell(call, error)
            except HandedOver:
                if not client.has_begun:
                    raise
                raise Begun(client, ask.dialect, response) from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if account.ended_by is None or task is None or not client.has_begun:
                    raise
                task.uncancel()
                self._tell(call, account.ended_by)
        if client.is_full:  # one who asks again and again without reading is not answered without end
            await client.drain()
        response.sent(client.status, keeps_alive=client.keeps_alive)
        return response

    # --- for the express lane ---

    def head_seconds(self) -> float:
        """After how long a stream of which nothing has come is begun; 0: never."""
        return self._patience().head_seconds

    def keep_waiting(self, ask: RequestInfo, client: Client, account: RequestStats, at: Waited) -> Waiting:
        """Tell the client of a stream from now on what it waits for."""
        waiting = Waiting(self._pictures, self._patience(), client, ask, account)
        waiting.go_on(Serving(at.flow, at.number, self._slots(ask.model)), at.answer, at.seconds)
        return waiting

    async def try_again(
        self, said: bytes, ask: RequestInfo, client: Client, account: RequestStats, tried: Broken
    ) -> None:
        """Answer a request whose client has the head of its stream, where an attempt has ended before its
        child answered. `said` is the request as a child gets it. What goes wrong is told in the stream.
        """
        account.attempts = 0
        with Waiting(self._pictures, self._patience(), client, ask, account) as waiting:
            call = _Call(said, Body(), ask, account, client, waiting, tried)
            try:
                await self._answer(call)
            except RouterError as error:
                self._tell(call, error)
            except HandedOver:
                self._tell(call, ShuttingDown("the router is being restarted", retry_after_seconds=1.0))

    async def _answer(self, call: _Call) -> None:
        begun = asyncio.get_running_loop().time()
        try:
            if call.tried is not None:
                call.account.attempts += 1
                raise call.tried
            await self._attempt(call)
            return
        except Broken as broken:
            if not broken.may_retry:
                raise broken.error from broken
            first = broken.error
        except RouterError:
            call.account.queue_seconds = asyncio.get_running_loop().time() - begun
            if not call.client.has_begun:
                call.account.action = "rejected"
            raise
        log.warning("%s; the request is tried once more", first.message)
        await self._retry(call, first)

    async def _retry(self, call: _Call, first: RouterError) -> None:
        call.waiting.again()
        try:
            try:
                await self._attempt(call)
            except LoadFailed as pausing:
                pause = pausing.retry_after_seconds
                if pause is None or pause > RETRY_PATIENCE_SECONDS:
                    raise
                await asyncio.sleep(pause)
                await self._attempt(call)
        except Broken as broken:
            raise broken.error from broken
        except RouterError as refusal:
            raise UpstreamFailed(
                f"{first.message}; the second try: {refusal.message}",
                retry_after_seconds=refusal.retry_after_seconds,
                details=first.details,
            ) from refusal

    async def _attempt(self, call: _Call) -> None:
        ask, account = call.ask, call.account
        account.attempts += 1
        async with AsyncExitStack() as held:
            leasing = self._pool.lease(
                ask.model, priority=ask.priority, keep_alive=ask.keep_alive, size=ask.size
            )
            lease = await held.enter_async_context(leasing)
            account.action, account.instance, account.evicted = lease.action, lease.instance, lease.evicted
            account.queue_seconds, account.load_seconds = lease.queue_seconds, lease.load_seconds
            flow = held.enter_context(self.traffic.passage(lease.instance))
            call.waiting.served(Serving(flow, flow.begun, self._slots(ask.model)))
            await self._exchange(call, lease, flow, held)

    async def _exchange(self, call: _Call, lease: Lease, flow: InstanceTraffic, held: AsyncExitStack) -> None:
        """`held` is what the request holds; a request that is abandoned keeps it until its child has ended
        the work."""
        path = lease.address.socket
        upstream = self._idle.take(path, monotonic())
        while True:
            is_kept = upstream is not None
            if upstream is None:
                try:
                    upstream = await connect(path)
                except OSError as error:
                    raise await self._failures.before_answer(lease, error, was_connected=False) from error
            over = asyncio.get_running_loop().create_future()
            told, asked_at = partial(_set, over), monotonic()
            answer = call.answer = call.waiting.answer = Answer(
                upstream, call.client, call.account, flow, told, asked_at
            )
            upstream.begin(answer)
            try:
                await upstream.send(call.head, call.body)
                await over
            except BaseException:  # also of an answer that was complete in this very moment
                if call.ask.outlives_client:
                    upstream.close()
                else:
                    has_generated = answer.has_generated
                    self.endings.begin(upstream, lease, flow, call.account, held, has_generated=has_generated)
                raise
            finally:
                answer.end()
            if answer.error is None:
                break
            if is_kept and not answer.has_heard and isinstance(answer.error, ConnectionError):
                # It was closed while we wrote: the child has not read all of it, so it has not begun it.
                upstream = None
                continue
            raise await self._failure(lease, answer, answer.error) from answer.error
        if answer.can_reuse and answer.head is not None:
            self._idle.put(path, upstream, answer.head.promised_seconds, monotonic())
        else:
            upstream.close()
        tell_rejection(call.client, answer, call.account, call.ask.dialect)

    async def _failure(self, lease: Lease, answer: Answer, error: Exception) -> Exception:
        """The answer ended before its end: what is to be raised. Broken, where the client has heard nothing
        of it."""
        if answer.head is None:
            return await self._failures.before_answer(lease, error, was_connected=True)
        return await self._failures.within_answer(lease, error)

    def _tell(self, call: _Call, error: RouterError) -> None:
        """Raises the error where nothing was sent yet: it can be told properly then. Else as an event, or by
        a cut."""
        call.account.error = error.code
        client, answer = call.client, call.answer
        if not client.has_begun:
            call.body.forget()
            raise error
        send_stream_error(client, answer, error, call.ask.dialect)


def _set(over: asyncio.Future[None]) -> None:
    if not over.done():  # it is cancelled together with who awaits it
        over.set_result(None)


async def _more_head(request: web.Request, response: AlreadySentResponse) -> bytes:
    """The header lines that the application adds to every answer (CORS), before the answer is known."""
    for app in request.match_info.apps:
        if app.on_response_prepare:
            await app.on_response_prepare.send(request, response)
    if not response.headers:
        return b""
    return "".join(f"{name}: {value}\r\n" for name, value in response.headers.items()).encode("utf-8")
