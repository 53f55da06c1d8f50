"""Every part with its owner: `PARTS` in the order in which they are opened; a shutdown is that list read
backwards."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from router import admin
from router.admin import CONTEXT, Context, Known
from router.admin.access_log import ACCESS_LOG
from router.admin.allowed_hosts import ALLOWED_HOSTS
from router.admin.keys import KEYS
from router.admin.page import keep_history, keep_timeline
from router.admin.requests import IN_FLIGHT
from router.app.background import BACKGROUND, Background
from router.app.handover import HandoverState, Predecessor
from router.app.models import Models
from router.app.read_ahead import SPARE_SHARE, ReadAhead, spare_bytes
from router.app.relay import RELAY, Relay, relay_after_handover
from router.app.requests import REQUESTS, Requests, count_requests
from router.app.stalls import watch_for_stalls
from router.config import Config, MemoryConfig, SchedulerConfig, StatePaths
from router.db.store import Store
from router.downloads import Downloads
from router.engines.llama_server import CPU_FALLBACK_TEXTS, list_devices
from router.hosts.local import LocalHost
from router.http.express import Express
from router.memory.devices import Devices
from router.models.catalog import Catalog, hf_cache_dir
from router.models.definitions import Reading
from router.observability.journal import Entry, Journal
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import Device, InstanceId, Model, ModelName, Pinned, Start
from router.supervisor.calibration import Learning, LoadModes
from router.supervisor.pool import Pool

log = logging.getLogger("router.app")


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


@dataclass(frozen=True, slots=True)
class Defined:
    """What there was at the start: the models, also as the scheduler shall know them, and the devices."""

    known: Known
    models: Mapping[ModelName, Model]
    devices: tuple[Device, ...]


SETUP = web.AppKey("setup", Setup)
STORE = web.AppKey("store", Store)
DEVICES = web.AppKey("devices", Devices)
LEARNING = web.AppKey("learning", Learning)
LOAD_MODES = web.AppKey("load_modes", LoadModes)
HOST = web.AppKey("host", LocalHost)
MODELS = web.AppKey("models", Models)
DEFINED = web.AppKey("defined", Defined)
#: Lease -> instance: what the predecessor still streams from.
LEASES = web.AppKey("leases", Mapping[str, InstanceId])
POOL = web.AppKey("pool", AsyncExitStack)


def build(setup: Setup) -> web.Application:
    """The whole router as an application that is not started yet."""
    app = admin.application(setup.config.server)
    app[SETUP], app[REQUESTS], app[BACKGROUND] = setup, Requests(), Background()
    app[RELAY] = Relay()
    behind = len(admin.FIRST)
    app.middlewares[behind:behind] = [count_requests, relay_after_handover]
    app.cleanup_ctx.extend(PARTS)
    app.on_shutdown.append(_close_pool)
    return app


def express(app: web.Application) -> Express:
    """The short way to the parts, once they are opened."""
    return Express(
        app[CONTEXT], app[KEYS], app[ALLOWED_HOSTS], app[IN_FLIGHT], app[REQUESTS], app[ACCESS_LOG]
    )


@asynccontextmanager
async def _store(app: web.Application) -> AsyncIterator[None]:
    async with Store(app[SETUP].paths.database) as app[STORE]:
        yield


@asynccontextmanager
async def _devices(app: web.Application) -> AsyncIterator[None]:
    async with Devices(list_devices=lambda: list_devices(app[SETUP].binary)) as app[DEVICES]:
        yield


@asynccontextmanager
async def _host(app: web.Application) -> AsyncIterator[None]:
    setup = app[SETUP]
    grace = setup.config.child.stop_grace_seconds
    host = LocalHost(
        app[DEVICES],
        app[STORE],
        setup.paths,
        setup.config.memory,
        stop_grace_seconds=grace,
        fallback_texts=CPU_FALLBACK_TEXTS,
    )
    models = app[MODELS] = Models(setup.read_config, host, setup.binary, app[LEARNING], app[STORE])
    # Before anything of an earlier router is touched: if this fails, that one serves on.
    app[DEFINED] = Defined(*await models.define(setup.config, setup.catalog))
    left = await setup.predecessor.let_go() if setup.predecessor is not None else HandoverState()
    app[LEASES] = left.leases
    for record in left.children:
        await app[STORE].put_process(record)
    async with host as app[HOST]:
        yield


def give_back(app: web.Application) -> None:
    """Leave what was adopted to the next router. To be called where this one does not start, though its
    predecessor has let go of its children for it: that one starts another, and none of them shall end.
    """
    if app[SETUP].predecessor is not None and HOST in app:
        app[HOST].hand_over()


@asynccontextmanager
async def _learning(app: web.Application) -> AsyncIterator[None]:
    async with Learning(app[STORE]) as app[LEARNING]:
        yield


@asynccontextmanager
async def _load_modes(app: web.Application) -> AsyncIterator[None]:
    def reading_of(start: Start) -> Reading | None:
        """With other settings than its own a model may take other memory: it is read as they say."""
        definitions = app[CONTEXT].known.definitions
        return None if start.definition else definitions.reading(start.model, start.placement)

    def page_cache_bytes() -> float:
        return SPARE_SHARE * spare_bytes(app[CONTEXT].pool.measurements)

    async with LoadModes(app[STORE], reading_of, page_cache_bytes) as app[LOAD_MODES]:
        yield


@asynccontextmanager
async def _background(app: web.Application) -> AsyncIterator[None]:
    async with app[BACKGROUND]:
        yield


@asynccontextmanager
async def _pool(app: web.Application) -> AsyncIterator[None]:
    host, config, models = app[HOST], app[SETUP].config, app[MODELS]
    known, defined = app[DEFINED].known, app[DEFINED].models
    policy = make_policy(config.scheduler.policy, config.scheduler.ttl_seconds)
    pool = Pool(
        Scheduler(defined, app[DEFINED].devices, policy, _settings(config.scheduler, config.memory)),
        [host],
        lambda *start: app[CONTEXT].known.definitions.launch(*start),  # noqa: PLW0108 - a reload replaces them
        Journal(),
        definitions=defined,
        check=lambda model: app[CONTEXT].known.definitions.check(model),  # noqa: PLW0108 - as above
        learner=app[LEARNING],
        loader=app[LOAD_MODES],
        look_again=lambda: models.look_again(app.get(CONTEXT)),
        measure_max_age_seconds=config.memory.measure_max_age_ms / 1000,
        poll_seconds=config.memory.poll_seconds,
        stop_grace_seconds=lambda model: _stop_grace_seconds(app[CONTEXT], model),
    )
    # A shutdown closes it early (`_close_pool`), and then there is nothing left for this to close.
    async with AsyncExitStack() as app[POOL]:
        await app[POOL].enter_async_context(pool)
        context = Context(config, known, pool, lambda: models.reload(context), app[BACKGROUND].spawn)
        context.vary = models.vary
        app[CONTEXT] = context
        keep_timeline(app)  # before anything is decided
        app[POOL].callback(context.proxy.close)
        try:
            await _adopt(app, pool)
        except Exception:
            give_back(app)  # here and not only where it is caught: the pool would end them
            raise
        for name, definition in known.definitions.by_name.items():
            if definition.entry.preset.load_on_startup:
                app[BACKGROUND].spawn(pool.load(name), name=f"load {name} on startup")
        yield


async def _adopt(app: web.Application, pool: Pool) -> None:
    """What an earlier router left goes on serving, or is stopped; until it is gone its memory counts."""
    leases = app[LEASES]
    for record in await app[HOST].instances():
        log.info("%s of an earlier router lives on as pid %s", record.instance, record.pid)
        try:
            await app[MODELS].recall(app[DEFINED].known, record.model, record.definition)
            pool.adopt(record, [_earlier(lease) for lease, held in leases.items() if held == record.instance])
        except Exception:  # its record is not understood: no reason not to serve the others
            log.exception("cannot adopt %s; it is stopped", record.instance)
            await app[HOST].discard(record)
    await pool.measure()
    predecessor = app[SETUP].predecessor
    if predecessor is not None:
        app[BACKGROUND].spawn(_release(predecessor, leases, pool, app[REQUESTS]), name="predecessor")


async def _release(predecessor: Predecessor, leases: Iterable[str], pool: Pool, requests: Requests) -> None:
    """Its streams end one by one, and at the latest with the predecessor. A shutdown waits for them, too."""
    left = set(leases)
    requests.begun()
    try:
        async for lease in predecessor.ended():
            left.discard(lease)
            pool.end_adopted(_earlier(lease))
    finally:
        for lease in left:
            pool.end_adopted(_earlier(lease))
        requests.ended()


def _earlier(lease: str) -> str:
    """Its name here, where leases are numbered anew."""
    return f"earlier {lease}"


@asynccontextmanager
async def _reading(app: web.Application) -> AsyncIterator[None]:
    context = app[CONTEXT]

    def files_of(model: ModelName) -> tuple[Path, ...]:
        definition = context.known.definitions.by_name.get(model)
        if definition is None or not context.config.memory.read_ahead:
            return ()
        is_direct = app[LOAD_MODES].goes_past_page_cache(model)
        if is_direct or context.known.definitions.load_mode(model) == "dio":  # past the page cache
            return ()
        return context.known.definitions.files(model)

    ahead = ReadAhead(files_of, lambda: spare_bytes(context.pool.measurements))
    context.pool.journal.follow(ahead.heard, *ahead.HEARD)
    task = app[BACKGROUND].spawn(ahead.run(), name="read ahead")
    yield
    task.cancel()


@asynccontextmanager
async def _second_opinions(app: web.Application) -> AsyncIterator[None]:
    async def tell() -> None:
        async for event in app[LEARNING].second_opinions():
            app[CONTEXT].pool.tell(event)

    task = app[BACKGROUND].spawn(tell(), name="second opinions")
    yield
    task.cancel()


@asynccontextmanager
async def _downloads(app: web.Application) -> AsyncIterator[None]:
    """Those that an earlier router did not finish go on."""
    context, models = app[CONTEXT], app[MODELS]
    fetching = Downloads(
        app[STORE], hf_cache_dir(), lambda: context.config.downloads, lambda: models.reload(context)
    )
    async with fetching:
        context.downloads = fetching
        stop = fetching.listen(context.events.tell)
        yield
        stop()


@asynccontextmanager
async def _pins(app: web.Application) -> AsyncIterator[None]:
    """What an operator said outlives the router, as the models do that it was said of."""
    pool, store = app[CONTEXT].pool, app[STORE]
    for model, pinned in (await store.pins()).items():
        pool.pin(model, pinned)

    def heard(entry: Entry) -> None:
        if isinstance(entry.event, Pinned):
            keep = store.put_pin(entry.event.model, entry.event.pinned)
            app[BACKGROUND].spawn(keep, name=f"keep the pin of {entry.event.model}")

    pool.journal.follow(heard, Pinned)
    yield


@asynccontextmanager
async def _events(app: web.Application) -> AsyncIterator[None]:
    task = app[BACKGROUND].spawn(app[CONTEXT].events.look(), name="events")
    yield
    task.cancel()


@asynccontextmanager
async def _stalls(app: web.Application) -> AsyncIterator[None]:
    context = app[CONTEXT]
    watch = watch_for_stalls(
        context.proxy.traffic, app[HOST], lambda: context.config.child.serving_stall_seconds
    )
    task = app[BACKGROUND].spawn(watch, name="stalls")
    yield
    task.cancel()


@asynccontextmanager
async def _status(app: web.Application) -> AsyncIterator[None]:
    """The line that the status page shows is drawn from the start, whoever looks."""
    task = app[BACKGROUND].spawn(keep_history(app), name="status history")
    yield
    task.cancel()


PARTS: Final = (
    _store,
    _learning,
    _load_modes,
    _devices,
    _host,
    _background,
    _pool,
    _pins,
    _reading,
    _second_opinions,
    _downloads,
    _events,
    _stalls,
    _status,
)


async def _close_pool(app: web.Application) -> None:
    """Stop the children while their clients are still connected, so that every stream ends with a word."""
    if POOL in app:
        await app[POOL].aclose()


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


def longest_stop_seconds(context: Context) -> float:
    """The longest grace that one of the models has to exit."""
    return max(
        (_stop_grace_seconds(context, model) for model in context.known.definitions.by_name),
        default=context.config.child.stop_grace_seconds,
    )


def _stop_grace_seconds(context: Context, model: ModelName) -> float:
    definition = context.known.definitions.by_name.get(model)
    own = definition.entry.preset.stop_grace_seconds if definition is not None else None
    return own if own is not None else context.config.child.stop_grace_seconds
