"""What Prometheus collects: the router's own figures and those of every loaded llama-server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Final

from aiohttp import web

from router.admin.context import CONTEXT, NAME_REFUSALS, Context
from router.admin.route import Query, Routes
from router.engines.llama_server import METRICS_PATH
from router.errors import ModelNotLoaded, UpstreamFailed
from router.metrics import Child, Seen, ask_children
from router.scheduler.types import ModelName
from router.scheduler.views import Snapshot

ROUTES: Final = Routes()


@ROUTES.add(
    "GET",
    METRICS_PATH,
    summary="The router's figures and those of every loaded model, for Prometheus",
    query=(Query("model", "Only what the llama-server of this loaded model tells"),),
    answer=str,
    media=("text/plain", "application/openmetrics-text"),
    refusals=(*NAME_REFUSALS, ModelNotLoaded, UpstreamFailed),
)
async def metrics(request: web.Request) -> web.Response:
    """Nobody is loaded or woken for it. `?model=NAME`: what the llama-server of a loaded model tells of
    itself, as it tells it."""
    context = request.app[CONTEXT]
    if "model" in request.query:
        return await _of_one(context, context.name_of(request.query["model"]))
    # Together with the children, so that the figures are of one moment.
    pool, snapshot = context.pool, context.pool.snapshot()
    answers = await ask_children(_children(context, snapshot))
    standings = {one.id: pool.standing(one.id) for one in snapshot.instances}
    infos = {device: info for one in pool.measurements.values() for device, info in one.infos.items()}
    seen = Seen(snapshot, standings, infos, context.stats.told().models)
    accept = request.headers.get("Accept", "")
    body, content_type = await asyncio.to_thread(context.metrics.render, seen, answers, accept)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _of_one(context: Context, model: ModelName) -> web.Response:
    children = [one for one in _children(context, context.pool.snapshot()) if one.model == model]
    if not children:
        raise ModelNotLoaded(f"{model} is not loaded, and is not loaded for its metrics")
    text = (await ask_children(children[:1]))[children[0]]
    if text is None:
        raise UpstreamFailed(f"the llama-server of {model} did not answer {METRICS_PATH} in time")
    return web.Response(text=text, content_type="text/plain")


def _children(context: Context, snapshot: Snapshot) -> Iterator[Child]:
    seen = Counter[ModelName]()
    for one in snapshot.instances:
        address = context.pool.address(one.id)
        if address is not None:
            yield Child(one.model, seen[one.model], address.socket)
            seen[one.model] += 1
