"""Whether a request may load its model: as configured, unless it says itself (`?autoload=`)."""

from __future__ import annotations

from typing import Final

from router.admin.answer import is_set
from router.admin.context import Context
from router.admin.route import HttpRequest, Query
from router.errors import ModelNotLoaded
from router.scheduler.types import ModelName, State

AUTOLOAD: Final = Query("autoload", "Whether this request may load its model", bool)

_COMING_OR_THERE: Final = frozenset({State.PLANNED, State.STARTING, State.READY})


def require_loadable(request: HttpRequest, context: Context, model: ModelName) -> None:
    """Raises ModelNotLoaded where the request may not load a model that is neither there nor coming."""
    may_load = context.config.scheduler.autoload
    if "autoload" in request.query:
        may_load = is_set(request, "autoload")
    if not may_load and not is_coming_or_there(context, model):
        raise ModelNotLoaded(
            f"{model} is not loaded, and requests do not load models here (scheduler.autoload): "
            f'POST /models/load {{"model": "{model}"}} first, or ask with ?autoload=1'
        )


def is_coming_or_there(context: Context, model: ModelName) -> bool:
    return any(one.state in _COMING_OR_THERE for one in context.pool.snapshot().of_model(model))
