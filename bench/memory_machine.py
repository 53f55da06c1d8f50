"""A machine for one seed of `memory_seeds`: three GPUs as the stub of NVML tells, the router's own Devices,
LocalHost, Pool and Scheduler over them, fake llama-servers that allocate, and everybody who disturbs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from bench.memory_audit import Verdict, WatchedScheduler, holdings, judge
from bench.memory_work import GPUS, MARGIN_MIB, MIB, Appetite, Work, model, shares
from router.config import DeviceConfig, MemoryConfig, StatePaths
from router.db.store import Store
from router.engines import Launch
from router.errors import RouterError
from router.hosts import Address, Measurement, admission
from router.hosts.local import LocalHost
from router.memory.devices import Devices, Sample
from router.observability.journal import Journal
from router.scheduler.ledger import Ledger
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Settings
from router.scheduler.types import Device, DeviceId, InstanceId, ModelName, Placement
from router.supervisor.pool import Pool
from tests.fake_binary import FAKE
from tests.stub_nvml.build import build, library_environment
from tests.stub_nvml.state import (
    Allocation,
    Stranger,
    StubNvml,
    free_bytes,
    hold_allocation,
    keep_takings,
    read_takings,
)

#: A request that has neither an answer nor a refusal by then is lost.
DEADLINE_SECONDS = 60.0
SAMPLE_SECONDS = 0.02
#: Pids that no process here can have, for programs that run where we cannot see them.
UNSEEN_PID = 1 << 28


class Admission(Enum):
    """By the ledger, as the router does it; by its needs, but with nothing promised: F - N >= M; or by file
    size: F - size >= M."""

    LEDGER = "the ledger"
    UNPROMISED = "no promises"
    FILE_SIZE = "file size only"


@dataclass(slots=True)
class Outcome:
    """What became of one seed. Shares are integrals over `demand_seconds`, in which somebody waited."""

    verdict: Verdict
    counts: Counter[str]
    answers: Counter[str]
    broken: list[str]
    seconds: float
    demand_seconds: float
    reserved_share: float
    used_share: float


# --- worse ways to admit -------------------------------------------------------------------------------


class ForgetfulLedger(Ledger):
    """Promises are not kept in mind: what is free is there to be had."""

    def _room(
        self, device: DeviceId, *, leaving: Collection[InstanceId], before: int | None, expected: bool
    ) -> int | None:
        known, free = self.devices.get(device), self.free.get(device)
        if known is None or free is None:
            return None
        room = free - known.margin
        for name, held in self._holders.items():
            if name in leaving:
                room += held.used.get(device, 0)
            elif held.claim is not None and (before is None or held.claim < before):
                room -= held.reserved.get(device, 0)
        if expected:
            room += sum(gone.used.get(device, 0) for gone in self._returning.values())
        return room


class ForgetfulAdmission(admission.Admission):
    """As the host of a forgetful ledger sees it."""

    def refusal(
        self, newcomer: Placement, measured: Measurement, sample: Sample, others: Iterable[admission.Claim]
    ) -> str | None:
        return super().refusal(newcomer, measured, sample, ())


# --- the machine ------------------------------------------------------------------------------------------


def stub_environment(folder: Path) -> dict[str, Any]:
    """The arguments of Devices that lead it to the stub in `folder`, also where there is no compiler."""
    library = build()
    environ = {k: v for k, v in os.environ.items() if not k.endswith("_VISIBLE_DEVICES")}
    options: dict[str, Any] = {
        "enabled": {"amd": False},
        "environ": environ | library_environment(folder, library),
        "probe_timeout_seconds": 20.0,  # a slow machine is no sick driver
    }
    if library is None:
        options["probe_argv"] = (sys.executable, "-P", "-m", "tests.stub_nvml.probe")
    return options


@dataclass(slots=True)
class Machine:
    stub: StubNvml
    host: LocalHost
    pool: Pool
    scheduler: WatchedScheduler
    devices: tuple[Device, ...]
    work: Work
    luck: random.Random
    answers: Counter[str] = field(default_factory=Counter)
    killed: set[str] = field(default_factory=set)
    closed: dict[int, tuple[float, float]] = field(default_factory=dict)
    held_by_others: Counter[int] = field(default_factory=Counter)
    demand_seconds: float = 0.0
    reserved_share: float = 0.0
    used_share: float = 0.0
    _unseen_pids: Iterator[int] = field(default_factory=lambda: count(UNSEEN_PID))

    @property
    def index_of(self) -> dict[DeviceId, int]:
        return {f"local/cuda:{gpu.uuid}": index for index, gpu in enumerate(GPUS)}

    # --- those who ask ---

    async def client(self, name: ModelName, tokens: int, hang_up_seconds: float | None) -> None:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                try:
                    async with asyncio.timeout(hang_up_seconds):
                        await self._ask(name, tokens)
                except TimeoutError:
                    self.answers["hung up"] += 1
        except TimeoutError:
            self.answers["lost"] += 1

    async def _ask(self, name: ModelName, tokens: int) -> None:
        try:
            async with self.pool.lease(name) as lease:
                if await _complete(lease.address, tokens):
                    self.answers["served"] += 1
                else:
                    by_us = lease.instance in self.killed
                    self.answers["cut off by a kill" if by_us else "cut off"] += 1
        except RouterError as error:
            self.answers[f"refused: {error.code}"] += 1
        except Exception as error:  # noqa: BLE001 - the client's task ends here, and it is told as what it is
            self.answers["no answer"] += 1
            self.scheduler.broken.append(f"a request for {name} ended with {error!r}")

    # --- those who disturb ---

    async def take(self, device: int, mib: int | None, seconds: float) -> None:
        """Another program: a small one takes what it likes, a large one all that is to spare."""
        if mib is None:
            await self._feast(device, seconds)
            return
        stranger = await asyncio.to_thread(Stranger, self.stub.folder, {device: mib * MIB})
        self.held_by_others[device] += mib * MIB
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._close, stranger, stranger.pid, device)
        self.held_by_others[device] -= mib * MIB

    async def _feast(self, device: int, seconds: float) -> None:
        """What is promised it leaves alone: where that is taken, nobody can keep a load from failing. So it
        looks and takes in one step."""
        view = next(one for one in self.pool.snapshot().devices if self.index_of.get(one.id) == device)
        spare = free_bytes(self.stub.folder, device) - view.promised - view.margin
        if spare <= 0:
            return
        allocation = hold_allocation(self.stub.folder, {device: spare}, next(self._unseen_pids))
        self.held_by_others[device] += spare
        await asyncio.sleep(seconds)
        self._close(allocation, allocation.pid, device)
        self.held_by_others[device] -= spare

    def _close(self, holder: Stranger | Allocation, pid: int, device: int) -> None:
        begun = time.monotonic()
        holder.close()
        free_bytes(self.stub.folder, device)  # the stub notices an end when it is read
        self.closed[pid] = (begun, time.monotonic())

    async def kill(self) -> None:
        """A child crashes: any of those that live, loading or serving."""
        records = [record for record in await self.host.instances() if record.pid is not None]
        if records:
            record = self.luck.choice(records)
            self.killed.add(record.instance)
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid or 0, signal.SIGKILL)

    async def unload(self) -> None:
        instances = self.pool.snapshot().instances
        if instances:
            await self.pool.unload(self.luck.choice(instances).model)

    # --- those who watch ---

    async def watch(self) -> None:
        """How much of what can be had is had, while somebody waits."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            now = loop.time()
            seen = self.pool.snapshot()
            gpus = [device for device in seen.devices if device.id in self.index_of]
            others = sum(self.held_by_others.values())
            if seen.queues:
                capacity = max(1, sum(device.total - device.margin for device in gpus) - others)
                live = [one for one in seen.instances if one.state.value != "planned"]
                self.demand_seconds += now - last
                self.reserved_share += (now - last) * sum(sum(o.reserved.values()) for o in live) / capacity
                self.used_share += (now - last) * sum(device.used for device in gpus) / capacity
            last = now

    def outcome(self, seconds: float) -> Outcome:
        takings = read_takings(self.stub.folder)
        held = holdings(takings, self.closed, self.work.lag_ms / 1000)
        verdict = judge(
            takings, self.closed.keys(), held, self.scheduler.admissions, self.index_of, MARGIN_MIB * MIB
        )
        return Outcome(
            verdict,
            self.scheduler.counts,
            self.answers,
            self.scheduler.broken,
            seconds,
            self.demand_seconds,
            self.reserved_share,
            self.used_share,
        )


