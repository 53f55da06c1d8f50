"""The requests in flight: who asks which model for what, since when, and how far it is; and their end by an
operator's word."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from router.admin.answer import json_response
from router.admin.client_address import shown_address
from router.admin.route import Access, Handler, Route
from router.errors import RouterError
from router.proxy import REQUEST_STATS, RequestStats
from router.scheduler.types import InstanceId, ModelName

#: The header by which a client names what it may come back to.
CONVERSATION: Final = "X-Conversation-Id"


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


class Flight(Protocol):
    """A request from its arrival to its end. `since` is Unix time."""

    id: int

    @property
    def since(self) -> float: ...
    @property
    def account(self) -> RequestStats | None:
        """None until it is known which model it is for."""

    @property
    def client(self) -> str | None: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def conversation(self) -> str | None:
        """By which its client means to come back to its answer."""

    def end_by(self, error: RouterError) -> None:
        """Its client is told `error`: as an answer where none had begun, else as the end of its stream."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One that aiohttp's server has read, with the task that answers it."""

    request: web.Request
    task: asyncio.Task[Any]
    id: int = 0
    since: float = field(default_factory=time.time)

    @property
    def account(self) -> RequestStats | None:
        return self.request.get(REQUEST_STATS)

    @property
    def client(self) -> str | None:
        return shown_address(self.request.remote)

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def conversation(self) -> str | None:
        return self.request.headers.get(CONVERSATION)

    def end_by(self, error: RouterError) -> None:
        account = self.account
        assert account is not None, "only what is for a model is ended"
        if account.ended_by is None:
            account.ended_by = error
            self.task.cancel()


class InFlight:
    """Every request that is being answered, by id, oldest first."""

    def __init__(self) -> None:
        self.tickets: dict[int, Flight] = {}
        self._ids = itertools.count(1)

    def enter(self, flight: Flight) -> None:
        """It has its id from here."""
        id_ = flight.id = next(self._ids)
        self.tickets[id_] = flight

    def find(self, id_: str) -> Flight | None:
        is_one = id_.isdecimal() and len(id_) < 20
        return self.tickets.get(int(id_)) if is_one else None

    def leave(self, flight: Flight) -> None:
        """Its client has its answer, or is gone; it stays for as long as its child still works on it."""
        account = flight.account
        if account is None or account.ending is None:
            del self.tickets[flight.id]
        else:
            account.ending.add_done_callback(lambda _: self.tickets.pop(flight.id))


IN_FLIGHT: Final = web.AppKey("in_flight", InFlight)


@web.middleware
async def note_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    in_flight, task = request.app[IN_FLIGHT], asyncio.current_task()
    assert task is not None, "a request is handled in a task"
    ticket = Ticket(request, task)
    in_flight.enter(ticket)
    try:
        return await handler(request)
    except asyncio.CancelledError:
        account = request.get(REQUEST_STATS)
        if account is None or account.ended_by is None:
            raise
        ticket.task.uncancel()
        raise account.ended_by from None
    finally:
        in_flight.leave(ticket)


def rows(app: web.Application) -> list[RequestRow]:
    """The requests that are for a model, oldest first; the router's own are left out."""
    now = time.time()
    tickets = app[IN_FLIGHT].tickets.values()
    return [_row(one, account, now) for one in tickets if (account := one.account) is not None]


async def list_requests(request: web.Request) -> web.Response:
    return json_response(RequestList(rows(request.app)))


async def end_request(request: web.Request) -> web.Response:
    """Its client gets an error: as a whole answer where none had begun, else as the end of its stream."""
    id_ = request.match_info["id"]
    ticket = request.app[IN_FLIGHT].find(id_)
    if ticket is None or ticket.account is None:
        raise RequestNotFound(f"no request {id_[:40]!r} is in flight; GET /requests lists those that are")
    ticket.end_by(RequestEnded("an operator has ended this request"))
    return json_response(EndedRequest(id_))


def _state(account: RequestStats) -> str:
    if account.instance is None:
        return "waiting"
    return "answering" if account.ending is None else "ending"


def _row(ticket: Flight, account: RequestStats, now: float) -> RequestRow:
    return RequestRow(
        id=str(ticket.id),
        model=account.model,
        instance=account.instance,
        client=ticket.client,
        method=ticket.method,
        path=ticket.path,
        state=_state(account),
        action=None if account.instance is None else account.action,
        since=round(ticket.since, 3),
        age_seconds=round(max(0.0, now - ticket.since), 3),
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
