"""The models: listed with llama.cpp's fields and answered from memory, loaded, unloaded and pinned by an
operator's word."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from router.admin.answer import is_set, json_response, read_json
from router.admin.context import CONTEXT, NAME_REFUSALS, Context
from router.admin.head import LONGEST_SECONDS
from router.admin.keys import require_admin
from router.admin.listing import Listed, Listing, Row, download_row, visible
from router.admin.route import Access, Query, Routes
from router.config import Context as ContextSize
from router.config import Layers
from router.errors import (
    Forbidden,
    LoadFailed,
    ModelNotLoaded,
    ModelTooLarge,
    ModelUnusable,
    NoRoom,
    QueueFull,
    RouterError,
    SettingsConflict,
    Unloaded,
    WaitTimeout,
)
from router.presets import Overrides
from router.presets.overrides import Words, check_args
from router.presets.preset import CacheType
from router.scheduler.types import Model, ModelName

#: A load that is refused is refused within a moment; what takes longer is loading.
REFUSAL_SECONDS = 0.25

ROUTES: Final = Routes()
_LOAD_REFUSALS: Final = (
    *NAME_REFUSALS,
    ModelUnusable,
    ModelTooLarge,
    SettingsConflict,
    QueueFull,
    NoRoom,
    WaitTimeout,
    LoadFailed,
    Unloaded,
)


# --- shapes ---


class LoadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is said beside the name holds for this load alone, instead of what the preset says: the next one,
    after an unload or an eviction, is the preset's again. `ttl_seconds`: leave after so long an idle time, 0
    as soon as idle, negative never. `args`: options of llama-server, of those in `server.load_args`."""

    model: str
    ctx_size: ContextSize | None = None
    n_gpu_layers: Layers | None = None
    devices: Words | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    ttl_seconds: Annotated[float, Meta(ge=-LONGEST_SECONDS, le=LONGEST_SECONDS)] | None = None
    args: Words = ()

    @property
    def overrides(self) -> Overrides:
        return Overrides(**{name: getattr(self, name) for name in Overrides.__struct_fields__})


class UnloadAllRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`force` ends requests in flight; else they are waited for, at most `deadline` seconds."""

    force: bool = False
    deadline: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)] | None = None


class UnloadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`force` ends requests in flight; else they are waited for, at most `deadline` seconds."""

    model: str
    force: bool = False
    deadline: Annotated[float, Meta(ge=0, le=LONGEST_SECONDS)] | None = None


class PinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`pinned` null: as the preset says."""

    model: str
    pinned: bool | None = True


class UnpinRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str


class Done(Row, frozen=True, kw_only=True):
    """How the model stands now."""

    success: bool = True


class UnloadedAll(msgspec.Struct, frozen=True):
    """What was loaded, or about to be, and is gone now."""

    unloaded: list[ModelName]
    success: bool = True


# --- listed ---


@ROUTES.add(
    "GET",
    "/models",
    "/v1/models",
    summary="Every model with its state, from memory",
    query=(
        Query("reload", "Look for models anew first (needs an admin key)", bool),
        Query("all", "Also files that are no models, each with the reason", bool),
    ),
    answer=Listed,
    refusals=(Forbidden,),
)
async def list_models(request: web.Request) -> web.Response:
    """`?reload=1` looks for models anew first; it is for admins, as it may stop what has changed. `?all=1`
    lists also the files that are found and are no models, each with the reason.
    """
    context = request.app[CONTEXT]
    if is_set(request, "reload"):
        require_admin(request)
        await context.reload()
    names = visible(context.known.definitions, with_others=is_set(request, "all"))
    return json_response(_listing(context).rows(names, context.downloads.active()))


@ROUTES.add("GET", "/models/loaded", summary="The models that are loaded, or about to be", answer=Listed)
async def list_loaded(request: web.Request) -> web.Response:
    """Those that are loaded, or about to be, hidden ones too."""
    context = request.app[CONTEXT]
    listing, known = _listing(context), context.known.cards.by_name
    return json_response(listing.rows(name for name in listing.running if name in known))


@ROUTES.add(
    "GET",
    "/v1/models/{model:.+}",
    summary="One model, by its name or alias",
    answer=Row,
    refusals=NAME_REFUSALS,
)
async def show_model(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    return json_response(_listing(context).row(context.name_of(request.match_info["model"])))


# --- changed ---


@ROUTES.add(
    "POST",
    "/models/load",
    access=Access.ADMIN,
    summary="Load a model",
    query=(Query("wait", "Answer when it is ready", bool),),
    body=LoadRequest,
    answer=Done,
    refusals=_LOAD_REFUSALS,
)
async def load_model(request: web.Request) -> web.Response:
    """Answers when the load has begun, with `?wait=1` when the model is ready. What is loaded already is
    no error, unless other settings are asked for than it has: then it must be unloaded first."""
    context = request.app[CONTEXT]
    wanted = await read_json(request, LoadRequest)
    model = context.name_of(wanted.model)
    check_args(wanted.args, context.config.server.load_args, context.known.definitions.options)
    overrides: Model | None = None
    if wanted.overrides != Overrides():
        overrides = await context.vary(context.known, model, wanted.overrides)
    if is_set(request, "wait"):
        await context.pool.load(model, overrides=overrides, keep_alive=wanted.ttl_seconds)
    else:
        await _begin_load(context, model, overrides, wanted.ttl_seconds)
    return _done(context, model)


@ROUTES.add(
    "POST",
    "/models/unload",
    access=Access.ADMIN,
    summary="Unload a model",
    body=UnloadRequest,
    answer=Done,
    refusals=(*NAME_REFUSALS, ModelNotLoaded),
)
async def unload_model(request: web.Request) -> web.Response:
    """Answers when the model is gone. Of one that is being downloaded the download ends."""
    context = request.app[CONTEXT]
    wanted = await read_json(request, UnloadRequest)
    job = context.downloads.active().get(wanted.model)
    if job is not None and context.known.catalog.literal(wanted.model) is None:
        await context.downloads.cancel(job.id)
        return _answer_done(download_row(wanted.model, job, "unloaded"))
    model = context.name_of(wanted.model)
    if not await context.pool.unload(model, force=wanted.force, deadline=wanted.deadline):
        raise ModelNotLoaded(f"{model} is not loaded")
    return _done(context, model)


@ROUTES.add(
    "POST",
    "/models/unload-all",
    access=Access.ADMIN,
    summary="Unload every model",
    body=UnloadAllRequest,
    answer=UnloadedAll,
)
async def unload_all(request: web.Request) -> web.Response:
    """Answers when all are gone, pinned ones too. A body is not needed."""
    context = request.app[CONTEXT]
    wanted = await read_json(request, UnloadAllRequest, if_none=UnloadAllRequest())
    names = list(dict.fromkeys(one.model for one in context.pool.snapshot().instances))
    unloads = (context.pool.unload(one, force=wanted.force, deadline=wanted.deadline) for one in names)
    gone = await asyncio.gather(*unloads)
    return json_response(
        UnloadedAll([name for name, was_there in zip(names, gone, strict=True) if was_there])
    )


@ROUTES.add(
    "POST",
    "/models/pin",
    access=Access.ADMIN,
    summary="Keep a model loaded",
    body=PinRequest,
    answer=Done,
    refusals=NAME_REFUSALS,
)
async def pin_model(request: web.Request) -> web.Response:
    """From now on, loaded or not, it is neither evicted nor does it leave by itself: until it is unpinned,
    also over restarts of the router."""
    wanted = await read_json(request, PinRequest)
    return _pin(request.app[CONTEXT], wanted.model, wanted.pinned)


@ROUTES.add(
    "POST",
    "/models/unpin",
    access=Access.ADMIN,
    summary="Let a model leave again",
    body=UnpinRequest,
    answer=Done,
    refusals=NAME_REFUSALS,
)
async def unpin_model(request: web.Request) -> web.Response:
    """Also one that its preset pins."""
    return _pin(request.app[CONTEXT], (await read_json(request, UnpinRequest)).model, False)


def _pin(context: Context, name: str, pinned: bool | None) -> web.Response:
    model = context.name_of(name)
    context.pool.pin(model, pinned)
    return _done(context, model)


async def _begin_load(
    context: Context, model: ModelName, overrides: Model | None, keep_alive: float | None
) -> None:
    """Raises what refuses the load at once; what goes wrong later is found in the model's status."""
    refused: asyncio.Future[RouterError] = asyncio.get_running_loop().create_future()

    async def load() -> None:
        try:
            await context.pool.load(model, overrides=overrides, keep_alive=keep_alive)
        except RouterError as error:
            if not refused.done():
                refused.set_result(error)

    task = context.spawn(load(), name=f"load {model}")
    await asyncio.wait({task}, timeout=REFUSAL_SECONDS)
    if refused.done():
        raise refused.result()


def _listing(context: Context) -> Listing:
    return Listing(context.known.cards, context.pool.snapshot())


def _done(context: Context, model: ModelName) -> web.Response:
    """Raises ModelNotFound: a reload may have come between."""
    return _answer_done(_listing(context).row(context.name_of(model)))


def _answer_done(row: Row) -> web.Response:
    return json_response(Done(**msgspec.structs.asdict(row)))
