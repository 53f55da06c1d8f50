"""Count by reason why llama-servers exited and loads failed (`router.observability.stats` counts them without
reasons)."""

from __future__ import annotations

from typing import ClassVar

from prometheus_client import CollectorRegistry, Counter

from router.observability.journal import Entry, model_of
from router.scheduler.types import Adopted, Exited, InstanceId, Ready, Stop


class DecisionMetrics:
    """`heard` is told entries of the journal, those HEARD."""

    HEARD: ClassVar = (Ready, Adopted, Exited, Stop)

    def __init__(self, registry: CollectorRegistry) -> None:
        self._failures = Counter(
            "llama_router_load_failures",
            "Loads that did not come to a ready llama-server, by reason: failed, out_of_memory, or no_room "
            "(the host had less than the books said; it is planned anew).",
            ("model", "reason"),
            registry=registry,
        )
        self._unloads = Counter(
            "llama_router_unloads",
            "llama-servers ended by the router, by reason: evicted, expired, unloaded, reloaded, aborted, "
            "yielded.",
            ("model", "reason"),
            registry=registry,
        )
        self._ready: set[InstanceId] = set()

    def heard(self, entry: Entry) -> None:
        match entry.event:
            case Ready(instance) | Adopted(instance):
                self._ready.add(instance)
            case Exited(instance) if instance in self._ready:
                self._ready.discard(instance)
            case Exited(instance, error, no_room, out_of_memory) if error is not None:
                reason = "no_room" if no_room else "out_of_memory" if out_of_memory else "failed"
                self._failures.labels(model_of(instance), reason).inc()
        for command in entry.commands:
            if isinstance(command, Stop):
                self._unloads.labels(model_of(command.instance), command.cause.value).inc()
