"""Reads the files of a model ahead from the moment in which somebody has to wait for it until it is ready.

Told by the journal, so that no decision knows of it. What it brings into the page cache leaves there when
memory is wanted, but it may push out what other models are read from: so it takes one model after the other,
and none that would not fit beside those that are on their way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from router.hosts import Measurement
from router.hosts.read_ahead import read_ahead, total_bytes
from router.observability.journal import Entry
from router.scheduler.types import (
    Acquire,
    Exited,
    Grant,
    HostId,
    InstanceId,
    LeaseId,
    ModelName,
    Ready,
    Refuse,
    Release,
    Start,
)

log = logging.getLogger("router.read_ahead")

#: A page cache that is full to the brim pushes out its newest pages as well.
SPARE_SHARE: Final = 0.8


def spare_bytes(measurements: Mapping[HostId, Measurement]) -> int:
    """Main memory that nobody holds, as it was last measured; the page cache is not counted as held."""
    infos = (info for measured in measurements.values() for info in measured.infos.values())
    return max((info.free_bytes or 0 for info in infos if info.kind == "host"), default=0)


class ReadAhead:
    """`files_of` a model, empty where nothing is to be read ahead of it; `spare_bytes` of main memory now.
    `run` is a task that ends with the router.
    """

    HEARD: ClassVar = (Acquire, Release, Ready, Exited, Grant, Refuse, Start)

    def __init__(
        self,
        files_of: Callable[[ModelName], Sequence[Path]],
        spare_bytes: Callable[[], int],
        read: Callable[[Sequence[Path], Callable[[], bool]], int] = read_ahead,
    ) -> None:
        self._files_of = files_of
        self._spare_bytes = spare_bytes
        self._read = read
        self._waiting: dict[LeaseId, ModelName] = {}
        self._starting: dict[InstanceId, ModelName] = {}
        self._done: set[ModelName] = set()
        self._brought: dict[ModelName, int] = {}
        self._news = asyncio.Event()

    def heard(self, entry: Entry) -> None:
        """Quick, and never fails: the journal calls it."""
        if not (self._waiting or self._starting):
            # A lease of a model that is there, and its end: one of each for every request.
            kind, first = type(entry.event), type(entry.commands[0]) if entry.commands else None
            if (kind is Release and first is None) or (kind is Acquire and first is Grant):
                return
        match entry.event:
            case Acquire(lease, model):
                self._waiting[lease] = model
            case Release(lease):
                self._waiting.pop(lease, None)
            case Ready(instance) | Exited(instance):
                self._starting.pop(instance, None)
            case _:
                pass
        for command in entry.commands:
            match command:
                case Grant(lease) | Refuse(lease):
                    self._waiting.pop(lease, None)
                case Start(instance, model):
                    self._starting[instance] = model
                case _:
                    pass
        if self._waiting or self._starting:
            self._news.set()
        else:
            self._done.clear()

    async def run(self) -> None:
        """For ever: one model after the other, those first that are being started."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._done &= self._wanted()
            while (model := self._next()) is not None:
                self._done.add(model)
                await self._bring(model)
                if self._must_wait(model):
                    self._done.discard(model)

    async def _bring(self, model: ModelName) -> None:
        is_over = False

        def is_wanted() -> bool:
            return not is_over and model in self._wanted() and not self._must_wait(model)

        files = self._files_of(model)
        size = await asyncio.to_thread(total_bytes, files)
        beside = sum(self._brought[other] for other in self._wanted() & self._brought.keys() - {model})
        if not size or size + beside > SPARE_SHARE * self._spare_bytes():
            return
        self._brought[model] = size
        try:
            done = await asyncio.to_thread(self._read, files, is_wanted)
        finally:
            is_over = True  # a thread is not cancelled
        log.debug("%s: %d of %d MiB read ahead", model, done >> 20, size >> 20)

    def _next(self) -> ModelName | None:
        for model in (*self._starting.values(), *self._waiting.values()):
            if model not in self._done:
                return model
        return None

    def _must_wait(self, model: ModelName) -> bool:
        """Whether another one is being started, while this one only waits for its room. From any thread."""
        starting = set(self._starting.copy().values())
        return model not in starting and not starting <= self._done

    def _wanted(self) -> set[ModelName]:
        """From any thread."""
        return {*self._starting.copy().values(), *self._waiting.copy().values()}
