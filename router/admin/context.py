"""What the handlers work with: the rooms below, put together by `router.app`, replaced by tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self, cast

import msgspec
from aiohttp import web

from router.admin.listing import ModelInfoCache, make_info_cache, visible
from router.admin.recent import EVERY_SECONDS, History, Timeline
from router.config import Config
from router.downloads import Downloads
from router.engines.llama_server import BuildInfo
from router.errors import AmbiguousModel, ModelNotFound, Unavailable
from router.metrics import Page
from router.models.catalog import Catalog, hf_cache_dir
from router.models.definitions import Definitions
from router.observability.events import Feed
from router.observability.stats import Stats
from router.presets import Overrides
from router.proxy import HeartbeatConfig, ProxyContext
from router.scheduler.types import DeviceId, Model, ModelName
from router.supervisor.pool import Pool


@dataclass(frozen=True, slots=True)
class Known:
    """The models as last looked for: their names, what they are, and how they are shown. Replaced as one."""

    catalog: Catalog
    definitions: Definitions
    cards: ModelInfoCache

    @classmethod
    def of(cls, catalog: Catalog, definitions: Definitions) -> Self:
        """Reads headers: call it in a thread."""
        return cls(catalog, definitions, make_info_cache(definitions))


class Spawn(Protocol):
    """Starts a named task that somebody owns and ends."""

    def __call__(self, coroutine: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]: ...


async def _no_restart() -> int:
    raise Unavailable("this router was not started in a way that lets it start another")


@dataclass(slots=True)
class Context:
    """The parts that handlers use."""

    config: Config
    known: Known
    pool: Pool
    #: Looks for models anew and replaces `config` and `known`. Raises RouterError.
    reload: Callable[[], Awaitable[None]]
    spawn: Spawn
    #: A model as one load with other settings gets it. Raises RouterError.
    vary: Callable[[Known, ModelName, Overrides], Awaitable[Model]]
    #: Returns the pid of the process that takes this one's place. Raises RouterError.
    restart: Callable[[], Awaitable[int]] = _no_restart
    proxy: ProxyContext = field(init=False)
    metrics: Page = field(default_factory=Page, init=False)
    build_info: BuildInfo = field(default_factory=BuildInfo, init=False)
    #: Held by the one plan that is being made.
    planning: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    downloads: Downloads = field(init=False)
    #: What the status page shows of the last minutes. `keep_history` is a task of the router.
    timeline: Timeline = field(default_factory=Timeline, init=False)
    history: History = field(default_factory=History, init=False)
    events: Feed = field(init=False)
    stats: Stats = field(init=False)

    def __post_init__(self) -> None:
        self.events = Feed(self.pool.snapshot, self._info, lambda: visible(self.known.definitions))
        self.pool.journal.follow(self.events.heard, *self.events.HEARD)
        self.pool.journal.follow(lambda entry: self.timeline.note([entry], self._label), *self.timeline.HEARD)
        self.stats = Stats(self.pool.journal.routine_requests)
        self.pool.journal.follow(self.stats.heard, *self.stats.HEARD)
        self.proxy = ProxyContext(self.pool, self._patience, self._slots)
        self.pool.journal.follow(self.metrics.decisions.heard, *self.metrics.decisions.HEARD)
        # Not entered: it lists what there is, nothing. `router.app` puts one in its place that also fetches.
        self.downloads = Downloads(None, hf_cache_dir(), lambda: self.config.downloads, self.reload)

    async def keep_history(self) -> None:
        """For ever: note what was measured."""
        while True:
            self.history.note(self.pool.snapshot(), time.time())
            await asyncio.sleep(EVERY_SECONDS)

    def _label(self, device: DeviceId) -> str:
        return next((one.label for one in self.pool.snapshot().devices if one.id == device), device)

    def _patience(self) -> HeartbeatConfig:
        server = self.config.server
        return HeartbeatConfig(server.stream_head_seconds, server.stream_heartbeat_seconds)

    def _slots(self, model: ModelName) -> int | None:
        definition = self.known.definitions.by_name.get(model)
        return (definition.entry.preset.parallel or 1) if definition is not None else None

    def _info(self, model: ModelName) -> Mapping[str, Any] | None:
        card = self.known.cards.by_name.get(model)
        return None if card is None else cast(Mapping[str, Any], msgspec.to_builtins(card))

    def name_of(self, name: str) -> ModelName:
        """The canonical name of a model or alias. Raises ModelNotFound, which tells the names there are, and
        AmbiguousModel.
        """
        return self.known.catalog.id_of(name)

    def name_or_default(self, name: str | None) -> ModelName:
        """The same of a request for inference, which may name no model. Raises InvalidRequest then, where
        there is no default either.
        """
        if name:
            return self.name_of(name)
        return self.known.catalog.default(self.config.server.default_model).id


CONTEXT = web.AppKey("context", Context)

#: What `name_of` raises, for `/openapi.json`.
NAME_REFUSALS: Final = (ModelNotFound, AmbiguousModel)
