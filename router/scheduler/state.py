"""What the scheduler remembers: instances, waiters and leases, one record per model. It holds no rule but
the table of states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from router.errors import RouterError
from router.scheduler.forecast import Forecast
from router.scheduler.ledger import Ledger
from router.scheduler.policy import Candidate, Policy
from router.scheduler.types import (
    READY,
    TRANSITIONS,
    Cause,
    InstanceId,
    LeaseId,
    Model,
    ModelName,
    Placement,
    Priority,
    State,
)
from router.scheduler.views import ModelView


@dataclass(frozen=True, slots=True)
class Settings:
    """The scheduler's numbers; seconds and counts. `models_max` 0 = no limit. `linger` is a share of the
    load time, `quantum` in times the expected cost of the switch.
    """

    models_max: int = 0
    queue_limit: int = 512
    queue_timeout: float = 600.0
    quantum: float = 8.0
    linger: float = 0.5
    recovery: float = 10.0
    external_memory_wait: float = 10.0
    backoff_initial: float = 1.0
    backoff_max: float = 60.0
    unload_deadline: float = 60.0
    placement: str = "best-fit"
    evict_on_memory_pressure: bool = False


@dataclass(slots=True, eq=False)
class Waiter:
    lease: LeaseId
    model: ModelName
    since: float
    deadline: float
    priority: Priority
    order: int
    keep_alive: float | None
    size: float | None
    overrides: Model | None = None


class ActiveLease(msgspec.Struct, eq=False):
    """A granted lease, until its end or that of its instance."""

    lease: LeaseId
    record: Record
    instance: Instance
    granted_at: float
    size: float | None

    @property
    def expected_end(self) -> float:
        return self.granted_at + self.record.forecast.hold_seconds(self.size)


@dataclass(slots=True, eq=False)
class Instance:
    """One child, planned or alive. `victims` are those who leave for it; `kill_at` ends an operator's
    patience.
    """

    id: InstanceId
    model: Model
    placement: Placement
    order: int
    since: float
    state: State = State.PLANNED
    leases: dict[LeaseId, ActiveLease] = field(default_factory=dict)
    victims: frozenset[InstanceId] = frozenset()
    started_at: float | None = None
    ready_at: float | None = None
    last_used: float = 0.0
    keep_alive: float | None = None
    cause: Cause | None = None
    for_model: ModelName | None = None
    kill_at: float | None = None
    drain_end: float | None = None
    completed: int = 0
    is_adopted: bool = False

    def move(self, to: State) -> None:
        """The only place where a state changes."""
        assert to in TRANSITIONS[self.state], f"{self.id}: {self.state.name} -> {to.name} does not exist"
        self.state = to

    @property
    def is_live(self) -> bool:
        """It is, or may be, a process."""
        return self.state is not State.PLANNED

    @property
    def is_leaving(self) -> bool:
        return self.state is State.DRAINING or self.state is State.STOPPING

    @property
    def is_idle(self) -> bool:
        return self.state is State.READY and not self.leases

    @property
    def has_overrides(self) -> bool:
        """Whether it runs with other settings than the model's own."""
        return bool(self.model.definition.overrides)


