"""What the status page shows of the last minutes: the decisions that people look for, out of the journal and
in words (what was loaded, what left, and for whom), and the memory of every device. Grants and releases are
left out: there is one of each for every request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, Final, NamedTuple

import msgspec

from router.ids import model_of
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
from router.scheduler.views import Snapshot

#: Of every device's memory a line of the last minutes is kept, in seconds, with a point this often.
KEPT_SECONDS: Final = 600.0
EVERY_SECONDS: Final = 2.0
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
            model = model_of(instance)
            return "ready", f"{model} is ready", model, instance
        case Exited(instance, None):
            model = model_of(instance)
            return "gone", f"{model} is gone", model, instance
        case Exited(instance, error) if error is not None:
            model = model_of(instance)
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
            left = f", after {', '.join(map(model_of, evicted))} left" if evicted else ""
            return "load", f"{model} loads on {where}{left}", model, instance
        case Stop(instance, cause, for_model):
            model, whom = model_of(instance), f" for {for_model}" if for_model is not None else ""
            return "leave", f"{model} leaves {_WHY[cause]}{whom}", model, instance
        case Refuse(_, error):
            return "refused", f"a request is refused: {error.message}", None, None
        case _:
            return None


class Point(NamedTuple):
    """Bytes at a Unix time in whole seconds; `free` is None while the device could not be measured."""

    at: int
    ours: int
    free: int | None


class History:
    """A bounded line for each device. It notes what was measured anyway and measures nothing itself, so that
    a sleeping GPU is left asleep."""

    def __init__(self) -> None:
        self._lines: dict[DeviceId, deque[Point]] = {}

    def note(self, snapshot: Snapshot, at: float) -> None:
        for device in snapshot.devices:
            line = self._lines.setdefault(device.id, deque(maxlen=int(KEPT_SECONDS / EVERY_SECONDS)))
            line.append(Point(int(at), device.used, device.free))
        for gone in self._lines.keys() - {device.id for device in snapshot.devices}:
            del self._lines[gone]

    def lines(self) -> Mapping[DeviceId, tuple[Point, ...]]:
        return {device: tuple(line) for device, line in self._lines.items()}
