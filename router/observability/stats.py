"""What each model was asked for and what that cost, counted since the start as a reader of the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import ClassVar

import msgspec

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


class Stats:
    """`heard` follows a journal; `taken` are the requests that it counts itself, all of them hits. Bounded by
    the models there are: a name that is none never gets so far.
    """

    #: Grants that come with another event are to those who waited: no hits.
    HEARD: ClassVar = (Acquire, Ready, Adopted, Exited, Start, Stop)

    def __init__(self, taken: Mapping[ModelName, int], clock: Callable[[], float] = time.time) -> None:
        self._since = clock()
        self._taken = taken
        self._tallies: dict[ModelName, _Tally] = {}
        self._loading: dict[InstanceId, float] = {}
        self._ready: set[InstanceId] = set()

    def heard(self, entry: Entry) -> None:
        """An entry of the journal."""
        event, commands = entry.event, entry.commands
        match event:
            case Acquire():
                self._of(event.model).requests += 1
            case Ready(instance):
                self._became_ready(instance, entry.now)
            case Adopted(instance):
                self._ready.add(instance)
            case Exited(instance, error, no_room):
                self._gone(instance, is_failure=error is not None and not no_room)
        for command in commands:
            match command:
                case Grant(_, instance, action):
                    if action == "already_loaded":
                        self._of(_model(instance)).hits += 1
                case Start(instance, model, _, evicted):
                    self._loading[instance] = entry.now
                    self._of(model).swaps += bool(evicted)
                case Stop(instance, cause):
                    self._of(_model(instance)).evictions += cause is Cause.EVICTED
                case _:
                    pass

    def told(self) -> Statistics:
        for model in self._taken:
            self._of(model)
        total, models = _Tally(), dict[ModelName, Counted]()
        for name, tally in sorted(self._tallies.items()):
            whole = tally.with_hits(self._taken.get(name, 0))
            total.add(whole)
            models[name] = whole.counted()
        return Statistics(round(self._since, 3), total.counted(), models)

    # --- steps of the above ---

    def _became_ready(self, instance: InstanceId, now: float) -> None:
        self._ready.add(instance)
        if (begun := self._loading.pop(instance, None)) is not None:
            self._of(_model(instance)).loaded(now - begun)

    def _gone(self, instance: InstanceId, *, is_failure: bool) -> None:
        tally = self._of(_model(instance))
        if instance in self._ready:
            self._ready.discard(instance)
            tally.crashes += is_failure
        elif self._loading.pop(instance, None) is not None:
            tally.failures += is_failure

    def _of(self, model: ModelName) -> _Tally:
        tally = self._tallies.get(model)
        if tally is None:
            tally = self._tallies[model] = _Tally()
        return tally


class _Tally:
    __slots__ = (
        "crashes",
        "evictions",
        "failures",
        "hits",
        "last",
        "loads",
        "longest",
        "requests",
        "seconds",
        "swaps",
    )

    def __init__(self) -> None:
        self.requests = self.hits = self.loads = self.swaps = 0
        self.evictions = self.failures = self.crashes = 0
        self.last = self.longest = self.seconds = 0.0

    def loaded(self, seconds: float) -> None:
        self.loads += 1
        self.last = seconds
        self.seconds += seconds
        self.longest = max(self.longest, seconds)

    def with_hits(self, number: int) -> _Tally:
        """A copy, and so many requests more that found the model ready."""
        other = _Tally()
        other.add(self)
        other.last = self.last
        other.requests += number
        other.hits += number
        return other

    def add(self, other: _Tally) -> None:
        for name in ("requests", "hits", "loads", "swaps", "evictions", "failures", "crashes", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)

    def counted(self) -> Counted:
        mean = round(self.seconds / self.loads, 3) if self.loads else None
        last = round(self.last, 3) if self.loads and self.last else None
        longest = round(self.longest, 3) if self.loads else None
        return Counted(
            requests=self.requests,
            hits=self.hits,
            misses=self.requests - self.hits,
            hit_rate=round(self.hits / self.requests, 4) if self.requests else None,
            loads=self.loads,
            swaps=self.swaps,
            evictions=self.evictions,
            failures=self.failures,
            crashes=self.crashes,
            load_seconds=LoadSeconds(last, mean, longest),
        )


def _model(instance: InstanceId) -> ModelName:
    return instance.rpartition("#")[0]
