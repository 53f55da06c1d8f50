"""The requests in flight: which client asks which model for what, since when, and how far its answer is; and
their end by an operator."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from router.admin.answer import json_response
from router.admin.context import CONTEXT
from router.admin.route import Access, Route
from router.errors import RouterError
from router.proxy import ProxiedRequest, RequestStats
from router.proxy.in_flight import InFlight
from router.scheduler.types import InstanceId, ModelName


class RequestNotFound(RouterError):
    """No request in flight has this id: it never was, or it has ended."""

    status = 404
    type = "not_found_error"
    code = "request_not_found"


class RequestEnded(RouterError):
    """What the client of a request is told that an operator ended."""

    status = 503
    type = "unavailable_error"
    code = "request_ended"


class RequestRow(msgspec.Struct, frozen=True):
    """One request in flight. `state` is "waiting" until its model is ready, then "answering", and "ending"
    when its client is gone and llama-server still works on it; `action` what it took to get there; `since`
    Unix time; `bytes` those of its answer that have been sent."""

    id: str
    model: ModelName
    instance: InstanceId | None
    client: str | None
    method: str
    path: str
    state: str
    action: str | None
    since: float
    age_seconds: float
    bytes: int


class RequestList(msgspec.Struct, frozen=True):
    data: list[RequestRow]
    object: str = "list"


class EndedRequest(msgspec.Struct, frozen=True):
    id: str
    success: bool = True


def rows(in_flight: InFlight) -> list[RequestRow]:
    """The requests that are for a model, oldest first; the router's own are left out."""
    now = time.time()
    requests = in_flight.requests.values()
    return [_row(one, account, now) for one in requests if (account := one.account) is not None]


async def list_requests(request: web.Request) -> web.Response:
    return json_response(RequestList(rows(request.app[CONTEXT].proxy.in_flight)))


async def end_request(request: web.Request) -> web.Response:
    """Its client gets an error: as a whole answer where none had begun, else as the end of its stream."""
    id_ = request.match_info["id"]
    found = request.app[CONTEXT].proxy.in_flight.find(id_)
    if found is None:
        raise RequestNotFound(f"no request {id_[:40]!r} is in flight; GET /requests lists those that are")
    found.end_by(RequestEnded("an operator has ended this request"))
    return json_response(EndedRequest(id_))


def _state(account: RequestStats) -> str:
    if account.instance is None:
        return "waiting"
    return "answering" if account.ending is None else "ending"


def _row(request: ProxiedRequest, account: RequestStats, now: float) -> RequestRow:
    return RequestRow(
        id=str(request.id),
        model=account.model,
        instance=account.instance,
        client=request.peer,
        method=request.method,
        path=request.path,
        state=_state(account),
        action=None if account.instance is None else account.action,
        since=round(request.since, 3),
        age_seconds=round(max(0.0, now - request.since), 3),
        bytes=account.sent_bytes,
    )


ROUTES = (
    Route(
        "GET",
        "/requests",
        list_requests,
        Access.ADMIN,
        summary="The requests for models that are in flight",
        answer=RequestList,
    ),
    Route(
        "DELETE",
        "/requests/{id}",
        end_request,
        Access.ADMIN,
        summary="End a request",
        answer=EndedRequest,
        refusals=(RequestNotFound,),
    ),
)
