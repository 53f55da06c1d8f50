"""The running server: from a Config to its parts, and back to nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from router import admin
from router.admin import CONTEXT, Context
from router.admin.access_log import ACCESS_LOG
from router.admin.allowed_hosts import ALLOWED_HOSTS
from router.admin.cors import ORIGINS
from router.admin.keys import KEYS
from router.app.background import Background
from router.app.handover import HandoverState, Predecessor
from router.app.models import Models
from router.app.read_ahead import ReadAhead, spare_bytes
from router.app.relay import Relay
from router.app.requests import Requests
from router.app.stalls import watch_for_stalls
from router.config import Config, MemoryConfig, SchedulerConfig, StatePaths
from router.db.store import Store, Table
from router.downloads import Downloads
from router.engines import Launch
from router.engines.llama_server import CPU_FALLBACK_TEXTS, list_devices
from router.hosts.local import LocalHost
from router.hosts.records import LOAD_TIMES, keep_record
from router.http.inference import ProxiedRoutes
from router.ids import Definition
from router.memory.devices import Devices
from router.memory.estimate.learning import FORGET_SECONDS
from router.models.catalog import Catalog, hf_cache_dir
from router.observability.journal import Entry, Journal
from router.proxy.body import BODY_LIMITS
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import Device, Model, ModelName, Pinned, Placement
from router.supervisor.calibration import Learning
from router.supervisor.pool import Pool

log = logging.getLogger("router.app")


#: What an operator said of a model.
PINS: Final = Table("pins", str, bool)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is settled before anything is opened. `read_config` reads the configuration anew, for a reload;
    `predecessor` is the process whose place this one takes.
    """

    config: Config
    catalog: Catalog
    paths: StatePaths
    binary: Path
    read_config: Callable[[], Config]
    predecessor: Predecessor | None = None


