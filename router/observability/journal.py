"""The ring of decisions: every event the scheduler was told, with the commands it answered, in order.

Logs, server-sent events, metrics and `explain` are readers of it, and `simulate` can replay it.
Measurements and ticks that led to nothing are left out: they would push the decisions out of the ring."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from itertools import count
from operator import attrgetter
from time import time
from typing import Final, TypeAlias

import msgspec

from router.scheduler.types import (
    Acquire,
    Adopted,
    Command,
    Event,
    Exited,
    Grant,
    Learned,
    Measured,
    Model,
    ModelName,
    Pinned,
    Ready,
    Refuse,
    Release,
    Start,
    Stop,
    Tick,
    Unload,
)

log = logging.getLogger("router.observability.journal")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """`id` counts up without gaps; `at` is Unix time in seconds, `now` the scheduler's clock.

    Thousands are kept, and whoever looks for cycles among them holds up every stream (20 ms for ten thousand,
    measured): there are none.
    """

    id: int
    at: float
    now: float
    event: Event
    commands: tuple[Command, ...]


#: Where nothing came of them.
_SAY_NOTHING: Final = (Measured, Tick)
#: A kind of event or command.
Kind: TypeAlias = type[Event] | type[Command]
Heard: TypeAlias = Callable[[Entry], None]


class Journal:
    """Keeps the newest `size` entries, and apart from them as many as `passing` of requests that came to a
    model that was loaded and went: a thousand of those a second must not push out why it was stopped. A
    reader that falls `backlog` entries behind loses the oldest ones, and sees the gap in the ids; it never
    holds the scheduler up.
    """

    def __init__(self, size: int = 2_000, passing: int = 1_000, backlog: int = 1_000) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._passing: deque[Entry] = deque(maxlen=passing)
        self._backlog = backlog
        self._ids = count(1)
        self._readers: set[_Reader] = set()
        self._followers: list[tuple[Heard, frozenset[Kind]]] = []
        #: How many routine requests there were so far.
        self.routine_requests = Counter[ModelName]()

    def record(
        self, now: float, event: Event, commands: Sequence[Command], *, is_routine: bool = False
    ) -> Entry | None:
        """Note what was decided. Returns None for what is not worth an entry.

        `is_routine`: a request found its model ready, or ended, and nothing else came of it. Such requests
        are counted by model, and followers are not called: it is nearly all there is to note.
        """
        if is_routine:
            entry = Entry(next(self._ids), time(), now, event, tuple(commands))
            self._passing.append(entry)
            if type(event) is Acquire:
                self.routine_requests[event.model] += 1
            if self._readers:
                self._tell(entry, ())
            return entry
        if not commands and isinstance(event, _SAY_NOTHING):
            return None
        entry = Entry(next(self._ids), time(), now, event, tuple(commands))
        (self._passing if _is_passing(event, commands) else self._entries).append(entry)
        told = {type(event), *map(type, commands)}
        self._tell(entry, [heard for heard, wanted in self._followers if not wanted or wanted & told])
        return entry

    def follow(self, heard: Heard, *kinds: Kind) -> None:
        """Call `heard` with every entry from now on of which the event or a command is one of `kinds`, or
        with all, before anything is carried out: it must be quick. For those that count and must miss
        nothing; but for routine requests, which are counted.
        """
        self._followers.append((heard, frozenset(kinds)))

    def entries(self, after: int = 0) -> tuple[Entry, ...]:
        """The kept entries with an id above `after`, oldest first."""
        kept = heapq.merge(self._entries, self._passing, key=attrgetter("id"))
        return tuple(entry for entry in kept if entry.id > after)

    def complete(self) -> tuple[Entry, ...]:
        """The newest of the kept entries, oldest first, as far as none between them has been dropped."""
        kept = self.entries()
        first = len(kept)
        while first and (first == len(kept) or kept[first - 1].id == kept[first].id - 1):
            first -= 1
        return kept[first:]

    @contextmanager
    def subscribe(self) -> Iterator[AsyncIterator[Entry]]:
        """Every entry from now on, as an asynchronous iterator that ends only with its reader."""
        reader = _Reader(self._backlog)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def _tell(self, entry: Entry, followers: Iterable[Heard]) -> None:
        for reader in self._readers:
            reader.put(entry)
        for heard in followers:
            try:
                heard(entry)
            except Exception:
                # What was decided must be carried out: a waiter who was granted waits for it.
                log.exception("a follower failed at %s", type(entry.event).__name__)


def _is_passing(event: Event, commands: Sequence[Command]) -> bool:
    """Of a request that waited for nothing: it came, or it went and nobody had waited for that."""
    match commands:
        case []:
            return type(event) is Release
        case [Grant(_, _, "already_loaded")]:
            return type(event) is Acquire
    return False


class _Reader:
    def __init__(self, backlog: int) -> None:
        self._entries: deque[Entry] = deque(maxlen=backlog)
        self._filled = asyncio.Event()

    def put(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._filled.set()

    def __aiter__(self) -> AsyncIterator[Entry]:
        return self

    async def __anext__(self) -> Entry:
        while not self._entries:
            self._filled.clear()
            await self._filled.wait()
        return self._entries.popleft()


def command_words(command: Command) -> str:
    """One command as a log line."""
    match command:
        case Start(instance, _, placement, evicted, definition):
            where = ", ".join(f"{d} {b / 2**20:.0f} MiB" for d, b in placement.footprint.items())
            after = f" after {', '.join(evicted)} left" if evicted else ""
            return f"start {instance} on {where}{after}" + (
                f" with {definition.overrides}" if definition.overrides else ""
            )
        case Stop(instance, cause, for_model):
            return f"stop {instance}: {cause.value}" + (f" for {for_model}" if for_model else "")
        case Grant(lease, instance, action):
            return f"grant {lease} on {instance}: {action}"
        case Refuse(lease, error):
            return f"refuse {lease}: {error.message}"


#: What is said of an event or a command, beside its kind: of an error its code alone.
_FIELDS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Acquire: ("lease", "model", "priority", "keep_alive", "size"),
    Grant: ("lease", "instance", "action"),
    Refuse: ("lease", "error"),
    Release: ("lease",),
    Start: ("instance", "model", "evicted"),
    Stop: ("instance", "cause", "for_model"),
    Ready: ("instance",),
    Exited: ("instance", "error", "no_room", "out_of_memory"),
    Adopted: ("instance", "model"),
    Unload: ("model", "force"),
    Pinned: ("model", "pinned"),
    Learned: ("model",),
}


def entry_lines(entry: Entry) -> Iterator[dict[str, object]]:
    """An entry as plain data for JSON lines: one for the event, one for each command.

    For other eyes than the operator's: no message of an error (it may hold paths, or lines of a child's log),
    no settings and no device ids. `simulate --trace` reads it.
    """
    for told in (entry.event, *entry.commands):
        line = {"id": entry.id, "at": entry.at, "now": entry.now, "event": type(told).__name__}
        for name in _FIELDS.get(type(told), ()):
            value = getattr(told, name)
            match value:
                case Enum():
                    value = value.value
                case Model():
                    value = value.name
            if name == "error":
                name, value = "code", None if value is None else value.code
            line[name] = value
        yield line
