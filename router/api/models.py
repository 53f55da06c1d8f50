"""The models: listed with llama.cpp's fields and answered from memory, loaded and unloaded by an
operator's word."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from router.api.answer import is_set, json_response, read_json
from router.api.context import CONTEXT, Context
from router.api.keys import require_admin
from router.api.listing import Card, listed, listed_one
from router.api.route import Access, Route
from router.core.types import ModelName
from router.errors import ModelNotLoaded, RouterError

#: A load that is refused is refused within a moment; what takes longer is loading.
REFUSAL_SECONDS = 0.25


class LoadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str


class UnloadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`force` ends requests in flight; else they are waited for, at most `deadline` seconds."""

    model: str
    force: bool = False
    deadline: float | None = None


async def list_models(request: web.Request) -> web.Response:
    """`?reload=1` looks for models anew first; it is for admins, as it may stop what has changed."""
    context = request.app[CONTEXT]
    if is_set(request, "reload"):
        require_admin(request)
        await context.reload()
    known = context.known
    data = listed(known.cards, known.definitions, context.pool.snapshot())
    return json_response({"object": "list", "data": data})


async def show_model(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    return json_response(_standing(context, request.match_info["model"]))


async def load_model(request: web.Request) -> web.Response:
    """Answers when the load has begun, with `?wait=1` when the model is ready. What is loaded already is
    no error."""
    context = request.app[CONTEXT]
    model = context.name_of((await read_json(request, LoadRequest)).model)
    if is_set(request, "wait"):
        await context.pool.load(model)
    else:
        await _begin_load(context, model)
    return json_response({"success": True, **_standing(context, model)})


async def unload_model(request: web.Request) -> web.Response:
    """Answers when the model is gone."""
    context = request.app[CONTEXT]
    wanted = await read_json(request, UnloadRequest)
    model = context.name_of(wanted.model)
    if not await context.pool.unload(model, force=wanted.force, deadline=wanted.deadline):
        raise ModelNotLoaded(f"{model} is not loaded")
    return json_response({"success": True, **_standing(context, model)})


async def _begin_load(context: Context, model: ModelName) -> None:
    """Raises what refuses the load at once; what goes wrong later is found in the model's status."""
    refused: asyncio.Future[RouterError] = asyncio.get_running_loop().create_future()

    async def load() -> None:
        try:
            await context.pool.load(model)
        except RouterError as error:
            if not refused.done():
                refused.set_result(error)

    task = context.spawn(load(), name=f"load {model}")
    await asyncio.wait({task}, timeout=REFUSAL_SECONDS)
    if refused.done():
        raise refused.result()


def _standing(context: Context, model: ModelName) -> Card:
    """Raises ModelNotFound: a reload may have come between."""
    known = context.known
    return listed_one(context.name_of(model), known.cards, known.definitions, context.pool.snapshot())


ROUTES = (
    Route("GET", "/models", list_models),
    Route("GET", "/v1/models", list_models),
    Route("GET", "/v1/models/{model:.+}", show_model),
    Route("POST", "/models/load", load_model, Access.ADMIN),
    Route("POST", "/models/unload", unload_model, Access.ADMIN),
)
