"""The state as a stream: whole again whenever it changed, so that a page that comes back knows everything.

    event: state    data: {"at", "state", "moments", "requests", "downloads", "history" (only in the first)}

`moments` are those since the last event of this stream: all that are kept in the first."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import web

from router.admin.answer import event_stream, is_set, json_response
from router.admin.context import CONTEXT
from router.admin.downloads import Download
from router.admin.page.state import State, state
from router.admin.page.timeline import KEPT, Moment, Timeline
from router.admin.requests import RequestRow, rows
from router.admin.route import Access, Query, Routes
from router.admin.stream_limit import Streams
from router.errors import ClientLimit, InvalidRequest, Unavailable
from router.scheduler.types import DeviceId
from router.scheduler.views import Snapshot

#: Of every device's memory a line of the last minutes is kept, in seconds, with a point this often.
KEPT_SECONDS: Final = 600.0
EVERY_SECONDS: Final = 2.0
#: A page need not be told more often than a person can read.
LEAST_SECONDS: Final = 0.5
HEARTBEAT_SECONDS: Final = 10.0
#: Each viewer costs a few milliseconds of CPU for every state.
VIEWERS_MAX: Final = 32
#: Nobody reads more of them, and each state tells them all.
REQUESTS_MAX: Final = 100
DOWNLOADS_MAX: Final = 20

ROUTES: Final = Routes()


class Point(NamedTuple):
    """Bytes at a Unix time in whole seconds; `free` is None while the device could not be measured."""

    at: int
    ours: int
    free: int | None


class History:
    """A bounded line for each device. It notes what was measured anyway and measures nothing itself, so that
    a sleeping GPU is left asleep."""

    def __init__(self) -> None:
        self._lines: dict[DeviceId, deque[Point]] = {}

    def note(self, snapshot: Snapshot, at: float) -> None:
        for device in snapshot.devices:
            line = self._lines.setdefault(device.id, deque(maxlen=int(KEPT_SECONDS / EVERY_SECONDS)))
            line.append(Point(int(at), device.used, device.free))
        for gone in self._lines.keys() - {device.id for device in snapshot.devices}:
            del self._lines[gone]

    def lines(self) -> Mapping[DeviceId, tuple[Point, ...]]:
        return {device: tuple(line) for device, line in self._lines.items()}


HISTORY = web.AppKey("history", History)
TIMELINE = web.AppKey("timeline", Timeline)
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
        self._history, self._timeline = app[HISTORY], app[TIMELINE]
        self._after = 0
        self._has_history = has_history

    def told(self) -> Told:
        fresh = self._timeline.after(self._after)
        self._after = fresh[-1].id if fresh else self._after
        lines = self._history.lines() if self._has_history else None
        self._has_history = False
        return Told(
            at=round(time.time(), 1),
            state=state(self._context, self._timeline.lasts),
            moments=fresh,
            requests=rows(self._app)[:REQUESTS_MAX],
            downloads=[Download.of(job) for job in self._context.downloads.jobs()][-DOWNLOADS_MAX:],
            history=None if lines is None else {device: list(line) for device, line in lines.items()},
        )


async def keep_history(app: web.Application) -> None:
    """For ever: note what was measured. It ends with its task, which the router's background owns."""
    while True:
        app[HISTORY].note(app[CONTEXT].pool.snapshot(), time.time())
        await asyncio.sleep(EVERY_SECONDS)


def keep_timeline(app: web.Application) -> None:
    """From now on note what is decided."""
    pool, timeline = app[CONTEXT].pool, app[TIMELINE]

    def label(device: DeviceId) -> str:
        return next((one.label for one in pool.snapshot().devices if one.id == device), device)

    pool.journal.follow(lambda entry: timeline.note([entry], label), *timeline.HEARD)


def prepare(app: web.Application) -> None:
    """What the stream needs of the application, before anything is asked."""
    app[HISTORY], app[TIMELINE] = History(), Timeline()
