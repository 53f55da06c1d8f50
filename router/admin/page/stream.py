"""The state as a stream: whole again whenever it changed, so that a page that comes back knows everything.

    event: state    data: {"at", "state", "moments", "requests", "downloads", "history" (only in the first)}

`moments` are those since the last event of this stream: all that are kept in the first."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

import msgspec
from aiohttp import web

from router.admin.answer import event_stream, is_set, json_response
from router.admin.context import CONTEXT
from router.admin.downloads import Download
from router.admin.page.state import State, state
from router.admin.recent import EVERY_SECONDS, KEPT, Moment, Point
from router.admin.requests import RequestRow, rows
from router.admin.route import Access, Query, Routes
from router.admin.stream_limit import Streams
from router.errors import ClientLimit, InvalidRequest, Unavailable

#: A page need not be told more often than a person can read.
LEAST_SECONDS: Final = 0.5
HEARTBEAT_SECONDS: Final = 10.0
#: Each viewer costs a few milliseconds of CPU for every state.
VIEWERS_MAX: Final = 32
#: Nobody reads more of them, and each state tells them all.
REQUESTS_MAX: Final = 100
DOWNLOADS_MAX: Final = 20

ROUTES: Final = Routes()
VIEWERS = web.AppKey("viewers", Streams)


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of the stream, and the answer of `GET /status`. `at` is Unix time in seconds."""

    at: float
    state: State
    moments: list[Moment]
    requests: list[RequestRow] = []
    downloads: list[Download] = []
    history: dict[str, list[Point]] | None = None


@ROUTES.add(
    "GET",
    "/status",
    access=Access.ADMIN,
    summary="All that the status page shows",
    query=(
        Query("history", "Whether to tell what the memory was in the last minutes; it does", bool),
        Query("moments", "So many of the last decisions; all that are kept", int),
    ),
    answer=Told,
    refusals=(InvalidRequest,),
)
async def show_status(request: web.Request) -> web.Response:
    """All that the page shows, once. Who asks every second has no need to be told the same minutes each time:
    `?history=0` leaves out what the memory was, `?moments=8` all but the last eight decisions."""
    newest = _newest(request)
    told = _Viewer(request.app, has_history=is_set(request, "history", if_absent=True)).told()
    return json_response(msgspec.structs.replace(told, moments=told.moments[-newest:] if newest else []))


@ROUTES.add(
    "GET",
    "/status/sse",
    access=Access.ADMIN,
    endless=True,
    summary="The same as a stream, whole again whenever it changed",
    answer=Any,
    media=("text/event-stream",),
    refusals=(Unavailable, ClientLimit),
)
async def stream_status(request: web.Request) -> web.StreamResponse:
    """Server-sent events until the client leaves or the router stops."""
    with request.app[VIEWERS].hold(request, VIEWERS_MAX, "pages look at the status already; close one"):
        return await _stream(request)


async def _stream(request: web.Request) -> web.StreamResponse:
    response = event_stream()
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    viewer = _Viewer(request.app)
    loop = asyncio.get_running_loop()
    last_sent, said_at = b"", loop.time()
    with request.app[CONTEXT].pool.journal.subscribe() as entries:
        while True:
            told = viewer.told()
            # The time alone is no news.
            body = msgspec.json.encode(msgspec.structs.replace(told, at=0.0))
            now = loop.time()
            if body != last_sent:
                await response.write(b"event: state\ndata: " + msgspec.json.encode(told) + b"\n\n")
                last_sent, said_at = body, now
            elif now - said_at >= HEARTBEAT_SECONDS:
                await response.write(b": still here\n\n")
                said_at = now
            await asyncio.sleep(LEAST_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS - LEAST_SECONDS):
                    await anext(entries)


def _newest(request: web.Request) -> int:
    given = request.query.get("moments", str(KEPT))
    if not (given.isascii() and given.isdigit() and len(given) <= 6):
        raise InvalidRequest(f"moments is {given[:40]!r}, which is no number of decisions")
    return int(given)


class _Viewer:
    """What one stream has told already. `has_history`: what the memory was is still to be told."""

    def __init__(self, app: web.Application, *, has_history: bool = True) -> None:
        self._app, self._context = app, app[CONTEXT]
        self._after = 0
        self._has_history = has_history

    def told(self) -> Told:
        fresh = self._context.timeline.after(self._after)
        self._after = fresh[-1].id if fresh else self._after
        lines = self._context.history.lines() if self._has_history else None
        self._has_history = False
        return Told(
            at=round(time.time(), 1),
            state=state(self._context, self._context.timeline.lasts),
            moments=fresh,
            requests=rows(self._app[CONTEXT].proxy.in_flight)[:REQUESTS_MAX],
            downloads=[Download.of(job) for job in self._context.downloads.jobs()][-DOWNLOADS_MAX:],
            history=None if lines is None else {device: list(line) for device, line in lines.items()},
        )