class Router:
    """The running server; its fields are its parts. `app` is its application: starting that opens the parts
    in the order of `_open`, and its cleanup closes them in reverse.
    """

    #: What the handlers work with: from when the parts are open.
    context: Context

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        self.setup = setup
        self.requests = Requests()
        self.background = Background()
        self.relay = Relay()
        self.store = Store(setup.paths.database)
        self.learning = Learning(self.store)
        self.devices = Devices(list_devices=lambda: list_devices(setup.binary))
        self.host = LocalHost(
            self.devices,
            self.store,
            setup.paths,
            config.memory,
            stop_grace_seconds=config.child.stop_grace_seconds,
            fallback_texts=CPU_FALLBACK_TEXTS,
        )
        self.models = Models(setup.read_config, self.host, setup.binary, self.learning, self.store)
        #: Whether the pool is open, so that there is a `context`.
        self.is_open = False
        #: Whether the predecessor has let go of its children for this process, which does not serve yet.
        self._is_taking_over = False
        #: The pool, which a shutdown closes before everything else.
        self._pool = AsyncExitStack()
        self.app = admin.application(config.server)
        behind = len(admin.FIRST)
        self.app.middlewares[behind:behind] = [self.requests.count_request, self.relay.after_handover]
        self.app.cleanup_ctx.append(self._parts)
        self.app.on_shutdown.append(self._close_pool)

    def proxied_routes(self) -> ProxiedRoutes:
        """The routes that instances answer, once the parts are open."""
        app, context = self.app, self.context
        return ProxiedRoutes(
            admin.PROXIED_ROUTES,
            context,
            context.proxy,
            keys=app[KEYS],
            hosts=app[ALLOWED_HOSTS],
            origins=app[ORIGINS],
            counting=self.requests,
            access_log=app[ACCESS_LOG],
            body_limits=app[BODY_LIMITS],
        )

    def has_taken_over(self) -> None:
        """It accepts requests: the predecessor need not start another."""
        if self.setup.predecessor is not None:
            self.setup.predecessor.serving()
        self._is_taking_over = False

    def give_back(self) -> None:
        """Leave what was adopted to the next router. To be called where this one does not start, though its
        predecessor has let go of its children for it: that one starts another, and none of them shall end.
        """
        if self._is_taking_over:
            self._is_taking_over = False
            self.host.hand_over()

    async def reload(self) -> None:
        """Look for the models again. Raises RouterError, and then all stays as it was."""
        await self.models.reload(self.context)

    def longest_stop_seconds(self) -> float:
        """The longest grace that one of the models has to exit."""
        graces = map(self._stop_grace_seconds, self.context.known.definitions.by_name)
        return max(graces, default=self.context.config.child.stop_grace_seconds)

    # --- opened and closed ---

    async def _parts(self, _: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as parts:
            try:
                await self._open(parts)
            except Exception:
                self.give_back()  # here and not only where it is caught: the pool would end them
                raise
            yield

    async def _close_pool(self, _: web.Application) -> None:
        """Stop the children while their clients are still connected, so that every stream ends in order."""
        await self._pool.aclose()

    async def _open(self, parts: AsyncExitStack) -> None:
        """Each part, and the tasks that end before it is closed."""
        setup, config, enter = self.setup, self.setup.config, parts.enter_async_context

        def run(coroutine: Coroutine[Any, Any, None], name: str) -> None:
            parts.callback(self.background.spawn(coroutine, name=name).cancel)

        await enter(self.store)
        await enter(self.learning)
        await self.store.delete_old(LOAD_TIMES, older_than=time.time() - FORGET_SECONDS)
        await enter(self.devices)
        # Before anything of an earlier router is touched: if this fails, that one serves on.
        known, models, devices = await self.models.define(config, setup.catalog)
        left = HandoverState()
        if setup.predecessor is not None:
            left = await setup.predecessor.let_go()
        for record in left.children:
            await keep_record(self.store, record)
        await enter(self.host)
        self._is_taking_over = setup.predecessor is not None
        await enter(self.background)
        pool = self._make_pool(models, devices)
        context = Context(config, known, pool, self.reload, self.background.spawn, self.models.vary)
        self.context = self.app[CONTEXT] = context
        await enter(self._pool)
        await self._pool.enter_async_context(pool)
        self._pool.callback(context.proxy.close)
        self.is_open = True
        await self._adopt(left.leases)
        await self._keep_pins()
        ahead = ReadAhead(self._files_to_read, self._spare_bytes)
        pool.journal.follow(ahead.heard, *ahead.HEARD)
        run(ahead.run(), "read ahead")
        run(self._pass_on_opinions(), "second opinions")
        # Those that an earlier router did not finish go on.
        context.downloads = await enter(
            Downloads(self.store, hf_cache_dir(), lambda: context.config.downloads, self.reload)
        )
        parts.callback(context.downloads.listen(context.events.tell))
        run(context.events.look(), "events")
        run(watch_for_stalls(context.proxy.traffic, self.host, self._stall_seconds), "stalls")
        # The line that the status page shows is drawn from the start, whoever looks.
        run(context.keep_history(), "status history")
        for name, definition in known.definitions.by_name.items():
            if definition.entry.preset.load_on_startup:
                self.background.spawn(pool.load(name), name=f"load {name} on startup")

    def _make_pool(self, models: Mapping[ModelName, Model], devices: Sequence[Device]) -> Pool:
        config = self.setup.config
        policy = make_policy(config.scheduler.policy, config.scheduler.ttl_seconds)
        return Pool(
            Scheduler(models, devices, policy, _settings(config.scheduler, config.memory)),
            [self.host],
            self._launch,
            Journal(),
            definitions=models,
            check=self._check,
            learner=self.learning,
            look_again=self._look_again,
            measure_max_age_seconds=config.memory.measure_max_age_ms / 1000,
            poll_seconds=config.memory.poll_seconds,
            stop_grace_seconds=self._stop_grace_seconds,
        )

    async def _adopt(self, leases: Mapping[str, str]) -> None:
        """What an earlier router left goes on serving, or is stopped; until it is gone its memory counts.
        `leases` (lease -> instance) are those of requests that the predecessor still streams.
        """
        pool = self.context.pool
        for record in await self.host.instances():
            log.info("%s of an earlier router lives on as pid %s", record.instance, record.pid)
            try:
                await self.models.recall(self.context.known, record.model, record.definition)
                pool.adopt(
                    record, [_earlier(lease) for lease, held in leases.items() if held == record.instance]
                )
            except Exception:  # its record is not understood: no reason not to serve the others
                log.exception("cannot adopt %s; it is stopped", record.instance)
                await self.host.stop(record.instance, grace_seconds=10.0)
        await pool.measure()
        if self.setup.predecessor is not None:
            ending = self._end_leases(self.setup.predecessor, set(leases))
            self.background.spawn(ending, name="predecessor")

    async def _end_leases(self, predecessor: Predecessor, left: set[str]) -> None:
        """Its streams end one by one, and at the latest with the predecessor. A shutdown waits for them."""
        pool = self.context.pool
        self.requests.begun()
        try:
            async for lease in predecessor.ended():
                left.discard(lease)
                pool.end_adopted(_earlier(lease))
        finally:
            for lease in left:
                pool.end_adopted(_earlier(lease))
            self.requests.ended()

    async def _keep_pins(self) -> None:
        """What an operator said outlives the router, as the models do that it was said of."""
        pool, store = self.context.pool, self.store
        for model, pinned in (await store.rows(PINS)).items():
            pool.pin(model, pinned)

        def heard(entry: Entry) -> None:
            if isinstance(entry.event, Pinned):
                model, pinned = entry.event.model, entry.event.pinned
                keep = store.delete(PINS, model) if pinned is None else store.put(PINS, model, pinned)
                self.background.spawn(keep, name=f"keep the pin of {model}")

        pool.journal.follow(heard, Pinned)

    async def _pass_on_opinions(self) -> None:
        async for event in self.learning.second_opinions():
            self.context.pool.tell(event)

    # --- what a part asks of the others: of the models as they are known then ---

    def _launch(self, model: ModelName, placement: Placement, definition: Definition) -> Launch:
        return self.context.known.definitions.launch(model, placement, definition)

    def _check(self, model: ModelName) -> None:
        self.context.known.definitions.check(model)

    async def _look_again(self) -> None:
        await self.models.look_again(self.context)

    def _files_to_read(self, model: ModelName) -> tuple[Path, ...]:
        definitions = self.context.known.definitions
        if model not in definitions.by_name or not self.context.config.memory.read_ahead:
            return ()
        if definitions.load_mode(model) == "dio":  # which goes past the page cache
            return ()
        return definitions.files(model)

    def _spare_bytes(self) -> int:
        return spare_bytes(self.context.pool.measurements)

    def _stop_grace_seconds(self, model: ModelName) -> float:
        definition = self.context.known.definitions.by_name.get(model)
        own = definition.entry.preset.stop_grace_seconds if definition is not None else None
        return own if own is not None else self.context.config.child.stop_grace_seconds

    def _stall_seconds(self) -> float:
        return self.context.config.child.serving_stall_seconds


def _earlier(lease: str) -> str:
    """The name here of a lease of the predecessor: leases are numbered anew."""
    return f"earlier {lease}"


def _settings(scheduler: SchedulerConfig, memory: MemoryConfig) -> Settings:
    return Settings(
        models_max=scheduler.models_max,
        queue_limit=scheduler.queue_limit,
        queue_timeout=scheduler.queue_timeout_seconds,
        quantum=scheduler.quantum,
        linger=scheduler.linger,
        recovery=memory.recovery_seconds,
        external_memory_wait=memory.external_memory_wait_seconds,
        backoff_initial=scheduler.backoff_initial_seconds,
        backoff_max=scheduler.backoff_max_seconds,
        unload_deadline=scheduler.unload_deadline_seconds,
        placement=scheduler.placement,
        evict_on_memory_pressure=memory.evict_on_memory_pressure,
    )
