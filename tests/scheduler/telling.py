"""How the shell passes an event to the scheduler: a lease at once where one is promised."""

from __future__ import annotations

from router.scheduler.scheduler import Scheduler
from router.scheduler.types import Acquire, Command, Event, Grant


def tell(scheduler: Scheduler, event: Event, now: float) -> list[Command]:
    is_open = isinstance(event, Acquire) and event.overrides is None and scheduler.is_open(event.model)
    commands = scheduler.handle(event, now)
    if isinstance(event, Acquire):
        is_granted = any(isinstance(one, Grant) and one.lease == event.lease for one in commands)
        assert is_granted or not is_open, f"{event} was not granted where the model was open"
    assert not scheduler.was_routine or len(commands) <= 1
    return commands