async def run(work: Work, admission: Admission, *, luck: random.Random) -> Outcome:
    """One seed from the first request to the last answer, in real time with real processes."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with _machine(work, admission, luck) as machine:
        start = loop.time()

        async def later(at: float, doing: Callable[[], Awaitable[None]]) -> None:
            await asyncio.sleep(max(0.0, start + at - loop.time()))
            await doing()

        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(machine.watch(), name="watch")
            async with asyncio.TaskGroup() as tasks:
                for at, name, tokens, hang_up in work.asked:
                    tasks.create_task(later(at, partial(machine.client, name, tokens, hang_up)), name=name)
                for at, device, mib, seconds in work.taken:
                    tasks.create_task(later(at, partial(machine.take, device, mib, seconds)), name="take")
                for at in work.killed:
                    tasks.create_task(later(at, machine.kill), name="kill")
                for at in work.unloaded:
                    tasks.create_task(later(at, machine.unload), name="unload")
            watch.cancel()
        return machine.outcome(loop.time() - begun)


@asynccontextmanager
async def _machine(work: Work, admission: Admission, luck: random.Random) -> AsyncIterator[Machine]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        stub = StubNvml(folder / "stub", *GPUS)
        stub.change(lag_ms=work.lag_ms)
        keep_takings(stub.folder)
        paths = StatePaths(folder / "state", folder / "run")
        paths.prepare()
        memory = MemoryConfig(margin_mib=MARGIN_MIB, devices={"host": DeviceConfig(enabled=False)})
        store = await stack.enter_async_context(Store(paths.database))
        found = await stack.enter_async_context(Devices(**stub_environment(stub.folder)))
        host = await stack.enter_async_context(LocalHost(found, store, paths, memory))
        devices = await host.devices()
        assert len(devices) == len(GPUS), f"the stub is not seen: {(await found.sample(now=0)).notes}"
        needs = Appetite.file_size if admission is Admission.FILE_SIZE else Appetite.estimated
        models = {
            name: model(name, appetite, devices, needs, work.load_seconds[name])
            for name, appetite in work.appetites.items()
        }
        settings = Settings(
            queue_timeout=DEADLINE_SECONDS, external_memory_wait=20.0, backoff_initial=0.1, backoff_max=0.5
        )
        scheduler = WatchedScheduler(models, devices, make_policy("lru", 0.0), settings)
        scheduler.watch()
        if admission is not Admission.LEDGER:
            scheduler._state.ledger = ForgetfulLedger({d.id: d for d in devices}, settings.recovery)
            host._admission = ForgetfulAdmission("local", memory)
        totals = {device.id: device.total for device in devices}

        def launch(name: ModelName, placement: Placement, _: str) -> Launch:
            return _launch(stub, work, name, placement, totals)

        pool = Pool(scheduler, [host], launch, Journal(), definitions=models)
        await stack.enter_async_context(pool)
        yield Machine(stub, host, pool, scheduler, devices, work, luck)


def _launch(
    stub: StubNvml, work: Work, name: ModelName, placement: Placement, totals: Mapping[DeviceId, int]
) -> Launch:
    appetite = work.appetites[name]
    sizes = appetite.loaded(shares(placement.devices, totals))
    argv = [sys.executable, "-SE", str(FAKE), "--host", "{socket}", "--alias", name]
    argv += ["--alloc-mib", ",".join(map(str, sizes)), "--grow-mib", str(appetite.growth)]
    argv += ["--load-seconds", str(work.load_seconds[name]), "--token-seconds", "0.02"]
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LLAMA_ROUTER_STUB_NVML": str(stub.folder),
        "CUDA_VISIBLE_DEVICES": ",".join(device.rpartition(":")[2] for device in placement.devices),
    }
    return Launch(tuple(argv), env, out_of_memory_texts=("out of memory",))


async def _complete(address: Address, tokens: int) -> bool:
    """One completion, asked of the child itself; False where it ended in the middle."""
    body = json.dumps({"max_tokens": tokens}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        reader, writer = await asyncio.open_unix_connection(address.socket)
        try:
            writer.write(head.encode() + body)
            return (await reader.read()).startswith(b"HTTP/1.1 200")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except OSError:
        return False
