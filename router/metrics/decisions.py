"""Count by reason why llama-servers exited and loads failed (`router.observability.stats` counts
them without reasons)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from router.ids import model_of
from router.observability.journal import Entry
from router.scheduler.types import Adopted, Exited, InstanceId, ModelName, Ready, Stop

if TYPE_CHECKING:
    from prometheus_client import Metric

#: Names and what they tell.
_FAILURES: Final = (
    "llama_router_load_failures_total",
    (
        "Loads that did not come to a ready llama-server, by reason: failed, out_of_memory, or no_room "
        "(the host had less than the books said; it is planned anew)."
    ),
)
_UNLOADS: Final = (
    "llama_router_unloads_total",
    "llama-servers ended by the router, by reason: evicted, expired, unloaded, reloaded, aborted, yielded.",
)


class DecisionMetrics:
    """`heard` is told entries of the journal, those HEARD."""

    HEARD: ClassVar = (Ready, Adopted, Exited, Stop)

    def __init__(self) -> None:
        self._failures, self._unloads = Counter[tuple[ModelName, str]](), Counter[tuple[ModelName, str]]()
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
                    self._failures[model_of(instance), reason] += 1
        for command in entry.commands:
            if isinstance(command, Stop):
                self._unloads[model_of(command.instance), command.cause.value] += 1

    def collect(self) -> Iterator[Metric]:
        """From any thread."""
        from prometheus_client.core import CounterMetricFamily

        for name, help_, counted in ((*_FAILURES, self._failures), (*_UNLOADS, self._unloads)):
            family = CounterMetricFamily(name, help_, labels=("model", "reason"))
            for labels, count in counted.copy().items():
                family.add_metric(labels, count)
            yield family
