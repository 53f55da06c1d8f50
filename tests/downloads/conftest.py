"""Downloads by the real huggingface_hub, in its real process, from a hub on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from router.config import DownloadsConfig
from router.db.store import Store
from router.downloads import Downloads, DownloadSpec, Job
from router.downloads.job import DownloadEvent
from tests.deadline import DEADLINE_SECONDS
from tests.hub_stub import HubStub
from tests.waiting import until


class Kit:
    """One hub, one cache, one database; `open` gives the downloads of a router, `close` ends that router."""

    def __init__(self, folder: Path, hub: HubStub) -> None:
        self.hub = hub
        self.folder = folder
        self.cache = folder / "hf" / "hub"
        self.settings = DownloadsConfig(min_free_mib=0, retry_seconds=30.0, stall_seconds=20.0)
        self.environ = hub.environ(folder / "hf")
        self.reloads = 0
        self.events: list[DownloadEvent] = []
        self._stack: AsyncExitStack | None = None

    async def open(self) -> Downloads:
        self._stack = AsyncExitStack()
        store = await self._stack.enter_async_context(Store(self.folder / "router.sqlite"))
        made = Downloads(store, self.cache, lambda: self.settings, self._reload, self.environ)
        made.listen(self.events.append)
        self.downloads = await self._stack.enter_async_context(made)
        return made

    async def close(self) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()

    async def _reload(self) -> None:
        self.reloads += 1

    async def fetch(self, repo: str, **wish: object) -> Job:
        """To the end, whatever that is."""
        job = await self.downloads.start(DownloadSpec(repo, **wish))  # type: ignore[arg-type]
        return await self.ended(job)

    async def ended(self, job: Job) -> Job:
        await until(lambda: not self.downloads.job(job.id).is_active)
        return self.downloads.job(job.id)

    async def held(self) -> None:
        """Until the hub holds back the rest of a file."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.hub.faults.holding.wait()

    def said(self, event: str) -> list[DownloadEvent]:
        return [one for one in self.events if one.event == event]

    def repo(self, name: str) -> Path:
        return self.cache / f"models--{name.replace('/', '--')}"

    def partial_bytes(self, name: str) -> int:
        return sum(f.stat().st_size for f in self.repo(name).glob("blobs/*.llama-router.incomplete"))

    def snapshot(self, name: str) -> dict[str, bytes]:
        """What is found in the cache at the commit of main."""
        folder = self.repo(name) / "snapshots" / (self.repo(name) / "refs" / "main").read_text()
        return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
async def hub() -> AsyncIterator[HubStub]:
    async with HubStub().running() as made:
        yield made


@pytest.fixture
async def kit(tmp_path: Path, hub: HubStub) -> AsyncIterator[Kit]:
    made = Kit(tmp_path, hub)
    await made.open()
    yield made
    await made.close()
