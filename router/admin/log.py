"""The log of a model's llama-server, as it stands and as it goes on: for `llama-router logs` and the page."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from router.admin.answer import is_set
from router.admin.context import CONTEXT, Context
from router.admin.route import Access, Query, Route
from router.admin.stream_limit import Streams
from router.errors import (
    AmbiguousModel,
    ClientLimit,
    InvalidRequest,
    ModelNotFound,
    ModelNotLoaded,
    Unavailable,
)
from router.process import LogReader
from router.scheduler.types import InstanceId, ModelName

LINES: Final = 100
LINES_MAX: Final = 10_000
#: So often a log is looked at for what is new, and for whether the model was started again.
LOOK_SECONDS: Final = 0.25
#: Each costs a look at a file four times a second.
FOLLOWERS_MAX: Final = 32

FOLLOWERS: Final = web.AppKey("log_followers", Streams)


async def show_log(request: web.Request) -> web.StreamResponse:
    """The last `lines` (100; as far as 64 KiB hold them) of the instance that was started last, also when it
    has ended. With `?follow=1` it goes on until the client leaves, from one instance of the model to the
    next, each under a line with its name."""
    context = request.app[CONTEXT]
    if not (name := request.query.get("model", "")):
        raise InvalidRequest("name a model: GET /models/log?model=NAME")
    model, lines = context.name_of(name), _lines(request)
    if is_set(request, "follow"):
        return await _follow(request, context, model, lines)
    instance = context.pool.newest(model)
    if instance is None:
        raise ModelNotLoaded(f"{model} has not been loaded since the router started: it has no log")
    reader = _reader(context, instance, lines)
    text = await asyncio.to_thread(reader.read) if reader is not None else b""
    return web.Response(body=text, content_type="text/plain", charset="utf-8")


async def _follow(request: web.Request, context: Context, model: ModelName, lines: int) -> web.StreamResponse:
    with request.app[FOLLOWERS].hold(request, FOLLOWERS_MAX, "clients follow logs already"):
        response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        response.content_type, response.charset = "text/plain", "utf-8"
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        await _pass_on(response, context, model, lines)
    raise AssertionError("it ends with its client")


async def _pass_on(response: web.StreamResponse, context: Context, model: ModelName, lines: int) -> None:
    followed: InstanceId | None = None
    reader: LogReader | None = None
    while True:
        data = await asyncio.to_thread(reader.read) if reader is not None else b""
        if data:
            await response.write(data)
            continue
        newest = context.pool.newest(model)
        if newest is not None and newest != followed:
            # Of one that starts while it is watched nothing is left out.
            reader = _reader(context, newest, lines if followed is None else LINES_MAX)
            if reader is not None:
                followed = newest
                await response.write(f"==> {newest} <==\n".encode())
                continue
        await asyncio.sleep(LOOK_SECONDS)


def _reader(context: Context, instance: InstanceId, lines: int) -> LogReader | None:
    path = context.pool.log_path(instance)
    return LogReader(path, lines) if path is not None else None


def _lines(request: web.Request) -> int:
    given = request.query.get("lines", str(LINES))
    if not (given.isascii() and given.isdigit() and len(given) <= 6 and int(given) <= LINES_MAX):
        raise InvalidRequest(f"lines is {given[:40]!r}, which is no number from 0 to {LINES_MAX}")
    return int(given)


ROUTES = (
    Route(
        "GET",
        "/models/log",
        show_log,
        Access.ADMIN,
        endless=True,
        summary="The log of a model's llama-server",
        query=(
            Query("model", "Whose log", required=True),
            Query("lines", "How many lines from its end", int),
            Query("follow", "Go on with what comes", bool),
        ),
        answer=str,
        media=("text/plain",),
        refusals=(ModelNotFound, AmbiguousModel, ModelNotLoaded, Unavailable, ClientLimit),
    ),
)
