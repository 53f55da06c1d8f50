"""What the configuration becomes; the parts themselves are tested as a running router in
tests/test_app.py."""

from __future__ import annotations

import dataclasses

from router.app.parts import _settings
from router.config import MemoryConfig, SchedulerConfig
from router.scheduler.scheduler import Settings


def test_every_number_of_the_scheduler_comes_from_the_configuration():
    scheduler = SchedulerConfig(
        models_max=1,
        queue_limit=2,
        queue_timeout_seconds=3.0,
        quantum=4.5,
        linger=5.5,
        placement="spread",
        backoff_initial_seconds=6.0,
        backoff_max_seconds=7.0,
        unload_deadline_seconds=9.0,
    )
    made = _settings(scheduler, MemoryConfig(recovery_seconds=11.0, external_memory_wait_seconds=12.0))
    unchanged = [
        field.name
        for field in dataclasses.fields(Settings)
        if getattr(made, field.name) == getattr(Settings(), field.name)
    ]
    assert not unchanged, "every number has its key"
