"""What each model was asked for and what that cost, counted since the start as a reader of the journal."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from router.ids import model_of
from router.observability.journal import Entry
from router.scheduler.types import (
    Acquire,
    Adopted,
    Cause,
    Exited,
    Grant,
    InstanceId,
    ModelName,
    Ready,
    Start,
    Stop,
)


class LoadSeconds(msgspec.Struct, frozen=True):
    """Of the loads that came to a ready llama-server; None before the first."""

    last: float | None
    mean: float | None
    max: float | None


class Counted(msgspec.Struct, frozen=True):
    """`hits` are requests that found the model ready, `misses` all others, also those that were refused;
    `swaps` loads for which another model left; `failures` loads that did not come to a ready llama-server,
    `crashes` ready ones that ended by themselves."""

    requests: int
    hits: int
    misses: int
    hit_rate: float | None
    loads: int
    swaps: int
    evictions: int
    failures: int
    crashes: int
    load_seconds: LoadSeconds


class Statistics(msgspec.Struct, frozen=True):
    """`since` is Unix time: when the router started. A model that nobody asked for is not there."""

    since: float
    total: Counted
    models: dict[ModelName, Counted]


@dataclass(slots=True)
class _Tally:
    """What is counted of one model."""

    #: By the name of a field of `Counted`.
    counts: Counter[str] = field(default_factory=Counter)
    #: Of the newest load, of the longest, and of all loads together, in seconds.
    last: float = 0.0
    longest: float = 0.0
    seconds: float = 0.0

    def counted(self, more_hits: int = 0) -> Counted:
        counts = self.counts + Counter(requests=more_hits, hits=more_hits)
        requests, hits, loads = counts["requests"], counts["hits"], counts["loads"]
        return Counted(
            requests=requests,
            hits=hits,
            misses=requests - hits,
            hit_rate=round(hits / requests, 4) if requests else None,
            loads=loads,
            swaps=counts["swaps"],
            evictions=counts["evictions"],
            failures=counts["failures"],
            crashes=counts["crashes"],
            load_seconds=LoadSeconds(
                round(self.last, 3) if self.last else None,
                round(self.seconds / loads, 3) if loads else None,
                round(self.longest, 3) if loads else None,
            ),
        )


class Stats:
    """`heard` follows a journal; `taken` are the requests that it counts itself, all of them hits. Bounded by
    the models there are: a name that is none never gets so far.
    """

    #: Grants that come with another event are to those who waited: no hits.
    HEARD: ClassVar = (Acquire, Ready, Adopted, Exited, Start, Stop)

    def __init__(self, taken: Mapping[ModelName, int], clock: Callable[[], float] = time.time) -> None:
        self._since = clock()
        self._taken = taken
        self._tallies = defaultdict[ModelName, _Tally](_Tally)
        self._loading: dict[InstanceId, float] = {}
        self._ready: set[InstanceId] = set()

    def heard(self, entry: Entry) -> None:
        """An entry of the journal."""
        match entry.event:
            case Acquire(_, model):
                self._count(model, "requests")
            case Ready(instance):
                self._ready.add(instance)
                if instance in self._loading:
                    self._loaded(model_of(instance), entry.now - self._loading.pop(instance))
            case Adopted(instance):
                self._ready.add(instance)
            case Exited(instance, error, no_room):
                was_loading = self._loading.pop(instance, None) is not None
                name = "crashes" if instance in self._ready else "failures" if was_loading else None
                self._ready.discard(instance)
                if name is not None and error is not None and not no_room:
                    self._count(model_of(instance), name)
        for command in entry.commands:
            match command:
                case Grant(_, instance, "already_loaded"):
                    self._count(model_of(instance), "hits")
                case Start(instance, model, _, evicted):
                    self._loading[instance] = entry.now
                    self._tallies[model].counts["swaps"] += bool(evicted)
                case Stop(instance, cause):
                    self._tallies[model_of(instance)].counts["evictions"] += cause is Cause.EVICTED

    def told(self) -> Statistics:
        total = _Tally()
        for tally in self._tallies.values():
            total.counts += tally.counts
            total.seconds += tally.seconds
            total.longest = max(total.longest, tally.longest)
        models = {
            name: self._tallies.get(name, _Tally()).counted(self._taken.get(name, 0))
            for name in sorted(self._tallies.keys() | self._taken.keys())
        }
        return Statistics(round(self._since, 3), total.counted(sum(self._taken.values())), models)

    def _count(self, model: ModelName, name: str) -> None:
        self._tallies[model].counts[name] += 1

    def _loaded(self, model: ModelName, seconds: float) -> None:
        tally = self._tallies[model]
        tally.counts["loads"] += 1
        tally.last = seconds
        tally.seconds += seconds
        tally.longest = max(tally.longest, seconds)
