"""The machines where children run: `Host` is the one seam between the scheduler and a machine. A kind of
host is a file here.

The pool speaks to nothing else, so the same core drives one machine today and a fleet later. A host that
simulates (virtual time) passes the same conformance tests as the local one (tests/hosts/conformance.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from router.engines import Launch
from router.errors import RouterError
from router.ids import NO_DEFINITION, Definition
from router.memory.devices import DeviceInfo
from router.process.exits import Exit
from router.scheduler.types import Device, DeviceId, Footprint, HostId, InstanceId, ModelName, Placement

__all__ = ["Address", "Exit", "Host", "HostFull", "InstanceRecord", "Measurement"]


class HostFull(RouterError):
    """The host's own numbers say that the start does not fit; the scheduler plans again."""

    status = 503
    type = "unavailable_error"
    code = "host_full"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an instance answers: a Unix socket path."""

    socket: str


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """A child as the host knows it, also after a restart of the router."""

    instance: InstanceId
    model: ModelName
    placement: Placement
    definition: Definition
    address: Address
    pid: int | None
    ready: bool


@dataclass(frozen=True, slots=True)
class Measurement:
    """Free bytes per device (None = unhealthy) and used bytes per instance; sampling began at `taken_at`
    (loop.time()).

    `used` is the best guess, for the ledger. To learn from there are only `told`, what a driver told of the
    instance itself, and for a ready instance `lost`: what a device that tells nothing lost while it loaded,
    where no other child started, loaded or ended meanwhile. Both name devices of its placement, zeros too.
    `notes` and `infos` are for people: what is odd, and every device as it was found, with its error.
    `warnings` say why models run on the CPU though there is a GPU, `fallbacks` the same of an instance.
    """

    taken_at: float
    free: Mapping[DeviceId, int | None]
    used: Mapping[InstanceId, Footprint] = field(default_factory=dict)
    told: Mapping[InstanceId, Footprint] = field(default_factory=dict)
    lost: Mapping[InstanceId, Footprint] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    infos: Mapping[DeviceId, DeviceInfo] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    fallbacks: Mapping[InstanceId, str] = field(default_factory=dict)


class Host(Protocol):
    """One machine. All methods are safe to call from one event loop; `start` and `stop` are idempotent by
    instance id.
    """

    id: HostId

    async def devices(self) -> tuple[Device, ...]:
        """The memory pools of this host, ids prefixed with the host's id."""

    async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
        """Live figures, shared by concurrent callers; a sample younger than `max_age_seconds` may be given
        again.
        """

    def reserve(self, reserved: Mapping[InstanceId, Footprint]) -> None:
        """What is kept for these instances from now on: measurements have corrected it. Unknown ones are
        passed over."""

    async def instances(self) -> tuple[InstanceRecord, ...]:
        """The truth after a restart: children that are alive and belong to this host."""

    async def start(
        self,
        instance: InstanceId,
        model: ModelName,
        placement: Placement,
        launch: Launch,
        *,
        definition: Definition = NO_DEFINITION,
    ) -> Address:
        """Reserve (before the first await), spawn, wait until the child is ready. One call.

        Raises HostFull when the host's own numbers say no, LoadFailed when the child does not become ready
        (the child is dead and reaped by then). Cancelling it stops the child."""

    async def wait(self, instance: InstanceId) -> Exit:
        """Return when the child is gone and reaped."""

    async def stop(self, instance: InstanceId, *, grace_seconds: float) -> None:
        """SIGTERM, the grace, SIGKILL; returns when the child is gone. Unknown or gone already: returns at
        once.
        """

    def log_tail(self, instance: InstanceId, lines: int = 20) -> tuple[str, ...]:
        """The child's last log lines, also after its death."""

    def log_path(self, instance: InstanceId) -> Path | None:
        """Where its log can be read here, also after its death; None if nowhere."""
