"""`/models/sse`: what happens to the models, as server-sent events; and `/models/stats`, what has happened.

An event is one `data:` line with llama.cpp's frame, {"model", "event", "data"}, and an id to come again
with."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from aiohttp import web

from router.admin.answer import event_stream, json_response
from router.admin.context import CONTEXT
from router.admin.route import Query, Routes
from router.admin.stream_limit import Streams
from router.errors import ClientLimit, Unavailable
from router.observability.events import Feed, ModelEvent, Reader
from router.observability.stats import Statistics

#: A comment, so that neither a client nor what stands between gives a quiet stream up.
HEARTBEAT_SECONDS: Final = 10.0
#: A reader that takes nothing for so long is cut off.
STUCK_SECONDS: Final = 60.0
GOODBYE_SECONDS: Final = 1.0
READERS_MAX: Final = 128

READERS: Final = web.AppKey("event_readers", Streams)

ROUTES: Final = Routes()


@ROUTES.add(
    "GET",
    "/models/sse",
    endless=True,
    summary="What happens to the models, as it happens",
    query=(Query("last_event_id", "The id of the last event you had, where no header can say it"),),
    answer=ModelEvent,
    media=("text/event-stream",),
    refusals=(Unavailable, ClientLimit),
)
async def stream_events(request: web.Request) -> web.StreamResponse:
    """First a `snapshot`, then what happens, until the client leaves or the router stops (`shutdown`). With
    `Last-Event-ID` what was missed comes before that, or `reset` where it is not kept any more. A reader that
    is too slow gets a `reset` and a `snapshot` instead of what it missed."""
    with request.app[READERS].hold(request, READERS_MAX, "clients read events already"):
        response = event_stream()
        await response.prepare(request)
        if request.method != "HEAD":
            with request.app[CONTEXT].events.reading():
                await _pass_on(request, response)
    return response


async def _pass_on(request: web.Request, response: web.StreamResponse) -> None:
    feed = request.app[CONTEXT].events
    reader = Reader(feed, request.headers.get("Last-Event-ID") or request.query.get("last_event_id"))
    try:
        while True:
            data = reader.take() or b":\n\n"
            async with asyncio.timeout(STUCK_SECONDS):
                await response.write(data)
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await reader.more()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except asyncio.CancelledError:
        if request.transport is not None and not request.transport.is_closing():
            await _say_goodbye(response, feed)
        raise


async def _say_goodbye(response: web.StreamResponse, feed: Feed) -> None:
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(GOODBYE_SECONDS):
            await response.write(feed.once("shutdown", {}))
            await response.write_eof()


@ROUTES.add(
    "GET", "/models/stats", summary="What was asked of each model, and what that cost", answer=Statistics
)
async def show_stats(request: web.Request) -> web.Response:
    """Requests, hits, loads, swaps and failures since the router started: of each model, and in sum."""
    return json_response(request.app[CONTEXT].stats.told())
