"""The whole HTTP surface on a real port, with real models on disk and a pool in memory."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from router.admin import CONTEXT, PROXIED_ROUTES, Context, Known, application
from router.admin.access_log import ACCESS_LOG
from router.admin.allowed_hosts import ALLOWED_HOSTS
from router.admin.cors import ORIGINS
from router.admin.keys import KEYS
from router.app.requests import Requests
from router.config import ChildConfig, Config, PathsConfig, SchedulerConfig, ServerConfig
from router.http.inference import ProxiedRoutes
from router.http.server import HttpServer, Limits
from router.memory.devices import DeviceInfo
from router.models.catalog import Catalog
from router.models.definitions import define
from router.presets import Overrides
from router.proxy.body import BODY_LIMITS
from router.scheduler.types import Device, Model
from router.supervisor.pool import Pool
from tests.admin.fake_pool import GIB, GPU, FakePool
from tests.admin.upstream import Connection, Received, Script, Upstream
from tests.llama_server_options import OPTIONS
from tests.make_gguf import make_llama, make_mmproj

SETTINGS: dict[str, dict[str, Any]] = {
    "tiny": {"aliases": ["small", "org/tiny"], "tags": ["test"]},
    "hidden": {"hidden": True},
}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers["Content-Type"].startswith("application/json"), self.body
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error, which must have OpenAI's shape."""
        error = self.json()["error"]
        assert {"message", "type", "code", "param"} <= error.keys()
        return error


def proxied_routes(app: web.Application, context: Context, requests: Requests) -> ProxiedRoutes:
    return ProxiedRoutes(
        PROXIED_ROUTES,
        context,
        context.proxy,
        keys=app[KEYS],
        hosts=app[ALLOWED_HOSTS],
        origins=app[ORIGINS],
        counting=requests,
        access_log=app[ACCESS_LOG],
        body_limits=app[BODY_LIMITS],
    )


async def echo(received: Received, connection: Connection) -> None:
    await connection.answer(received.body)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder / "tiny.gguf", sparse=True)
    make_llama(folder / "other.gguf", sparse=True)
    make_llama(folder / "hidden.gguf", sparse=True)
    (folder / "seeing").mkdir()
    make_llama(folder / "seeing" / "seeing.gguf", sparse=True)
    make_mmproj(folder / "seeing" / "mmproj-seeing.gguf")
    (folder / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    return folder


@pytest.fixture(scope="session")
def known(models_dir: Path) -> Known:
    config = config_of(models_dir)
    catalog = Catalog.scan(config)
    devices = [Device(GPU, 24 * GIB, GIB, "NVIDIA H200"), Device("local/host", 64 * GIB, GIB, "host")]
    infos = {device.id: info_of(device) for device in devices}
    definitions = define(catalog, config, devices, infos, binary=Path("/opt/llama-server"), environ={})
    definitions = replace(definitions, options=OPTIONS)
    return Known.of(catalog, definitions)


def info_of(device: Device) -> DeviceInfo:
    return DeviceInfo(
        id=device.id,
        kind="host" if device.id.endswith("host") else "cuda",
        label=device.label,
        uuid=device.id.rpartition(":")[2],
        total_bytes=device.total,
        free_bytes=device.total,
        reserved_bytes=0,
        utilisation_percent=None,
        temperature_celsius=None,
        error=None,
        pool=device.id,
    )


def config_of(models_dir: Path) -> Config:
    paths = PathsConfig(models_dirs=(models_dir,), hf_cache=False)
    return Config(paths=paths, models=SETTINGS, child=ChildConfig(ctx_size=512))


class Api:
    """One router on one port. What a test wants different it says to `start`."""

    def __init__(self, known: Known, folder: Path) -> None:
        self.pool = FakePool()
        self.known = known
        self.reloads = 0
        self.varied: list[tuple[str, Overrides]] = []
        self._folder = folder
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(
        self,
        *,
        script: Script = echo,
        autoload: bool = True,
        limits: Limits | None = None,
        shutdown_seconds: float = 0.1,
        **server: Any,
    ) -> None:
        served = ServerConfig(**server)
        config = Config(server=served, scheduler=SchedulerConfig(autoload=autoload))
        context = Context(config, self.known, cast(Pool, self.pool), self._reload, self._spawn, self._vary)
        self._stack.push_async_callback(context.proxy.endings.settled)  # after the children are gone
        for number, name in enumerate(self.known.catalog.entries):
            upstream = Upstream(self._folder / f"{number}.sock", script)
            await self._stack.enter_async_context(upstream)
            self.pool.sockets[name] = [upstream.path] * 9
        app = self.app = application(served)
        app[CONTEXT] = context
        http = self.server = HttpServer(app, limits, shutdown_seconds=shutdown_seconds)
        await http.start()
        self.app_context, self.requests = context, Requests()
        http.proxied = proxied_routes(app, context, self.requests)
        self._stack.push_async_callback(http.close)
        await http.listen()
        self.url = f"http://127.0.0.1:{http.addresses[0][1]}"
        self._client = await self._stack.enter_async_context(aiohttp.ClientSession())

    async def listen_on_path(self, path: Path) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        await self.server.listen(sock=listening)

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        async with self._client.request(method, self.url + path, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.call("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.call("POST", path, **options)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _vary(self, known: Known, name: str, overrides: Overrides) -> Model:
        self.varied.append((name, overrides))
        return known.definitions.by_name[name].model

    async def _reload(self) -> None:
        self.reloads += 1

    def _spawn(self, coroutine: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.append(task)
        return task


@pytest.fixture
async def api(known: Known, tmp_path: Path) -> AsyncIterator[Api]:
    made = Api(known, tmp_path)
    yield made
    await made.close()
    assert made.pool.open_leases == 0, "every lease must be released"
