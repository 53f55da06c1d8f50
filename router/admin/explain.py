"""Why a model is where it is, and what would happen if it were asked for: in words and as data."""

from __future__ import annotations

from aiohttp import web

from router.admin.answer import json_response
from router.admin.context import CONTEXT
from router.admin.route import Query, Route
from router.admin.shapes import Explained
from router.errors import AmbiguousModel, InvalidRequest, ModelNotFound
from router.scheduler.views import Explanation
from router.supervisor.planning import opinion_words


async def explain(request: web.Request) -> web.Response:
    """`?model=NAME`; only the words with `?format=text` or `Accept: text/plain`."""
    name = request.query.get("model", "")
    if not name:
        raise InvalidRequest("name a model: GET /explain?model=NAME")
    context = request.app[CONTEXT]
    explanation = context.pool.explain(context.name_of(name))
    standings = context.pool.standings(explanation.model)
    reading = context.pool.reading_words(explanation.model)
    warnings = context.pool.warnings(explanation.model)
    if request.query.get("format") == "text" or request.headers.get("Accept") == "text/plain":
        return web.Response(text="\n".join(filter(None, (explanation.text, reading, *warnings))) + "\n")
    opinion = opinion_words(standings[0]) if standings else None
    body = _body(explanation, context.pool.snapshot().now)
    body["second_opinion"] = opinion
    body["reading"] = reading
    body["warnings"] = warnings
    return json_response(body)


def _body(explanation: Explanation, now: float) -> Explained:
    evicted_at = explanation.last_evicted_at
    placement = explanation.placement
    return {
        "model": explanation.model,
        "state": explanation.state,
        "text": explanation.text,
        "waiting": explanation.waiting,
        "waits_for": explanation.waits_for,
        "would_evict": explanation.would_evict,
        "placement": None if placement is None else dict(placement.footprint),
        "shortfall": dict(explanation.shortfall),
        "last_evicted_for": explanation.last_evicted_for,
        "last_evicted_seconds_ago": None if evicted_at is None else round(now - evicted_at, 3),
    }


ROUTES = (
    Route(
        "GET",
        "/explain",
        explain,
        summary="Why a model is where it is, and what a request for it would do",
        query=(
            Query("model", "Its name or alias", required=True),
            Query("format", "`text`: only the words"),
        ),
        answer=Explained,
        media=("application/json", "text/plain"),
        refusals=(InvalidRequest, ModelNotFound, AmbiguousModel),
    ),
)
