"""What a loaded llama-server tells of itself, and what of it can be changed while it runs: paths whose model
stands in the query (`?model=`).

Looking loads nothing, keeps nothing loaded and waits for nobody, unless `?autoload=1` asks for it. What is
changed is changed for every client of the model, and is for admins."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Final

from aiohttp import web

from router import __version__
from router.admin.answer import is_set, json_response
from router.admin.autoload import AUTOLOAD, is_coming_or_there, require_loadable
from router.admin.child import ask, children
from router.admin.context import CONTEXT, Context
from router.admin.head import read_head
from router.admin.keys import KEYS, require_key_or_local
from router.admin.openai import REFUSALS
from router.admin.route import Access, Pending, Query, Routes
from router.errors import InvalidRequest, ModelNotLoaded, Unavailable
from router.proxy import RequestInfo, RequestStats
from router.scheduler.types import ModelName

ROUTES: Final = Routes()
#: What each slot does, with what its client has said in it.
SLOTS: Final = "/slots"
#: llama-server's paths that are read with GET. (`/metrics` is a family of its own, as the router has some.)
LOOKS: Final = {
    SLOTS: "The slots of a loaded model",
    "/lora-adapters": "The LoRA adapters of a loaded model",
}
#: And those that are written with POST.
CHANGES: Final = {
    "/props": "Change the properties of a model, where it was started with --props",
    "/lora-adapters": "Set the scales of a model's LoRA adapters",
    "/slots/{id_slot:[^/]+}": "Save, restore or erase a slot of a model (?action=)",
}
#: llama-server reads an integer of 32 bits.
SLOT_DIGITS: Final = 9
_MODEL: Final = Query("model", "The model's name or alias; none: the default one")
_LOADING_SECONDS: Final = 1.0


@ROUTES.add(
    "GET",
    "/props",
    summary="The properties of a loaded model, or of this router",
    query=(Query("model", "The model's name or alias; none: this router"), AUTOLOAD),
    answer=dict[str, Any],
    refusals=(InvalidRequest, *REFUSALS),
)
async def props(request: web.Request) -> web.StreamResponse:
    """Without a model: what llama.cpp's router says there, so that its clients know that they talk to one."""
    if request.query.get("model"):
        return await look(request)
    context = request.app[CONTEXT]
    scheduler = context.config.scheduler
    # Clients read the build of llama.cpp off its beginning.
    build = await context.build_info.of(context.known.definitions.binary)
    own = f"llama-router {__version__}"
    return json_response(
        {
            "role": "router",
            "max_instances": scheduler.models_max,
            "models_autoload": scheduler.autoload,
            "model_alias": "llama-server",
            "model_path": "none",
            "default_generation_settings": {"params": None, "n_ctx": 0},
            "ui_settings": {},
            "build_info": own if build is None else f"{build} ({own})",
            "cors_proxy_enabled": False,
        }
    )


async def look(request: web.Request) -> web.StreamResponse:
    """As llama-server answers it, from a model that is loaded."""
    context = request.app[CONTEXT]
    model = context.name_or_default(request.query.get("model"))
    if request.path == SLOTS:
        require_key_or_local(request.app[KEYS], request)
    async with AsyncExitStack() as held:
        headers: dict[str, str] = {}
        if is_set(request, "autoload"):
            lease = await held.enter_async_context(context.pool.lease(model))
            headers = RequestStats(model, lease.action, lease.queue_seconds, lease.load_seconds).headers()
        child = next(children(context, model), None)
        if child is None:
            raise _not_there(context, model)
        # Also for HEAD, from whose answer aiohttp cuts the body.
        said = await ask(child, "GET", request.rel_url.raw_path_qs)
    if said.content_type:
        headers["Content-Type"] = said.content_type
    return web.Response(status=said.status, body=said.body, headers=headers)


def change(request: Pending) -> RequestInfo:
    """As llama-server takes it. The model is named in the query, or in the body where that is an object; else
    it is the default one."""
    context = request.context
    _check_slot(request.path)
    head = read_head(request, request.body.joined(), is_object=False)
    model = context.name_or_default(head.model)
    require_loadable(request, context, model)
    return RequestInfo(model, head.priority, head.keep_alive)


def _check_slot(path: str) -> None:
    """Raises InvalidRequest before a model is loaded for it."""
    slot = path.removeprefix(f"{SLOTS}/") if path.startswith(f"{SLOTS}/") else "0"
    if not (slot.isascii() and slot.isdigit() and len(slot) <= SLOT_DIGITS):
        raise InvalidRequest(f"{slot[:40]!r} is no number of a slot (1 to {SLOT_DIGITS} digits)")


def _not_there(context: Context, model: ModelName) -> ModelNotLoaded | Unavailable:
    if is_coming_or_there(context, model):
        return Unavailable(f"{model} is loading", retry_after_seconds=_LOADING_SECONDS)
    return ModelNotLoaded(f"{model} is not loaded; ?autoload=1 loads it for this")


for _path, _summary in LOOKS.items():
    ROUTES.add(
        "GET",
        _path,
        access=Access.ADMIN if _path == SLOTS else Access.INFERENCE,
        summary=_summary,
        query=(_MODEL, AUTOLOAD),
        answer=Any,
        refusals=(InvalidRequest, *REFUSALS),
    )(look)
for _path, _summary in CHANGES.items():
    ROUTES.proxy(
        "POST",
        _path,
        access=Access.ADMIN,
        summary=_summary,
        query=(_MODEL, AUTOLOAD),
        body=Any,
        answer=Any,
        refusals=REFUSALS,
    )(change)
