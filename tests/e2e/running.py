"""A whole router in this process on a real socket, with real llama-servers, whose journal a test can read."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from router.app.parts import Router, Setup
from router.config import load_config, state_paths
from router.engines.llama_server import find_binary
from router.http.server import HttpServer
from router.models.catalog import Catalog
from router.observability.journal import Entry
from router.scheduler.types import Start, Stop
from router.supervisor.pool import Pool
from tests.make_gguf import make_llama
from tests.waiting import until

#: No test waits longer than this for something that must happen; all take a fraction of it.
DEADLINE_SECONDS = 60.0


@dataclass(slots=True)
class Answer:
    """One finished request. `text` is the generated text; `ended` that a stream ended with [DONE]."""

    status: int
    action: str | None
    seconds: float
    body: dict[str, Any]
    ended: bool = True


@dataclass(slots=True)
class Running:
    """A running router. `entries` is its journal."""

    url: str
    pool: Pool
    session: aiohttp.ClientSession

    async def chat(self, model: str, tokens: int = 8, **more: Any) -> Answer:
        """One request that is not streamed."""
        headers = more.pop("headers", {})
        asked = {"model": model, "max_tokens": tokens, "ignore_eos": True, "messages": _hello(), **more}
        begun = time.monotonic()
        async with self.session.post("/v1/chat/completions", json=asked, headers=headers) as answer:
            body = await answer.json()
            action = answer.headers.get("X-Router-Action")
            return Answer(answer.status, action, time.monotonic() - begun, body)

    async def stream(self, model: str, tokens: int = 200) -> Answer:
        """One streamed request, read to its end."""
        asked = {
            "model": model,
            "max_tokens": tokens,
            "ignore_eos": True,
            "messages": _hello(),
            "stream": True,
        }
        begun = time.monotonic()
        async with self.session.post("/v1/chat/completions", json=asked) as answer:
            raw = await answer.read()
        events = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
        errors = [event for event in events if '"error"' in event]
        ended = bool(events) and events[-1] == "[DONE]" and not errors
        action = answer.headers.get("X-Router-Action")
        body = json.loads(errors[0]) if errors else {"chunks": len(events)}
        return Answer(answer.status, action, time.monotonic() - begun, body, ended)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.pool.journal.entries()

    def starts(self) -> list[str]:
        """The models that were started, in order."""
        return [c.model for e in self.entries for c in e.commands if isinstance(c, Start)]

    def stops(self) -> list[tuple[str, str]]:
        """The models that were stopped, in order, each with its cause."""
        stopped = (c for e in self.entries for c in e.commands if isinstance(c, Stop))
        return [(stop.instance.partition("#")[0], stop.cause.value) for stop in stopped]

    def resident(self) -> list[str]:
        return sorted(one.model for one in self.pool.snapshot().instances)

    async def until(self, condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
        await until(condition, seconds=seconds)


def llama_servers() -> list[psutil.Process]:
    """The llama-servers that this process started and that still live."""
    children = psutil.Process().children(recursive=True)
    return [
        child
        for child in children
        if child.status() != psutil.STATUS_ZOMBIE and "llama-server" in child.name()
    ]


@asynccontextmanager
async def running(
    folder: Path, models: Sequence[str], config: str = "", *, hf_cache: bool = False
) -> AsyncIterator[Running]:
    """A router over generated models; `config` is further TOML. Afterwards no llama-server is left."""
    models_dir = folder / "models"
    models_dir.mkdir(exist_ok=True)
    for number, name in enumerate(models):
        if not (models_dir / f"{name}.gguf").exists():
            make_llama(models_dir / f"{name}.gguf", name=name, seed=number)
    source = folder / "config.toml"
    paths = f'[paths]\nmodels_dirs = ["{models_dir}"]\nhf_cache = {str(hf_cache).lower()}\n'
    paths += f'state_dir = "{folder / "state"}"\n'
    source.write_text(paths + config)
    loaded = load_config(source)
    state = state_paths(loaded)
    state.prepare()
    setup = Setup(loaded, Catalog.scan(loaded), state, find_binary(), lambda: load_config(source))
    router = Router(setup)
    server = HttpServer(router.app)
    try:
        await server.start()
        server.proxied = router.proxied_routes()
        await server.listen()
        url = f"http://127.0.0.1:{server.addresses[0][1]}"
        timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
            yield Running(url, router.context.pool, session)
    finally:
        await server.close()
    assert not llama_servers(), "the router left children behind"


def _hello() -> list[dict[str, str]]:
    return [{"role": "user", "content": "hello"}]
