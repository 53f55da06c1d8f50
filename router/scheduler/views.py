"""What the scheduler shows of itself: frozen pictures for `/models`, `/vram`, `/explain`, metrics and
tests. Nothing here decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from router.errors import RouterError
from router.ids import NO_DEFINITION, Definition
from router.scheduler.types import (
    Cause,
    DeviceId,
    Footprint,
    InstanceId,
    LeaseId,
    ModelName,
    Placement,
    State,
)


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance. `reserved` and `used` are bytes per device; `expires_at` and the other times are the
    scheduler's clock.
    """

    id: InstanceId
    model: ModelName
    state: State
    placement: Placement
    leases: tuple[LeaseId, ...]
    reserved: Footprint
    used: Footprint
    since: float
    idle_since: float | None
    expires_at: float | None
    pinned: bool
    cause: Cause | None
    for_model: ModelName | None
    victims: tuple[InstanceId, ...] = ()
    definition: Definition = NO_DEFINITION
    started_at: float | None = None

    def __repr__(self) -> str:
        where = ", ".join(f"{d.partition('/')[2]} {b / 2**30:.1f} GiB" for d, b in self.reserved.items())
        leases = f"{len(self.leases)} lease" + ("s" if len(self.leases) != 1 else "")
        return f"<Instance {self.id} {self.state.name} {leases} {where}>"


@dataclass(frozen=True, slots=True)
class Use:
    """Of an instance: the leases that are held on it, and how many have ended."""

    leases: int
    completed: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """Requests that wait for one model. `reason` says in words what they wait for; `expected_seconds` is
    None when unknown.
    """

    model: ModelName
    waiting: int
    oldest_since: float
    position: int
    reason: str
    expected_seconds: float | None


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One memory pool, all in bytes. `promised` is reserved by ours and not yet taken (G); `returning`
    belongs to children that exited and was not yet measured back (V); `others` is what is used and not
    ours; `room` is what a newcomer may have.
    """

    id: DeviceId
    label: str
    total: int
    margin: int
    free: int | None
    reserved: int
    used: int
    promised: int
    returning: int
    others: int | None
    room: int | None


@dataclass(frozen=True, slots=True)
class ModelView:
    """What is known of a model beyond its definition. `exit_code` is that of the failure `error`: negative
    for a signal. `is_load_measured`: `load_seconds` is no assumption, also where an earlier router measured.
    `hold_seconds` is how long a request usually takes, None until one was measured.
    """

    name: ModelName
    load_seconds: float
    loads: int
    evictions: int
    failures: int
    retry_at: float | None
    error: str | None
    last_evicted_at: float | None
    last_evicted_for: ModelName | None
    pinned: bool = False
    exit_code: int | None = None
    is_load_measured: bool = False
    hold_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    now: float
    policy: str
    instances: tuple[InstanceView, ...]
    queues: tuple[QueueView, ...]
    devices: tuple[DeviceView, ...]
    models: tuple[ModelView, ...]
    models_max: int

    def of_model(self, model: ModelName) -> tuple[InstanceView, ...]:
        return tuple(i for i in self.instances if i.model == model)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a model is where it is: `/explain?model=` in words (`text`) and as data.

    `would`: what a request for it would do now: start it, wait, or be refused (with `refusal`); None where it
    is there or comes already, or can never be loaded.
    """

    model: ModelName
    state: str
    text: str
    waiting: int
    waits_for: str | None
    would_evict: tuple[InstanceId, ...]
    placement: Placement | None
    shortfall: Footprint
    last_evicted_for: ModelName | None
    last_evicted_at: float | None
    would: Literal["start", "wait", "refuse"] | None = None
    refusal: RouterError | None = None
