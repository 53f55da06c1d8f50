"""What a router would see if it were started now: models by the configuration, devices as they are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from router.api.plan import model_body, plan_body
from router.backends.llama_server import find_binary, list_devices
from router.catalog import Catalog
from router.config import Config, load_config
from router.core.policy import make_policy
from router.core.scheduler import Scheduler, Settings
from router.core.types import Measured
from router.definitions import define
from router.devices import Devices, Sample
from router.errors import StartupError
from router.hosts.room import Room
from router.planning import Seen

#: The name of a router's own machine, as `router.hosts.local` has it.
_HOST: Final = "local"


class Offline:
    """The answers of /vram?model= and /vram/plan, without a router; what was learned is not looked up.

    Reads headers and asks drivers: seconds. Raises StartupError where the configuration is wrong.
    """

    def __init__(self, config_path: Path | None, environ: Mapping[str, str] = os.environ) -> None:
        config = load_config(config_path)
        self._catalog = Catalog.scan(config)
        binary = _binary(config)
        sample = asyncio.run(_sample(binary))
        room = Room(_HOST, config.memory)
        devices = room.devices(sample)
        definitions = define(
            self._catalog,
            config,
            devices,
            room.infos(sample),
            binary=binary or Path("llama-server"),
            environ=dict(environ),
        )
        self._scheduler = Scheduler(
            definitions.models,
            devices,
            make_policy(config.scheduler.policy, config.scheduler.ttl_seconds),
            Settings(models_max=config.scheduler.models_max, placement=config.scheduler.placement),
        )
        self._scheduler.handle(Measured(room.measurement(sample, (), 0).free, at=0.0), 0.0)
        self._seen = Seen(definitions, self._scheduler.snapshot(0.0))

    def model(self, name: str, ctx_size: int | None) -> dict[str, Any]:
        """Raises ModelNotFound, ModelUnusable."""
        name = self._catalog.resolve(name).id
        definition = self._seen.defined(name, ctx_size)
        explanation = self._scheduler.explain(name, 0.0, definition.model)
        return dict(model_body(self._seen, definition, explanation))

    def models(self, names: tuple[str, ...], ctx_size: int | None) -> dict[str, Any]:
        """Raises ModelNotFound, ModelUnusable."""
        resolved = tuple(dict.fromkeys(self._catalog.resolve(name).id for name in names))
        return dict(plan_body(self._seen, resolved, ctx_size))


def _binary(config: Config) -> Path | None:
    try:
        return find_binary(config.paths.llama_server)
    except StartupError:
        return None  # it is needed only for devices that nothing else knows


async def _sample(binary: Path | None) -> Sample:
    async with Devices(list_devices=None if binary is None else lambda: list_devices(binary)) as devices:
        return await devices.sample(now=asyncio.get_running_loop().time())
