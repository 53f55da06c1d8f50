"""Whether a request may load its model: as configured, unless it says itself (`?autoload=`)."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from router.admin.answer import is_set
from router.admin.context import Context
from router.admin.route import Query
from router.errors import ModelNotLoaded
from router.scheduler.types import ModelName, State

AUTOLOAD: Final = Query("autoload", "Whether this request may load its model", bool)

_COMING_OR_THERE: Final = frozenset({State.PLANNED, State.STARTING, State.READY})


def require_loadable(request: web.Request, context: Context, model: ModelName) -> None:
    """Raises ModelNotLoaded where the request may not load a model that is neither there nor coming."""
    if not _may_load(request, context) and not is_coming_or_there(context, model):
        raise ModelNotLoaded(
            f"{model} is not loaded, and requests do not load models here (scheduler.autoload): "
            f'POST /models/load {{"model": "{model}"}} first, or ask with ?autoload=1'
        )


def is_coming_or_there(context: Context, model: ModelName) -> bool:
    return any(one.state in _COMING_OR_THERE for one in context.pool.snapshot().of_model(model))


def _may_load(request: web.Request, context: Context) -> bool:
    if "autoload" in request.query:
        return is_set(request, "autoload")
    return context.config.scheduler.autoload