@dataclass(slots=True, eq=False)
class Record:
    """All that is known of one model. Waiters stand in one line per priority, in order of arrival."""

    model: Model
    forecast: Forecast
    instances: dict[InstanceId, Instance] = field(default_factory=dict)
    lines: dict[Priority, dict[LeaseId, Waiter]] = field(default_factory=lambda: {p: {} for p in Priority})
    waiting: int = 0
    varied: dict[LeaseId, Model] = field(default_factory=dict)
    pin: bool | None = None
    failures: int = 0
    failed_at: float = 0.0
    enlarged: bool = False
    retry_at: float | None = None
    last_error: RouterError | None = None
    hold_until_measured: float | None = None
    blocked_externally_since: float | None = None
    evictions: int = 0
    evicted_at: float | None = None
    evicted_for: ModelName | None = None
    vanished: bool = False
    unused: tuple[Model, ModelView] | None = None  # how it looks as long as nobody has asked for it

    def waiters(self) -> Iterator[Waiter]:
        for line in self.lines.values():
            yield from line.values()

    def heads(self) -> Iterator[Waiter]:
        """The longest waiting of each priority."""
        for line in self.lines.values():
            if line:
                yield next(iter(line.values()))

    @property
    def is_pinned(self) -> bool:
        return self.model.pinned if self.pin is None else self.pin

    @property
    def wanted(self) -> Model:
        """How it is loaded next: as a waiting load asks for it, else as it is defined."""
        return next(iter(self.varied.values()), self.model)

    def join(self, waiter: Waiter) -> None:
        self.lines[waiter.priority][waiter.lease] = waiter
        self.waiting += 1
        if waiter.overrides is not None:
            self.varied[waiter.lease] = waiter.overrides

    def leave(self, waiter: Waiter) -> None:
        del self.lines[waiter.priority][waiter.lease]
        self.waiting -= 1
        self.varied.pop(waiter.lease, None)

    def open_instance(self) -> Instance | None:
        """The READY instance with the fewest leases, the oldest of equals; None also where the model is not
        served any more.
        """
        if self.vanished or self.model.error is not None:
            return None
        best: Instance | None = None
        for one in self.instances.values():
            if one.state is READY and (best is None or len(one.leases) < len(best.leases)):
                best = one
        return best

    def has_coming(self) -> bool:
        """Whether an instance serves or will: nothing more needs to be planned for its waiters."""
        return any(not one.is_leaving for one in self.instances.values())


@dataclass(slots=True, eq=False)
class SchedulerState:
    """The whole state, as the scheduler changes it and the planner reads it."""

    ledger: Ledger
    policy: Policy
    settings: Settings
    records: dict[ModelName, Record] = field(default_factory=dict)
    instances: dict[InstanceId, Instance] = field(default_factory=dict)
    waiters: dict[LeaseId, Waiter] = field(default_factory=dict)
    #: All that are granted, also found by their instances.
    leases: dict[LeaseId, ActiveLease] = field(default_factory=dict)

    def record_of(self, instance: Instance) -> Record:
        return self.records[instance.model.name]

    def is_pinned(self, instance: Instance) -> bool:
        return self.record_of(instance).is_pinned

    def conflicts(self, model: Model) -> Iterator[Instance]:
        """Instances of other models that must not be resident together with this one."""
        if not model.exclusive:
            return
        for one in self.instances.values():
            if one.model.name != model.name and self.record_of(one).model.exclusive & model.exclusive:
                yield one

    def rank(self, instance: Instance, now: float) -> float | None:
        """The policy's rank; None for whom it never evicts."""
        if self.is_pinned(instance):
            return None
        forecast = self.record_of(instance).forecast
        candidate = Candidate(
            model=instance.model.name,
            last_used=instance.last_used,
            load_seconds=forecast.load_seconds,
            requests_per_second=forecast.requests_per_second(now),
            bytes=sum(instance.placement.footprint.values()),
        )
        return self.policy.rank(candidate, now)

    def ttl(self, instance: Instance, record: Record) -> float | None:
        """Idle seconds after which an instance of the record's model leaves: the last request's wish, else
        the model's, else the policy's; None = never.
        """
        if record.model.pinned if record.pin is None else record.pin:
            return None
        ttl = instance.keep_alive
        if ttl is None:
            ttl = record.model.ttl
        if ttl is None:
            ttl = self.policy.ttl
        return None if ttl is None or ttl < 0 else ttl

    def expires_at(self, instance: Instance) -> float | None:
        if not instance.is_idle:
            return None
        ttl = self.ttl(instance, self.record_of(instance))
        return None if ttl is None else instance.last_used + ttl
