"""Whatever else a llama-server answers, by the name of its model: `/upstream/{model}/{path}`, any method.

It is administration: behind it stand, whatever a llama-server of today or tomorrow was started with, its
properties, its slots with what others have said in them, and tools that run commands."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from router.admin.autoload import AUTOLOAD, is_coming_or_there, require_loadable
from router.admin.context import Context
from router.admin.dialect import dialect_of
from router.admin.keys import require_key_or_local
from router.admin.openai import REFUSALS
from router.admin.route import Access, Pending, Routes
from router.errors import ModelNotLoaded, NotSupported
from router.proxy import RequestInfo
from router.scheduler.types import ModelName

PREFIX: Final = "/upstream/"
ROUTES: Final = Routes()
_LOOKING: Final = ("GET", "HEAD")


def upstream(request: Pending) -> RequestInfo:
    """The path behind the model's name passes as it is, encoded, with its query. A name with slashes may be
    written with them or with %2F; the longest name that there is counts. GET loads nothing, unless
    `?autoload=1` asks for it.
    """
    if request.headers.get("Upgrade", "").lower() == "websocket":
        raise NotSupported("llama-server speaks no WebSocket: stream with server-sent events")
    context = request.context
    raw_path, mark, query = request.raw_path.partition("?")
    model, path = _split(context, raw_path[raw_path.index(PREFIX) + len(PREFIX) :])
    if "slots" in unquote(path).split("/"):
        require_key_or_local(request.keys, request)
    if request.method not in _LOOKING or "autoload" in request.query:
        require_loadable(request, context, model)
    elif not is_coming_or_there(context, model):
        raise ModelNotLoaded(f"{model} is not loaded; ?autoload=1 loads it for this")
    return RequestInfo(model, dialect=dialect_of(request.path), target=f"{path}{mark}{query}")


def _split(context: Context, rest: str) -> tuple[ModelName, str]:
    """The model and the path that follows it. Raises ModelNotFound, AmbiguousModel."""
    catalog = context.known.catalog
    parts = rest.split("/")
    longest = 1 + max((name.count("/") for name in catalog.names()), default=0)
    for find in (catalog.literal, catalog.find):  # a whole name before any that is shortened
        for count in range(min(longest, len(parts)), 0, -1):
            entry = find(unquote("/".join(parts[:count])))
            if entry is not None:
                return entry.id, "/" + "/".join(parts[count:])
    return context.name_of(unquote(parts[0])), "/"


for _path, _summary in (
    (PREFIX + "{model}/{path:.*}", "Any other path of a model's llama-server"),
    (PREFIX + "{model}", "The page that a model's llama-server has at its root"),
):
    ROUTES.proxy(
        "*",
        _path,
        access=Access.ADMIN,
        summary=_summary,
        query=(AUTOLOAD,),
        body=Any,
        answer=Any,
        media=("*/*",),
        refusals=(*REFUSALS, NotSupported),
    )(upstream)
