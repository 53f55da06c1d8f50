"""What of a changed configuration takes effect without a new start."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.app.models import Models, _applicable
from router.config import ChildConfig, Config, PathsConfig, SchedulerConfig, ServerConfig
from router.db.store import Store
from router.errors import Unavailable
from router.hosts.records import keep_load_time
from router.memory.devices import DeviceInfo
from router.models.catalog import Catalog
from router.scheduler.types import Device
from router.supervisor.calibration import Learning
from tests.make_gguf import make_llama
from tests.scarcity import few_descriptors


def test_models_children_and_folders_change_at_once():
    new = Config(
        paths=PathsConfig(models_dirs=(Path("/new"),)),
        child=ChildConfig(ctx_size=1024),
        models={"tiny": {"pinned": True}},
    )
    assert _applicable(Config(), new) == new


def test_what_the_router_was_built_from_stays_and_says_so(caplog):
    old = Config(paths=PathsConfig(state_dir=Path("/old")))
    new = Config(
        server=ServerConfig(port=1),
        scheduler=SchedulerConfig(models_max=1),
        paths=PathsConfig(state_dir=Path("/new"), llama_server=Path("/new/llama-server")),
    )
    assert _applicable(old, new) == old
    said = caplog.text
    assert "[server] has changed" in said
    assert "[scheduler] has changed" in said
    assert "[memory]" not in said


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("tiny", "other"):
        make_llama(folder / f"{name}.gguf", sparse=True)
    return Config(paths=PathsConfig(models_dirs=(folder,), hf_cache=False))


class Host:
    """One machine of 8 GiB, never asked for more."""

    def __init__(self) -> None:
        self.infos: dict[str, Any] = {}

    async def devices(self) -> tuple[Device, ...]:
        return (Device("local/host", 8 << 30, 1 << 30, "host"),)


async def test_a_model_whose_file_does_not_answer_keeps_its_definition(config: Config, monkeypatch):
    folder = config.paths.models_dirs[0]
    async with Store(None) as store, Learning(store) as learning:
        models = Models(lambda: config, cast(Any, Host()), Path("/bin/true"), learning, store)
        before, defined, _ = await models.define(config, Catalog.scan(config))
        with monkeypatch.context() as patched:
            whole = io.open

            def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
                if str(path) == str(folder / "tiny.gguf"):
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
                return whole(path, *args, **kwargs)

            patched.setattr(io, "open", failing)
            catalog = Catalog.scan(config)
            assert catalog.entries["tiny"].error is not None
            after, again, _ = await models.define(config, catalog.keeping(before.catalog), before)
    assert after.definitions.by_name["tiny"] == before.definitions.by_name["tiny"]
    assert again["tiny"] == defined["tiny"]
    assert again["tiny"].error is None


def gpu(gib: int, *, pool: str = "cuda:GPU-late", is_well: bool = True) -> DeviceInfo:
    size = gib << 30
    free = size if is_well else None
    error = None if is_well else "lost"
    return DeviceInfo("cuda:GPU-late", "cuda", "cuda:0", "GPU-late", size, free, 0, None, None, error, pool)


class GrowingHost(Host):
    """Its GPU may come late."""

    def __init__(self, *infos: DeviceInfo) -> None:
        super().__init__()
        self.has(*infos)

    def has(self, *infos: DeviceInfo) -> None:
        host = DeviceInfo("host", "host", "host", "", 8 << 30, 8 << 30, 0, None, None, None, "host")
        self.infos = {f"local/{info.id}": info for info in (host, *infos)}

    async def devices(self) -> tuple[Device, ...]:
        own = (info for info in self.infos.values() if info.pool == info.id)
        return tuple(Device(f"local/{one.id}", one.total_bytes, 1 << 30, one.label) for one in own)


@asynccontextmanager
async def placed_on(config: Config, host: GrowingHost):
    """`(look, where)`: what looks again, and where the model `tiny` could go."""
    async with Store(None) as store, Learning(store) as learning:
        models = Models(lambda: config, cast(Any, host), Path("/bin/true"), learning, store)
        known, _, _ = await models.define(config, Catalog.scan(config))
        told: list[Any] = []

        async def reload(placed: Any, devices: Any) -> None:
            told.append((placed, devices))

        context = cast(Any, SimpleNamespace(config=config, known=known, pool=SimpleNamespace(reload=reload)))

        def where() -> list[tuple[str, ...]]:
            placements = context.known.definitions.models["tiny"].placements
            return [place.devices for place in placements if not place.is_fallback]

        yield lambda: models.look_again(context), where, told


async def test_a_gpu_whose_driver_opens_late_is_used_without_a_reload(config: Config):
    host = GrowingHost()
    async with placed_on(config, host) as (look, where, told):
        assert where() == [("local/host",)]
        await look()
        assert not told, "nothing is new"
        host.has(gpu(8))
        await asyncio.gather(look(), look())
        assert where() == [("local/cuda:GPU-late",)]
        ((placed, devices),) = told
        assert placed["tiny"].placements[0].devices == ("local/cuda:GPU-late",)
        assert "local/cuda:GPU-late" in {one.id for one in devices}


async def test_a_gpu_that_shares_the_hosts_memory_is_planned_with_only_while_it_is_well(config: Config):
    host = GrowingHost(gpu(8, pool="host"))
    async with placed_on(config, host) as (look, where, _):
        assert where() == [("local/cuda:GPU-late",)]
        host.has(gpu(8, pool="host", is_well=False))
        await look()
        assert where() == [("local/host",)]
        host.has(gpu(8, pool="host"))
        await look()
        assert where() == [("local/cuda:GPU-late",)]


async def test_a_gpu_with_memory_of_its_own_that_is_lost_changes_no_plan(config: Config):
    host = GrowingHost(gpu(8))
    async with placed_on(config, host) as (look, where, told):
        host.has(gpu(8, is_well=False))
        await look()
        assert not told, "the scheduler admits nothing there; the model waits for it, or for an operator"
        assert where() == [("local/cuda:GPU-late",)]


async def test_a_reload_for_which_no_files_are_left_leaves_all_as_it_was(config: Config):
    async with Store(None) as store, Learning(store) as learning:
        models = Models(lambda: config, cast(Any, Host()), Path("/bin/true"), learning, store)
        known, _, _ = await models.define(config, Catalog.scan(config))
        context = cast(Any, SimpleNamespace(config=config, known=known))
        with few_descriptors(0), pytest.raises(Unavailable, match="ulimit -n"):
            await models.reload(context)
        with few_descriptors(0), pytest.raises(Unavailable, match="ulimit -n"):
            await models.define(config, known.catalog)
    assert context.known is known


async def test_the_scheduler_is_told_how_long_loads_of_each_definition_took(config: Config):
    async with Store(None) as store, Learning(store) as learning:
        models = Models(lambda: config, cast(Any, Host()), Path("/bin/true"), learning, store)
        _, before, _ = await models.define(config, Catalog.scan(config))
        assert before["tiny"].measured_load_seconds is None
        await keep_load_time(store, before["tiny"].definition, 42.0)
        _, after, _ = await models.define(config, Catalog.scan(config))
        assert (after["tiny"].measured_load_seconds, after["other"].measured_load_seconds) == (42.0, None)
        assert after["tiny"].load_seconds == before["tiny"].load_seconds
        changed = replace(config, child=replace(config.child, ctx_size=512))
        _, other, _ = await models.define(changed, Catalog.scan(changed))
        assert other["tiny"].measured_load_seconds is None, "it was measured with other settings"
