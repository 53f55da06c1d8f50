"""The models: looked for and defined at the start, and anew on a reload."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from router.admin import Context, Known
from router.config import Config
from router.db.store import Store
from router.errors import RouterError, Unavailable
from router.hosts.local import LocalHost
from router.hosts.records import LOAD_TIMES
from router.ids import Definition
from router.memory.devices import DeviceInfo
from router.memory.estimate.learning import Prediction
from router.models.catalog import Catalog
from router.models.definitions import define
from router.presets import Overrides
from router.presets.overrides import read
from router.scheduler.types import Device, DeviceId, Model, ModelName
from router.supervisor.calibration import Learning, predictions, predictions_of

log = logging.getLogger("router.app")


class Models:
    """Finds out what there is: reads the configuration, looks at the disk, asks the host for its devices."""

    def __init__(
        self,
        read_config: Callable[[], Config],
        host: LocalHost,
        binary: Path,
        learning: Learning,
        store: Store,
    ) -> None:
        self._read_config = read_config
        self._host = host
        self._binary = binary
        self._learning = learning
        self._store = store
        self._reloading = asyncio.Lock()

    async def define(
        self, config: Config, catalog: Catalog, former: Known | None = None
    ) -> tuple[Known, Mapping[ModelName, Model], tuple[Device, ...]]:
        """What there is, and the models as the scheduler shall know them: with what was learned of each, and
        how long its loads took.
        `former` has the definitions of those that the catalog has kept. Raises RouterError.
        """
        devices = await self._host.devices()
        try:
            known, predicted = await asyncio.to_thread(self._know, config, catalog, devices, former)
        except OSError as error:
            raise Unavailable(
                f"cannot look at the models: {error}; allow the router more files (ulimit -n)",
                retry_after_seconds=1.0,
            ) from error
        times = await self._store.rows(LOAD_TIMES)
        models = {
            name: replace(model, measured_load_seconds=times[model.definition].seconds)
            if model.definition in times
            else model
            for name, model in known.definitions.models.items()
        }
        return known, self._learning.define(models, predicted, devices), devices

    async def vary(self, known: Known, name: ModelName, overrides: Overrides) -> Model:
        """The model as one load with other settings gets it. Raises RouterError for what it cannot have."""
        devices = await self._host.devices()
        model, places = await asyncio.to_thread(_varied, known, name, overrides, devices)
        own = known.definitions.by_name[name].model
        return model if model.definition == own.definition else self._learning.vary(model, places)

    async def recall(self, known: Known, name: ModelName, definition: Definition) -> None:
        """With which settings a child of an earlier router was loaded: so that what it takes is known."""
        if not definition.overrides or name not in known.definitions.by_name:
            return
        try:
            if (overrides := read(definition)) is not None:
                await self.vary(known, name, overrides)
        except RouterError as error:
            log.warning("%s runs with settings that it could not be given now: %s", name, error.message)

    async def reload(self, context: Context) -> None:
        """Look again: what did not change keeps serving, and so does what cannot be looked at just now.
        Raises RouterError, and then all stays as it was.

        Sections that decide how the router itself was built take effect with its next start.
        """
        async with self._reloading:
            config = _applicable(context.config, await asyncio.to_thread(self._read_config))
            scanned = await asyncio.to_thread(Catalog.scan, config)
            await self._replace(context, config, scanned.keeping(context.known.catalog))
            log.info("reloaded: %d models", len(context.known.definitions.by_name))

    async def look_again(self, context: Context) -> None:
        """Where a device has come, or is well again, place all models anew; all else stays as it is. A driver
        may be slow to open, and what was placed without it would stay on the host until a reload."""
        if _same_devices(context.known.definitions.infos, self._host.infos):
            return
        async with self._reloading:
            if _same_devices(context.known.definitions.infos, self._host.infos):
                return  # who came before has done it
            log.info("the devices are others than before: placing all models anew")
            try:
                await self._replace(context, context.config, context.known.catalog)
            except RouterError as error:  # the next request tries again
                log.warning("not placed anew: %s", error.message)

    async def _replace(self, context: Context, config: Config, catalog: Catalog) -> None:
        known, placed, devices = await self.define(config, catalog, context.known)
        context.config, context.known = config, known
        await context.pool.reload(placed, devices)

    def _know(
        self, config: Config, catalog: Catalog, devices: Sequence[Device], former: Known | None
    ) -> tuple[Known, Mapping[ModelName, tuple[Prediction, ...]]]:
        """Reads headers: a thread's work."""
        for warning in catalog.warnings:
            log.warning("%s", warning)
        definitions = define(
            catalog, config, devices, self._host.infos, binary=self._binary, environ=dict(os.environ)
        )
        if former is not None and catalog.kept:
            kept = {name: former.definitions.by_name[name] for name in catalog.kept}
            definitions = replace(definitions, by_name={**definitions.by_name, **kept})
        return Known.of(catalog, definitions), predictions(definitions, devices)


def _same_devices(before: Mapping[DeviceId, DeviceInfo], now: Mapping[DeviceId, DeviceInfo]) -> bool:
    """As far as it decides where models can be placed. Whether one that has its own memory is well is for the
    scheduler to see."""

    def telling(infos: Mapping[DeviceId, DeviceInfo]) -> dict[DeviceId, tuple[int, bool]]:
        return {
            name: (one.total_bytes, one.pool == one.id or one.free_bytes is not None)
            for name, one in infos.items()
        }

    return not now or telling(before) == telling(now)


def _varied(
    known: Known, name: ModelName, overrides: Overrides, devices: Sequence[Device]
) -> tuple[Model, tuple[Prediction, ...]]:
    """Arithmetic, and a look at files: a thread's work."""
    definition = known.definitions.overridden(name, overrides, devices)
    return definition.model, predictions_of(known.definitions, definition, devices)


def _applicable(old: Config, new: Config) -> Config:
    for section in ("server", "memory", "scheduler"):
        if getattr(old, section) != getattr(new, section):
            log.warning("[%s] has changed; that takes effect when the router is started again", section)
    paths = replace(new.paths, state_dir=old.paths.state_dir, llama_server=old.paths.llama_server)
    return replace(new, server=old.server, memory=old.memory, scheduler=old.scheduler, paths=paths)
