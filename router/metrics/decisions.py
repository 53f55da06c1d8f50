"""Why llama-servers ended and loads failed, by reason: what `router.stats` counts without one."""

from __future__ import annotations

from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Counter

from router.core.types import Adopted, Exited, InstanceId, ModelName, Ready, Stop
from router.journal import Entry

_OF_A_MODEL: Final = ("model",)


class DecisionMetrics:
    """Collectors in `registry`; `heard` is told entries of the journal, those HEARD."""

    HEARD: ClassVar = (Ready, Adopted, Exited, Stop)

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_: str, *further: str) -> Counter:
            return Counter(name, help_, (*_OF_A_MODEL, *further), registry=registry)

        self._failures = counter(
            "llama_router_load_failures_total",
            "Loads that did not come to a ready llama-server, by reason: failed, out_of_memory, or no_room "
            "(the host had less than the books said; it is planned anew).",
            "reason",
        )
        self._unloads = counter(
            "llama_router_unloads_total",
            "llama-servers ended by the router, by reason: evicted, expired, unloaded, reloaded, aborted, "
            "yielded.",
            "reason",
        )
        self._ready: set[InstanceId] = set()

    def heard(self, entry: Entry) -> None:
        match entry.event:
            case Ready(instance) | Adopted(instance):
                self._ready.add(instance)
            case Exited(instance, error, no_room, out_of_memory):
                if instance in self._ready:
                    self._ready.discard(instance)
                elif error is not None:
                    reason = "no_room" if no_room else "out_of_memory" if out_of_memory else "failed"
                    self._failures.labels(_model(instance), reason).inc()
        for command in entry.commands:
            if isinstance(command, Stop):
                self._unloads.labels(_model(command.instance), command.cause.value).inc()


def _model(instance: InstanceId) -> ModelName:
    return instance.rpartition("#")[0]
