"""How the shell tells the scheduler an event: requests for what is ready are taken and given back."""

from __future__ import annotations

from router.scheduler.scheduler import Scheduler
from router.scheduler.state import ActiveLease
from router.scheduler.types import Acquire, Command, Event, Grant, LeaseId, Release


class Telling:
    """`handle` would have answered the same."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held: dict[LeaseId, ActiveLease] = {}

    def tell(self, event: Event, now: float) -> list[Command]:
        scheduler = self._scheduler
        match event:
            case Acquire(lease, model, _, keep_alive, size, _, None):
                is_open = scheduler.is_open(model)
                held = scheduler.take(lease, model, keep_alive, size, now)
                if held is not None:
                    assert is_open and held.instance is not None, f"{event} was taken where none was open"
                    self._held[lease] = held
                    return [Grant(lease, held.instance.id)]
                commands = scheduler.handle(event, now)
                granted = any(isinstance(told, Grant) and told.lease == lease for told in commands)
                assert granted or not is_open, f"{event} was not granted where one was open"
                return commands
            case Release(lease) if lease in self._held:
                return scheduler.give_back(self._held.pop(lease), now) or []
        return scheduler.handle(event, now)
