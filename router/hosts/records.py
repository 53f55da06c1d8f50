"""What a host keeps of its children for the next router: a record of each, and how long loads took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from router.db.store import Store, Table
from router.ids import Definition
from router.scheduler.types import InstanceId, ModelName, Placement


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One child, written before it can hold memory (`pid` None until it is born). Times are Unix time."""

    instance: InstanceId
    model: ModelName
    definition: Definition
    placement: Placement
    socket: str
    log: str
    pid: int | None = None
    start_time: int | None = None
    boot_id: str = ""
    argv_hash: str = ""
    health_path: str = "/health"
    is_ready: bool = False
    started_at: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Seconds from start to ready, averaged so that a new measurement weighs at least a quarter."""

    seconds: float
    count: int


#: By instance, oldest first.
CHILDREN: Final = Table("children", str, ProcessRecord)
#: By definition.
LOAD_TIMES: Final = Table("load_times", Definition, LoadTime)


async def keep_record(store: Store, record: ProcessRecord) -> None:
    """Write or replace the record of `record.instance`."""
    await store.put(CHILDREN, record.instance, record, record.started_at)


async def keep_load_time(store: Store, definition: Definition, seconds: float) -> None:
    """Add a measurement of how long a model with this definition takes to load."""
    known = (await store.rows(LOAD_TIMES)).get(definition, LoadTime(0.0, 0))
    count = known.count + 1
    await store.put(
        LOAD_TIMES, definition, LoadTime(known.seconds + (seconds - known.seconds) / min(count, 4), count)
    )
