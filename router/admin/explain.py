"""Why a model is where it is, and what would happen if it were asked for: in words and as data."""

from __future__ import annotations

from typing import Final, NotRequired, TypedDict

from aiohttp import web

from router.admin.answer import json_response
from router.admin.context import CONTEXT, NAME_REFUSALS
from router.admin.route import Query, Routes
from router.errors import InvalidRequest
from router.scheduler.types import DeviceId, InstanceId, ModelName
from router.supervisor.planning import opinion_words

ROUTES: Final = Routes()


class Explained(TypedDict):
    """Why a model is where it is. `would_evict` is who would leave for it, `warnings` why it runs on the
    CPU though there is a GPU."""

    model: ModelName
    state: str
    text: str
    waiting: int
    waits_for: str | None
    would_evict: tuple[InstanceId, ...]
    placement: dict[DeviceId, int] | None
    shortfall: dict[DeviceId, int]
    last_evicted_for: ModelName | None
    last_evicted_seconds_ago: float | None
    second_opinion: NotRequired[str | None]
    warnings: NotRequired[tuple[str, ...]]


@ROUTES.add(
    "GET",
    "/explain",
    summary="Why a model is where it is, and what a request for it would do",
    query=(
        Query("model", "Its name or alias", required=True),
        Query("format", "`text`: only the words"),
    ),
    answer=Explained,
    media=("application/json", "text/plain"),
    refusals=(InvalidRequest, *NAME_REFUSALS),
)
async def explain(request: web.Request) -> web.Response:
    """`?model=NAME`; only the words with `?format=text` or `Accept: text/plain`."""
    name = request.query.get("model", "")
    if not name:
        raise InvalidRequest("name a model: GET /explain?model=NAME")
    pool, model = request.app[CONTEXT].pool, request.app[CONTEXT].name_of(name)
    found, standings = pool.explain(model), pool.standings(model)
    warnings = pool.warnings(model)
    if request.query.get("format") == "text" or request.headers.get("Accept") == "text/plain":
        return web.Response(text="\n".join(filter(None, (found.text, *warnings))) + "\n")
    evicted_at, placement = found.last_evicted_at, found.placement
    now = pool.snapshot().now
    body: Explained = {
        "model": found.model,
        "state": found.state,
        "text": found.text,
        "waiting": found.waiting,
        "waits_for": found.waits_for,
        "would_evict": found.would_evict,
        "placement": None if placement is None else dict(placement.footprint),
        "shortfall": dict(found.shortfall),
        "last_evicted_for": found.last_evicted_for,
        "last_evicted_seconds_ago": None if evicted_at is None else round(now - evicted_at, 3),
        "second_opinion": opinion_words(standings[0]) if standings else None,
        "warnings": warnings,
    }
    return json_response(body)
