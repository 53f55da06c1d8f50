"""The stream of events: entries of the journal at once; what is only seen in snapshots a few times a second,
and only while somebody reads. The newest are kept as bytes, numbered: what a reader has not had yet is looked
up, never queued for it, so that a slow reader costs no memory, and one that was away goes on where it was."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import msgspec

from router.ids import model_of
from router.observability.events import changes
from router.observability.events.changes import ALL, ModelEvent
from router.observability.journal import Entry
from router.scheduler.types import (
    Adopted,
    Cause,
    Exited,
    InstanceId,
    ModelName,
    Pinned,
    Ready,
    Reloaded,
    Start,
    State,
    Stop,
)
from router.scheduler.views import Snapshot

#: Events that are kept for readers who come again. A frame has some hundred bytes.
KEPT: Final = 2048
#: How often a snapshot is looked at while somebody reads, and how often memory is told, in seconds.
LOOK_SECONDS: Final = 0.25
MEMORY_SECONDS: Final = 1.0
#: A model that these take away would have stayed.
_EVICTIONS: Final = frozenset({Cause.EVICTED, Cause.YIELDED, Cause.ABORTED})


class Lost(Exception):
    """Some of what this reader has not had yet is not kept any more, or was told by another router."""


class Ring:
    """`epoch` names this ring: numbers of another one mean nothing here."""

    def __init__(self, size: int) -> None:
        self.epoch = f"{time.time_ns() // 1_000_000:x}"
        self.newest = 0
        self._kept: deque[bytes] = deque(maxlen=size)
        self._more = asyncio.Event()

    def append(self, data: bytes) -> None:
        """`data` is one line. Wakes every reader."""
        self.newest += 1
        self._kept.append(self.frame(data, self.newest))
        self._more.set()
        self._more = asyncio.Event()

    def frame(self, data: bytes, number: int) -> bytes:
        """As a server-sent event: who reads it to its end has had all up to `number`."""
        return b"id: %s-%d\ndata: %s\n\n" % (self.epoch.encode(), number, data)

    def after(self, number: int) -> Sequence[bytes]:
        """Everything newer, as it goes out. Raises Lost."""
        missing = self.newest - number
        if missing < 0 or missing > len(self._kept):
            raise Lost
        return [self._kept[at] for at in range(len(self._kept) - missing, len(self._kept))]

    def number_of(self, event_id: str) -> int:
        """The number in the id of an event. Raises Lost for one of another ring."""
        epoch, _, number = event_id.partition("-")
        if epoch != self.epoch or not (number.isascii() and number.isdigit() and len(number) < 19):
            raise Lost
        return int(number)

    async def more(self, number: int) -> None:
        """Return when there is something newer."""
        while self.newest <= number:
            await self._more.wait()


class Feed:
    """`heard` follows a journal; `look` runs while there are readers. `snapshot` and `info` (what a list
    tells of a model) are asked, never kept.
    """

    #: All that anything is told of: most entries are requests that come and go.
    HEARD: ClassVar = (Ready, Exited, Adopted, Reloaded, Pinned, Start, Stop)

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
        #: When each load began, in seconds of the scheduler's clock.
        self._started: dict[InstanceId, float] = {}
        self._readers = 0
        self._looking = asyncio.Event()

    def heard(self, entry: Entry) -> None:
        """An entry of the journal, of those HEARD: in llama.cpp's names and shapes where it has them."""
        match entry.event:
            case Ready(instance):
                model, begun = model_of(instance), self._started.pop(instance, None)
                seconds = None if begun is None else round(entry.now - begun, 3)
                loaded = {"status": "loaded", "instance": instance, "info": self._info(model)}
                self._tell(model, "status_change", {**loaded, "load_seconds": seconds})
            case Adopted(instance, model):
                info = self._info(model)
                adopted = {"status": "loaded", "instance": instance, "adopted": True, "info": info}
                self._tell(model, "status_change", adopted)
            case Exited(instance, error):
                self._started.pop(instance, None)
                model = model_of(instance)
                code = error.details.get("returncode") if error is not None else 0
                # Of several instances one may be gone.
                status = _status(self._snapshot(), model)
                gone = {"status": status, "instance": instance, "exit_code": code}
                if error is not None:
                    gone["error"] = error.message
                self._tell(model, "status_change", gone)
            case Reloaded(models):
                self._tell(ALL, "models_reload", {"models": len(models)})
            case Pinned(model, pinned):
                self._tell(model, "pin", {"pinned": pinned})
        for command in entry.commands:
            match command:
                case Stop(instance, cause, for_model):
                    name = "evict" if cause in _EVICTIONS else "stop"
                    why = {"instance": instance, "cause": cause.value, "for": for_model}
                    self._tell(model_of(instance), name, why)
                case Start(instance, model, placement, evicted, definition):
                    self._started[instance] = entry.now
                    begins: dict[str, Any] = {
                        "status": "loading",
                        "instance": instance,
                        "devices": dict(placement.footprint),
                        "evicted": evicted,
                    }
                    if definition.overrides:
                        begins["settings"] = msgspec.json.decode(definition.overrides)
                    self._tell(model, "model_status", begins)

    def tell(self, event: msgspec.Struct) -> None:
        """A ModelEvent, or what has its shape."""
        self.ring.append(msgspec.json.encode(event))

    def _tell(self, model: ModelName, event: str, data: Mapping[str, Any]) -> None:
        self.tell(ModelEvent(model, event, data))

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
        queues = {queue.model: changes.queue_data(queue) for queue in snapshot.queues}
        running = changes.instances(snapshot)
        models = [
            {
                "id": name,
                "status": _status(snapshot, name),
                "instances": running.get(name, []),
                "queue": queues.get(name),
            }
            for name in dict.fromkeys([*self._models(), *running])
        ]
        return {"models": models, "devices": changes.devices(snapshot), "policy": snapshot.policy}

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
                for event in changes.changes(before, now):
                    self.tell(event)
                before = now
                if now.now - told_at >= MEMORY_SECONDS:
                    for event in changes.memory(remembered, now):
                        self.tell(event)
                    remembered, told_at = now, now.now


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
