"""Decisions are counted as the journal has them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from router.errors import LoadFailed
from router.metrics.decisions import DecisionMetrics
from router.observability.journal import Journal
from router.scheduler.types import Adopted, Cause, Exited, Placement, Ready, Start, Stop, Tick

NOWHERE = Placement("local", {})


class Counted:
    """A journal that is followed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.journal = Journal(size=1)  # nothing is counted from the ring, which forgets
        metrics = DecisionMetrics()
        self.registry.register(metrics)
        self.journal.follow(metrics.heard)

    def record(self, event, *commands):
        self.journal.record(0.0, event, list(commands))

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"llama_router_{name}_total", labels)


def test_who_ended_is_counted_with_the_reason():
    counted = Counted()
    counted.record(Tick(), Start("b#2", "b", NOWHERE, ("a#1",)), Stop("a#1", Cause.EVICTED, "b"))
    counted.record(Tick(), Stop("a#3", Cause.EXPIRED), Stop("a#4", Cause.EXPIRED))
    assert counted.value("unloads", model="a", reason="evicted") == 1
    assert counted.value("unloads", model="a", reason="expired") == 2


def test_a_load_that_fails_is_told_from_a_server_that_dies_in_service():
    counted = Counted()
    counted.record(Exited("a#1", LoadFailed("no")))
    counted.record(Exited("a#2", LoadFailed("no"), out_of_memory=True))
    counted.record(Exited("a#3", LoadFailed("no"), no_room=True))
    counted.record(Ready("a#4"))
    counted.record(Exited("a#4", LoadFailed("dead")))
    counted.record(Adopted("a#5", "a", NOWHERE))
    counted.record(Exited("a#5", LoadFailed("dead")))
    counted.record(Ready("a#6"))
    counted.record(Exited("a#6"))
    failures = {
        r: counted.value("load_failures", model="a", reason=r) for r in ("failed", "out_of_memory", "no_room")
    }
    assert failures == {"failed": 1, "out_of_memory": 1, "no_room": 1}


def test_a_model_may_have_a_name_with_a_number_sign():
    counted = Counted()
    counted.record(Exited("a#b#1", LoadFailed("no")))
    assert counted.value("load_failures", model="a#b", reason="failed") == 1
