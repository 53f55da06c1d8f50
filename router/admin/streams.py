"""Streams that a client may come back to: llama-server keeps what it generated for a request with an
`X-Conversation-Id`, and goes on when its client has left. These paths find the one that has it.

Nothing is remembered here: whoever has a conversation is asked, and so a router that was restarted finds it
as well."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from router.admin.answer import json_response, read_json
from router.admin.child import Child, children, read_to_its_end
from router.admin.child import ask as ask_child
from router.admin.context import CONTEXT, Context
from router.admin.route import HttpRequest, Pending, ProxiedRoute, Query, Route
from router.errors import InvalidRequest, RouterError, Unavailable, UpstreamFailed
from router.proxy import ProxiedRequest, RequestInfo, RequestStats
from router.proxy.in_flight import InFlight
from router.proxy.request import CONVERSATION
from router.scheduler.types import InstanceId, ModelName

LOOKUP_PATH: Final = "/v1/streams/lookup"
#: More digits are no number of 64 bits.
LONGEST_OFFSET: Final = 18
#: A client asks for the conversations that it shows.
MOST_ASKED: Final = 1000


class StreamNotFound(RouterError):
    """No loaded model has this conversation: it never had, or it is over for minutes, or the model left."""

    status = 404
    type = "not_found_error"
    code = "stream_not_found"


class StreamStopped(RouterError):
    """What a request is told that was stopped before its model was there."""

    status = 400
    type = "invalid_request_error"
    code = "stream_stopped"


class Wanted(msgspec.Struct, frozen=True):
    conversation_ids: list[str]


class Found(msgspec.Struct, frozen=True):
    """What a llama-server has of a conversation. The times are Unix times, `completed_at` 0 while it goes
    on."""

    conversation_id: str
    is_done: bool
    total_bytes: int
    started_at: int
    completed_at: int


_founds: Final = msgspec.json.Decoder(list[Found])


async def follow(request: Pending) -> RequestInfo:
    """What was generated from the byte `from` on, and what is generated from now on."""
    context, conversation = request.context, _conversation(request)
    _check_from(request)
    child = await _owner(context, conversation)
    if child is not None:
        return RequestInfo(child.model)  # with a lease: its client reads what it says
    if any(_waiting_for(context.proxy.in_flight, conversation)):
        raise Unavailable("the model of this stream is loading; ask again", retry_after_seconds=1.0)
    raise StreamNotFound(f"no loaded model has the conversation {conversation[:100]!r}")


async def lookup(request: web.Request) -> web.Response:
    """What there is of these conversations: nobody is told of others."""
    wanted = await read_json(request, Wanted)
    if len(wanted.conversation_ids) > MOST_ASKED:
        raise InvalidRequest(f"ask for at most {MOST_ASKED} conversations at a time")
    found = await _found(request.app[CONTEXT], wanted.conversation_ids)
    return json_response([one for _, ones in found for one in ones])


async def stop(request: web.Request) -> web.Response:
    """End the generation and forget what it said, or call it off while its model is not there yet."""
    context, conversation = request.app[CONTEXT], _conversation(request)
    for waiting in _waiting_for(context.proxy.in_flight, conversation):
        waiting.end_by(StreamStopped("request cancelled by a stop while the model was loading"))
    target = f"/v1/stream?conv_id={quote(conversation, safe='')}"
    owners = [child for child, _ in await _found(context, [conversation])]
    with suppress(UpstreamFailed):  # who is gone has forgotten it
        await asyncio.gather(*(ask_child(child, "DELETE", target) for child in owners))
    return web.Response(status=204)


def hold_for_conversation(context: Context, conversation: str, stats: RequestStats) -> None:
    """The client of a stream has disconnected, and llama-server goes on: its model is held until that is
    over, so that it is not evicted."""
    if stats.instance is not None:
        held = _hold(context, stats.model, stats.instance, conversation)
        context.spawn(held, name=f"{stats.model} goes on without its client")


async def _hold(context: Context, model: ModelName, instance: InstanceId, conversation: str) -> None:
    child = next((one for one in children(context, model) if one.instance == instance), None)
    if child is None:  # it is on its way out, for somebody who has waited long enough
        return
    async with context.pool.lease(model) as lease:
        going_on = [one for one in await _told(child, [conversation]) if not one.is_done]
        if lease.instance == instance and going_on:
            come = f"&from={going_on[0].total_bytes}"
            await read_to_its_end(child, f"/v1/stream?conv_id={quote(conversation, safe='')}{come}")


def _conversation(request: HttpRequest) -> str:
    conversation = request.query.get("conv_id", "")
    if not conversation:
        raise InvalidRequest("name a conversation: ?conv_id=ID")
    return conversation


def _check_from(request: HttpRequest) -> None:
    """llama-server reads the number itself."""
    given = request.query.get("from", "0")
    if not (given.isascii() and given.isdigit() and len(given) <= LONGEST_OFFSET):
        raise InvalidRequest(
            f"from is {given[:40]!r}, which is no number of bytes (1 to {LONGEST_OFFSET} digits)"
        )


def _waiting_for(in_flight: InFlight, conversation: str) -> list[ProxiedRequest]:
    """Requests of this conversation whose model is not there yet."""
    requests = in_flight.requests.values()
    return [one for one in requests if one.stats.instance is None and one.conversation == conversation]


async def _owner(context: Context, conversation: str) -> Child | None:
    """Of several that have it, the one that goes on, or went on last."""
    found = await _found(context, [conversation])
    having = [
        (not one.is_done, one.started_at, child)
        for child, ones in found
        for one in ones
        if one.conversation_id == conversation
    ]
    return max(having, key=lambda one: one[:2])[2] if having else None


async def _found(context: Context, conversations: list[str]) -> list[tuple[Child, list[Found]]]:
    """Each child that has any of these, with what it has."""
    everyone = list(children(context))
    told = await asyncio.gather(*(_told(child, conversations) for child in everyone))
    return [(child, ones) for child, ones in zip(everyone, told, strict=True) if ones]


async def _told(child: Child, conversations: list[str]) -> list[Found]:
    """Nothing also where the child is gone, or says something else."""
    try:
        said = await ask_child(child, "POST", LOOKUP_PATH, msgspec.json.encode(Wanted(conversations)))
        return _founds.decode(said.body) if said.status == 200 else []
    except (UpstreamFailed, msgspec.DecodeError, UnicodeDecodeError):
        return []


_CONVERSATION: Final = Query("conv_id", f"What the request had in its {CONVERSATION} header", required=True)

ROUTES = (
    ProxiedRoute(
        "GET",
        "/v1/stream",
        plan=follow,
        summary="Come back to a stream",
        query=(_CONVERSATION, Query("from", "The first byte wanted; none: from the beginning", int)),
        answer=Any,
        media=("text/event-stream",),
        refusals=(InvalidRequest, StreamNotFound, UpstreamFailed, Unavailable),
    ),
    Route(
        "POST",
        LOOKUP_PATH,
        lookup,
        summary="Which of these conversations there are",
        body=Wanted,
        answer=list[Found],
    ),
    Route(
        "DELETE",
        "/v1/stream",
        stop,
        summary="Stop a stream",
        query=(_CONVERSATION,),
        status=204,
        refusals=(InvalidRequest,),
    ),
)
