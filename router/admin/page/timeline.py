"""The decisions that people look for, out of the journal: what was loaded, what left, and for whom, in
words. Grants and releases are left out: there is one of each for every request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Final

import msgspec

from router.observability.journal import Entry
from router.scheduler.types import (
    Adopted,
    Cause,
    Command,
    DeviceId,
    Event,
    Exited,
    HostLost,
    InstanceId,
    ModelName,
    Ready,
    Refuse,
    Reloaded,
    Start,
    Stop,
    Unload,
)

#: What a stop was for, as a sentence goes on after "leaves".
_WHY = {
    Cause.EVICTED: "to make room",
    Cause.EXPIRED: "after its idle time",
    Cause.UNLOADED: "because an operator said so",
    Cause.RELOADED: "because its configuration changed",
    Cause.ABORTED: "before it was ready: nobody waits for it any more",
    Cause.YIELDED: "because another program needs the memory",
    Cause.SHUTDOWN: "because the router shuts down",
}


class Moment(msgspec.Struct, frozen=True):
    """One thing that happened. `id` is that of its journal entry (a decision of two commands makes two with
    one id), `at` Unix time in seconds; `kind` is one of load, ready, leave, gone, failed, refused, adopted,
    unload, reload, lost."""

    id: int
    at: float
    kind: str
    text: str
    model: ModelName | None = None
    instance: InstanceId | None = None


#: A page is not a log: what was longer ago is in the router's.
KEPT: Final = 300


class Timeline:
    """The last moments, and the last one of each model. It keeps its own, as the journal's ring holds an
    entry for every request as well and may be through in seconds."""

    HEARD: ClassVar = (Ready, Exited, Adopted, Unload, Reloaded, HostLost, Start, Stop, Refuse)

    def __init__(self) -> None:
        self._kept: deque[Moment] = deque(maxlen=KEPT)
        self.lasts: dict[ModelName, Moment] = {}

    def note(self, entries: Iterable[Entry], label: Callable[[DeviceId], str]) -> None:
        for moment in moments(entries, label):
            self._kept.append(moment)
            if moment.model is not None and not self._is_end_of_leaving(moment):
                self.lasts[moment.model] = moment

    def _is_end_of_leaving(self, moment: Moment) -> bool:
        """That it is gone says less than why it left."""
        last = self.lasts.get(moment.model or "")
        return moment.kind == "gone" and last is not None and last.kind == "leave"

    def after(self, entry: int) -> list[Moment]:
        return [moment for moment in self._kept if moment.id > entry]


def moments(entries: Iterable[Entry], label: Callable[[DeviceId], str]) -> Iterator[Moment]:
    """In order. `label` tells a device's name for people; it is asked only where something is loaded."""
    for entry in entries:
        for one in (entry.event, *entry.commands):
            if (told := _told(one, label)) is not None:
                yield Moment(entry.id, entry.at, *told)


def _told(
    one: Event | Command, label: Callable[[DeviceId], str]
) -> tuple[str, str, ModelName | None, InstanceId | None] | None:
    """The fields of its moment from `kind` on."""
    match one:
        case Ready(instance):
            model = _model(instance)
            return "ready", f"{model} is ready", model, instance
        case Exited(instance, None):
            model = _model(instance)
            return "gone", f"{model} is gone", model, instance
        case Exited(instance, error) if error is not None:
            model = _model(instance)
            return "failed", f"{model} failed: {error.message}", model, instance
        case Adopted(instance, model):
            return "adopted", f"{model} lives on from an earlier router", model, instance
        case Unload(model, force):
            return "unload", f"an operator unloads {model}" + (", at once" if force else ""), model, None
        case Reloaded(models):
            return "reload", f"the configuration is read: {len(models)} models", None, None
        case HostLost(host):
            return "lost", f"{host} does not answer any more", None, None
        case Start(instance, model, placement, evicted):
            where = " and ".join(
                f"{label(device)} ({size / 2**20:.0f} MiB)" for device, size in placement.footprint.items()
            )
            left = f", after {', '.join(map(_model, evicted))} left" if evicted else ""
            return "load", f"{model} loads on {where}{left}", model, instance
        case Stop(instance, cause, for_model):
            model, whom = _model(instance), f" for {for_model}" if for_model is not None else ""
            return "leave", f"{model} leaves {_WHY[cause]}{whom}", model, instance
        case Refuse(_, error):
            return "refused", f"a request is refused: {error.message}", None, None
        case _:
            return None


def _model(instance: InstanceId) -> ModelName:
    return instance.rpartition("#")[0]
