"""The stream of events: entries of the journal at once; what is only seen in snapshots a few times a second,
and only while somebody reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import msgspec

from router.observability.events import seen
from router.observability.events.ring import Lost, Ring
from router.observability.events.told import ALL, WORTH_TELLING, ModelEvent, told
from router.observability.journal import Entry
from router.scheduler.types import Exited, InstanceId, ModelName, Ready, Start, State
from router.scheduler.views import Snapshot

#: Events that are kept for readers who come again. A frame has some hundred bytes.
KEPT: Final = 2048
#: So often a snapshot is looked at while somebody reads, and so often memory is told.
LOOK_SECONDS: Final = 0.25
MEMORY_SECONDS: Final = 1.0


class Feed:
    """`heard` follows a journal; `look` runs while there are readers. `snapshot` and `info` are asked, never
    kept."""

    HEARD: ClassVar = WORTH_TELLING

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        info: Callable[[ModelName], Mapping[str, Any] | None],
        models: Callable[[], list[ModelName]],
        *,
        kept: int = KEPT,
    ) -> None:
        self.ring = Ring(kept)
        self._snapshot, self._info, self._models = snapshot, info, models
        self._started: dict[InstanceId, float] = {}
        self._readers = 0
        self._looking = asyncio.Event()

    def heard(self, entry: Entry) -> None:
        """An entry of the journal, of those HEARD."""
        for command in entry.commands:
            if isinstance(command, Start):
                self._started[command.instance] = entry.now
        for event in told(entry, self._info, self._status, lambda one: self._load_seconds(one, entry.now)):
            self.tell(event)
        if isinstance(entry.event, Ready | Exited):
            self._started.pop(entry.event.instance, None)

    def tell(self, event: msgspec.Struct) -> None:
        """A ModelEvent, or what has its shape."""
        self.ring.append(msgspec.json.encode(event))

    # --- reading ---

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around a reader."""
        self._readers += 1
        self._looking.set()
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._looking.clear()

    def picture(self) -> dict[str, Any]:
        """All that later events change: every model, what runs, who waits, and the memory."""
        snapshot = self._snapshot()
        queues = {queue.model: seen.queue_data(queue) for queue in snapshot.queues}
        running = seen.instances(snapshot)
        models = [
            {
                "id": name,
                "status": _status(snapshot, name),
                "instances": running.get(name, []),
                "queue": queues.get(name),
            }
            for name in dict.fromkeys([*self._models(), *running])
        ]
        return {"models": models, "devices": seen.devices(snapshot), "policy": snapshot.policy}

    def once(self, event: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
        """An event for one reader; with a number where it is up to date with it."""
        line = msgspec.json.encode(ModelEvent(ALL, event, data))
        return b"data: %s\n\n" % line if number is None else self.ring.frame(line, number)

    # --- looking ---

    async def look(self) -> None:
        """For ever: compare what is with what was, while there are readers."""
        while True:
            await self._looking.wait()
            before = remembered = self._snapshot()
            told_at = before.now
            while self._readers:
                await asyncio.sleep(LOOK_SECONDS)
                now = self._snapshot()
                for event in seen.changes(before, now):
                    self.tell(event)
                before = now
                if now.now - told_at >= MEMORY_SECONDS:
                    for event in seen.memory(remembered, now):
                        self.tell(event)
                    remembered, told_at = now, now.now

    # --- small steps ---

    def _status(self, model: ModelName) -> str:
        return _status(self._snapshot(), model)

    def _load_seconds(self, instance: InstanceId, now: float) -> float | None:
        begun = self._started.get(instance)
        return None if begun is None else round(now - begun, 3)


class Reader:
    """One client. Who says what it had last gets first what it missed, or `reset` if that is not kept any
    more; then everybody gets a `snapshot`, and from then on what happens."""

    def __init__(self, feed: Feed, last_event_id: str | None) -> None:
        self._feed = feed
        self._number = feed.ring.newest
        self._first: list[bytes] = []
        if last_event_id is not None:
            try:
                self._first += feed.ring.after(feed.ring.number_of(last_event_id))
            except Lost:
                self._first.append(feed.once("reset", {"reason": "what you had last is not kept any more"}))
        self._first.append(feed.once("snapshot", feed.picture(), self._number))

    def take(self) -> bytes:
        """All that there is for it now; one that was too slow gets a `reset` and a `snapshot` instead."""
        found, self._first = self._first, []
        ring = self._feed.ring
        try:
            found += ring.after(self._number)
        except Lost:
            found = [self._feed.once("reset", {"reason": "you read too slowly"})]
            found.append(self._feed.once("snapshot", self._feed.picture(), ring.newest))
        self._number = ring.newest
        return b"".join(found)

    async def more(self) -> None:
        """Return when there is something to take."""
        await self._feed.ring.more(self._number)


def _status(snapshot: Snapshot, model: ModelName) -> str:
    """llama.cpp's word."""
    states = {one.state for one in snapshot.of_model(model)}
    if states & {State.READY, State.DRAINING, State.STOPPING}:
        return "loaded"
    return "loading" if states else "unloaded"
