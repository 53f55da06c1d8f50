"""An entry of the journal as events: in llama.cpp's names and shapes where it has them, and more beside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from router.observability.journal import Entry
from router.scheduler.types import (
    Adopted,
    Cause,
    Exited,
    InstanceId,
    ModelName,
    Pinned,
    Ready,
    Reloaded,
    Start,
    Stop,
)

#: A model that these take away would have stayed.
_EVICTIONS: Final = frozenset({Cause.EVICTED, Cause.YIELDED, Cause.ABORTED})
#: All that anything is told of: most entries are requests that come and go.
WORTH_TELLING: Final = (Ready, Exited, Adopted, Reloaded, Pinned, Start, Stop)
#: Stands for all models.
ALL: Final = "*"


class ModelEvent(msgspec.Struct, frozen=True):
    """llama.cpp's frame. `event` is one of its own: model_status, status_change, download_progress,
    download_finished, download_failed, model_remove, models_reload; or one of ours: plan, drain, evict, stop,
    pin, queue, activity, memory, snapshot, reset, shutdown."""

    model: ModelName
    event: str
    data: Mapping[str, Any]


def told(
    entry: Entry,
    info: Callable[[ModelName], Mapping[str, Any] | None],
    status_now: Callable[[ModelName], str],
    load_seconds: Callable[[InstanceId], float | None],
) -> Iterator[ModelEvent]:
    """In order. `info` is what a list tells of a model, `status_now` what it is after the entry: of several
    instances one may be gone."""
    match entry.event:
        case Ready(instance):
            model = model_of(instance)
            data: dict[str, Any] = {"status": "loaded", "instance": instance, "info": info(model)}
            yield ModelEvent(model, "status_change", {**data, "load_seconds": load_seconds(instance)})
        case Adopted(instance, model):
            data = {"status": "loaded", "instance": instance, "adopted": True, "info": info(model)}
            yield ModelEvent(model, "status_change", data)
        case Exited(instance, error):
            model = model_of(instance)
            code = error.details.get("returncode") if error is not None else 0
            gone = {"status": status_now(model), "instance": instance, "exit_code": code}
            if error is not None:
                gone["error"] = error.message
            yield ModelEvent(model, "status_change", gone)
        case Reloaded(models):
            yield ModelEvent(ALL, "models_reload", {"models": len(models)})
        case Pinned(model, pinned):
            yield ModelEvent(model, "pin", {"pinned": pinned})
    for command in entry.commands:
        match command:
            case Stop(instance, cause, for_model):
                name = "evict" if cause in _EVICTIONS else "stop"
                why = {"instance": instance, "cause": cause.value, "for": for_model}
                yield ModelEvent(model_of(instance), name, why)
            case Start(instance, model, placement, evicted, definition):
                begun: dict[str, Any] = {
                    "status": "loading",
                    "instance": instance,
                    "devices": dict(placement.footprint),
                    "evicted": evicted,
                }
                if definition.overrides:
                    begun["settings"] = msgspec.json.decode(definition.overrides)
                yield ModelEvent(model, "model_status", begun)
            case _:
                pass


def model_of(instance: InstanceId) -> ModelName:
    return instance.rpartition("#")[0]
