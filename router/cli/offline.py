"""What a router would see if it were started now: models by the configuration, devices as they are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from router.admin.plan import model_body, plan_body
from router.config import Config
from router.engines.llama_server import find_binary, list_devices, refused_args
from router.errors import ModelUnusable, RouterError, StartupError
from router.hosts.admission import Admission
from router.memory.devices import Devices, Sample
from router.models.catalog import Catalog
from router.models.definitions import define
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import Measured
from router.supervisor.planning import Seen

#: The name of a router's own machine, as `router.hosts.local` has it.
_HOST: Final = "local"


class Offline:
    """The answers of /vram?model= and /vram/plan, without a router; what was learned is not looked up.

    Reads headers and asks drivers: seconds.
    """

    def __init__(self, config: Config, catalog: Catalog, environ: Mapping[str, str] = os.environ) -> None:
        self._catalog = catalog
        self._binary = binary = _binary(config)
        sample = asyncio.run(_sample(binary))
        admission = Admission(_HOST, config.memory)
        devices = admission.devices(sample)
        definitions = define(
            self._catalog,
            config,
            devices,
            admission.infos(sample),
            binary=binary or Path("llama-server"),
            environ=dict(environ),
        )
        self._scheduler = Scheduler(
            definitions.models,
            devices,
            make_policy(config.scheduler.policy, config.scheduler.ttl_seconds),
            Settings(models_max=config.scheduler.models_max, placement=config.scheduler.placement),
        )
        self._scheduler.handle(Measured(admission.measurement(sample, (), 0).free, at=0.0), 0.0)
        self._seen = Seen(definitions, self._scheduler.snapshot(0.0))

    def model(self, name: str, ctx_size: int | None) -> dict[str, Any]:
        """Raises ModelNotFound, ModelUnusable."""
        name = self._catalog.resolve(name).id
        definition = self._seen.defined(name, ctx_size)
        explanation = self._scheduler.explain(name, 0.0, definition.model)
        answer: dict[str, Any] = msgspec.to_builtins(model_body(self._seen, definition, explanation))
        return answer

    def models(self, names: tuple[str, ...], ctx_size: int | None) -> dict[str, Any]:
        """Raises ModelNotFound, ModelUnusable."""
        resolved = tuple(dict.fromkeys(self._catalog.resolve(name).id for name in names))
        answer: dict[str, Any] = msgspec.to_builtins(plan_body(self._seen, resolved, ctx_size))
        return answer

    def refusals(self) -> dict[str, str]:
        """By model: why every load of it would be refused, whatever is loaded beside it."""
        found = {entry.id: reason for entry in self._catalog.models if (reason := self._refusal(entry.id))}
        return found | asyncio.run(self._refused_by_binary(found.keys()))

    def _refusal(self, name: str) -> str | None:
        definition = self._seen.definitions.by_name[name]
        if (entry_error := definition.entry.error) is not None:
            return entry_error
        if definition.model.error is not None:
            return definition.model.error.message
        try:
            for placement in definition.model.placements:
                self._seen.definitions.launch(name, placement)
        except RouterError as error:
            return error.message
        refusal = self._scheduler.explain(name, 0.0, definition.model).refusal
        return refusal.message if isinstance(refusal, ModelUnusable) else None

    async def _refused_by_binary(self, others: Collection[str]) -> dict[str, str]:
        """By model: what llama-server itself says of its arguments, each list of them tried once."""
        if self._binary is None:
            return {}
        by_args: dict[tuple[str, ...], list[str]] = {}
        for entry in self._catalog.models:
            if entry.id not in others and entry.preset.args:
                by_args.setdefault(entry.preset.args, []).append(entry.id)
        refused: dict[str, str] = {}
        for args, names in by_args.items():
            try:
                reason = await refused_args(self._binary, args)
            except StartupError as error:
                reason = error.message
            if reason is not None:
                refused |= dict.fromkeys(names, f"{self._binary} does not start with its args: {reason}")
        return refused


def _binary(config: Config) -> Path | None:
    try:
        return find_binary(config.paths.llama_server)
    except StartupError:
        return None  # it is needed only for devices that nothing else knows


async def _sample(binary: Path | None) -> Sample:
    async with Devices(list_devices=None if binary is None else lambda: list_devices(binary)) as devices:
        return await devices.sample(now=asyncio.get_running_loop().time())
