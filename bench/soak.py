"""Print every request's fate while a real router is treated badly, and what is left of it in the end.

    bench/soak MINUTES [--seed N] [--clients 8] [--fake] [--json] [--trace]

A router in a process of its own, on loopback, with real llama-servers and fake ones, two of five models at a
time. Clients ask, hang up and talk nonsense; children are killed, frozen and told to end; models are changed
by reload; files run out, and the disk; in the first part the router itself is killed, and started again. Its
last life has rests, with nothing loaded and no client there, and what it holds then is counted.
Exits with status 1 when a request was lost or answered wrong, or when something is left over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Final

import aiohttp
import msgspec
import psutil

from bench.soak_clients import Client, Ledger
from tests.fake_binary import make_fake_binary
from tests.make_gguf import make_llama

# ruff: noqa: T201, ASYNC110, ASYNC220, ASYNC221, ASYNC230 - a command that has its loop to itself

ROOT: Final = Path(__file__).resolve().parent.parent
FAKE_MODELS: Final = ("fake-a", "fake-b")
REAL_MODELS: Final = ("real-a", "real-b")
DEADLINE_SECONDS: Final = 30.0
#: A frozen child is asked for five of them whether it lives.
START_SECONDS: Final = 90.0
#: Seconds between two faults, on average; between two kills of the router.
FAULT_SECONDS: Final = 2.0
ROUTER_KILL_SECONDS: Final = 8.0
#: The router's last life has this share of the time, and so many rests, if they are as far apart as this.
LAST_LIFE: Final = 0.6
RESTS: Final = 7
REST_APART_SECONDS: Final = 60.0
#: A rest is looked at so often, a second apart; while memory is still being measured at most so often: what
#: is there after that is counted, whatever it is.
LOOKS: Final = 3
MOST_LOOKS: Final = 20
LINES_BEFORE: Final = 4
#: What is kept on purpose is full by the middle rest of twenty minutes: 3000 entries of the journal, 2048
#: events, nearly all of the last minutes of every device. From there on a request may leave so much behind,
#: as an entry may be longer than the one that it pushes out: less than one object.
OBJECTS_PER_REQUEST: Final = 0.5
BYTES_PER_REQUEST: Final = 64
CONFIG: Final = """
[server]
shutdown_grace_seconds = 5.0
[memory]
margin_mib = 64
[scheduler]
models_max = 2
linger = 0.0
backoff_initial_seconds = 0.2
backoff_max_seconds = 1.0
[child]
args = ["--threads", "1", "--no-warmup"]
ctx_size = 2048
startup_stall_seconds = 3.0
serving_stall_seconds = 3.0
stop_grace_seconds = 1.0
log_max_mib = 1
env = { FAKE_LLAMA_TOKEN_SECONDS = "0.005" }
[models."broken"]
env = { FAKE_LLAMA_EXIT_STATUS = "3" }
"""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What the router's process holds with no model loaded and no client there. `descriptors` are named by
    what they lead to.
    """

    descriptors: Counter[str]
    tasks: Counter[str]
    rss_bytes: int
    #: In use, whatever else is resident: objects of Python up to 512 bytes, by number; and all that malloc
    #: has given out.
    blocks: int
    taken_bytes: int
    kinds: Counter[str]

    @property
    def is_measuring(self) -> bool:
        """Memory of who has just gone is waited for, and looked at several times a second."""
        return any("measure" in task or task == "devices-sample" for task in self.tasks)

    def in_common(self, other: Holdings) -> Holdings:
        """What was there in both looks."""
        return Holdings(
            self.descriptors & other.descriptors,
            self.tasks & other.tasks,
            min(self.rss_bytes, other.rss_bytes),
            min(self.blocks, other.blocks),
            min(self.taken_bytes, other.taken_bytes),
            self.kinds & other.kinds,
        )


@dataclass(frozen=True, slots=True)
class Rest:
    """One rest of the router's last life, as it is told."""

    seconds: float
    requests: int
    looks: int
    holdings: Holdings


@dataclass(slots=True)
class Report:
    seconds: float = 0.0
    requests: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    told: dict[str, int] = field(default_factory=dict)
    leaked_processes: int = 0
    leaked_sockets: int = 0
    leaked_descriptors: list[str] = field(default_factory=list)
    leaked_tasks: list[str] = field(default_factory=list)
    rests: list[Rest] = field(default_factory=list)
    #: From the middle rest to the last: requests, and what is in use more than before.
    later_requests: int = 0
    grown_objects: int = 0
    grown_bytes: int = 0
    slowest_start_seconds: float = 0.0
    exit_status: int | None = None
    #: As they stand in the router's output, each with the lines before it.
    tracebacks: list[str] = field(default_factory=list)
    #: What the routers have said, where something is wrong.
    output: Path | None = None

    @property
    def is_clean(self) -> bool:
        left = self.leaked_processes or self.leaked_sockets or self.leaked_descriptors or self.leaked_tasks
        return not (self.wrong or left or self.leaks_bytes or self.exit_status or self.tracebacks)

    @property
    def leaks_bytes(self) -> bool:
        """A short run is still filling what is kept on purpose: it cannot say."""
        too_many = self.grown_objects > OBJECTS_PER_REQUEST * self.later_requests
        too_much = self.grown_bytes > BYTES_PER_REQUEST * self.later_requests
        return len(self.rests) == RESTS and (too_many or too_much)


class Router:
    """`python -m router serve` on one port, in one folder, life after life."""

    def __init__(
        self, folder: Path, models: tuple[str, ...], real: Path | None, trace: Path | None = None
    ) -> None:
        self.trace = trace
        self.slowest_start_seconds = 0.0
        self.folder, self.state = folder, folder / "state"
        self.state.mkdir()
        self.config = folder / "config.toml"
        self.models = folder / "models"
        self.models.mkdir()
        for seed, name in enumerate((*models, "broken")):
            make_llama(self.models / f"{name}.gguf", name=name, seed=seed, sparse=name not in REAL_MODELS)
        self.configure(CONFIG)
        self._binary = _binary(folder, real)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.output = folder / "output"
        self._holdings = folder / "holdings"

    def configure(self, text: str) -> None:
        new = self.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.config)

    async def start(self) -> None:
        command = [sys.executable, str(ROOT / "bench/soak_router.py"), "serve", "--config", str(self.config)]
        command += ["--port", str(self._port), "--state-dir", str(self.state)]
        command += ["--models-dir", str(self.models)]
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("LLAMA_", "FAKE_"))}
        own = {"LLAMA_SERVER": str(self._binary), "HF_HOME": str(self.folder / "none")}
        env = {**kept, **own, "LLAMA_ROUTER_SOAK_HOLDINGS": str(self._holdings)}
        if self.trace is not None:
            env["LLAMA_ROUTER_SOAK_TRACE"] = str(self.trace)
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
            )
        begun = time.monotonic()
        try:
            await until(self._is_up, "the router is up", START_SECONDS)
            self.slowest_start_seconds = max(self.slowest_start_seconds, time.monotonic() - begun)
        except AssertionError as error:
            self.process.send_signal(signal.SIGUSR1)  # every thread tells where it is
            await asyncio.sleep(1.0)
            raise AssertionError(f"{error}:\n{self.output.read_text()[-8000:]}") from None

    async def _is_up(self) -> bool:
        assert self.process.poll() is None, f"the router ended:\n{self.output.read_text()[-4000:]}"
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/health") as answer:
                return answer.status == 200
        return False

    def children(self) -> list[psutil.Process]:
        """Every process with a socket in this router's folder on its command line, whoever its parent is."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if f"{self.state}/run/" in " ".join(one.cmdline()) and one.pid != self.process.pid:
                    found.append(one)
        return found

    async def holdings(self) -> tuple[Holdings, int]:
        """With everything unloaded; and in how many looks."""
        async with aiohttp.ClientSession(self.url) as session:
            async with session.get("/v1/models") as answer:
                names = [model["id"] for model in (await answer.json())["data"]]
            for name in names:
                async with session.post("/models/unload", json={"model": name, "force": True}):
                    pass
        await until(lambda: not self.children(), "every model is unloaded")
        process = psutil.Process(self.process.pid)
        await until(lambda: not process.net_connections("tcp")[1:], "every connection is closed")
        held, looks = await self._look(process), 1
        while looks < LOOKS or (held.is_measuring and looks < MOST_LOOKS):
            await asyncio.sleep(1.0)
            held, looks = held.in_common(await self._look(process)), looks + 1
        return held, looks

    async def _look(self, process: psutil.Process) -> Holdings:
        self._holdings.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        await until(self._holdings.exists, "the router has written down what it holds")
        told = json.loads(self._holdings.read_text())
        return Holdings(
            descriptors=_descriptors(process.pid),
            tasks=Counter(told["tasks"]),
            rss_bytes=process.memory_info().rss,
            blocks=told["blocks"],
            taken_bytes=told["taken_bytes"],
            kinds=Counter(told["kinds"]),
        )


class Faults:
    """What is done to the router and its children, one thing at a time."""

    def __init__(self, router: Router, ledger: Ledger, luck: random.Random, *, has_disk: bool) -> None:
        self._router, self._ledger, self._luck = router, ledger, luck
        self.counted: Counter[str] = Counter()
        self._kinds: list[Callable[[], Awaitable[str]]] = [
            *[self._kill_child] * 3, self._freeze_child, self._end_child, *[self._reload] * 2, self._no_files,
            *[self._fill_disk] * has_disk,
        ]  # fmt: skip

    async def run(self, until: float, *, kills_router: bool) -> None:
        next_kill = time.monotonic() + self._luck.expovariate(1 / ROUTER_KILL_SECONDS)
        while time.monotonic() < until:
            await asyncio.sleep(self._luck.expovariate(1 / FAULT_SECONDS))
            if kills_router and time.monotonic() >= next_kill:
                self.counted[await self.kill_router()] += 1
                next_kill = time.monotonic() + self._luck.expovariate(1 / ROUTER_KILL_SECONDS)
            else:
                self.counted[await self._luck.choice(self._kinds)()] += 1

    @contextlib.contextmanager
    def _gap(self) -> Iterator[None]:
        self._ledger.gaps.append((time.monotonic(), float("inf")))
        try:
            yield
        finally:
            self._ledger.gaps[-1] = (self._ledger.gaps[-1][0], time.monotonic())

    async def kill_router(self) -> str:
        with self._gap():
            self._router.process.kill()
            self._router.process.wait()
            await self._router.start()
        return "router killed and started again"

    def _signal_child(self, number: signal.Signals) -> bool:
        children = self._router.children()
        if not children:
            return False
        self._ledger.kills.append(time.monotonic())
        with contextlib.suppress(psutil.Error):
            self._luck.choice(children).send_signal(number)
        return True

    async def _kill_child(self) -> str:
        return "child killed" if self._signal_child(signal.SIGKILL) else "no child to kill"

    async def _freeze_child(self) -> str:
        return "child frozen" if self._signal_child(signal.SIGSTOP) else "no child to freeze"

    async def _end_child(self) -> str:
        return "child told to end" if self._signal_child(signal.SIGTERM) else "no child to end"

    async def _reload(self) -> str:
        name = self._luck.choice((*FAKE_MODELS, *REAL_MODELS))
        size = self._luck.choice((1024, 1536, 2048))
        self._router.configure(f'{CONFIG}[models."{name}"]\nctx_size = {size}\n')
        self._router.process.send_signal(signal.SIGHUP)
        return "reloaded with another preset"

    async def _no_files(self) -> str:
        process = psutil.Process(self._router.process.pid)
        _, hard = process.rlimit(resource.RLIMIT_NOFILE)
        with self._gap():
            process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 4, hard))
            await asyncio.sleep(0.5)
            process.rlimit(resource.RLIMIT_NOFILE, (hard, hard))
            await asyncio.sleep(1.5)  # asyncio looks at a listener that had no files left only every second
        return "no files left for half a second"

    async def _fill_disk(self) -> str:
        ballast = self._router.state / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(b"x" * 65536):
                pass
        await asyncio.sleep(2.0)
        ballast.unlink()
        return "disk full for two seconds"


async def soak(
    seconds: float, *, seed: int = 0, clients: int = 8, real: Path | None, trace: Path | None = None
) -> Report:
    """`real` is a llama-server; None: fake ones alone. `trace`: where the last rest's memory is told."""
    luck = random.Random(seed)
    report = Report()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        router = Router(Path(name), (*FAKE_MODELS, *REAL_MODELS), real, trace)
        has_disk = _mount_disk(router.state)
        try:
            await _soak(router, report, luck, seconds, clients, has_disk=has_disk)
        finally:
            router.process.kill()
            router.process.wait()
            report.leaked_processes = len(left := router.children())
            for child in left:
                child.kill()
            report.tracebacks = _tracebacks(router.output)
            if not report.is_clean or not report.rests:
                report.output = Path(tempfile.gettempdir()) / f"soak-output-{os.getpid()}.txt"
                shutil.copy(router.output, report.output)
            if has_disk:
                subprocess.run(["umount", "-l", str(router.state)], check=True)
    report.seconds = time.monotonic() - begun
    return report


async def _soak(
    router: Router, report: Report, luck: random.Random, seconds: float, clients: int, *, has_disk: bool
) -> None:
    begun = time.monotonic()
    ledger = Ledger()
    faults = Faults(router, ledger, luck, has_disk=has_disk)

    async def phase(share: float, *, kills_router: bool) -> None:
        until = time.monotonic() + seconds * share
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                own_luck = random.Random(luck.random())
                models = (*FAKE_MODELS, *REAL_MODELS)
                tasks.create_task(Client(router.url, models, ledger, own_luck).run(until))
            tasks.create_task(faults.run(until, kills_router=kills_router))

    await router.start()
    await phase(1 - LAST_LIFE, kills_router=True)
    faults.counted[await faults.kill_router()] += 1
    rests = min(RESTS, max(2, round(seconds * LAST_LIFE / REST_APART_SECONDS)))
    for _ in range(rests):
        await phase(LAST_LIFE / rests, kills_router=False)
        held, looks = await router.holdings()
        report.rests.append(Rest(time.monotonic() - begun, ledger.requests, looks, held))
        if router.trace is not None:
            router.trace.rename(router.trace.with_suffix(f".{len(report.rests)}"))
    router.process.terminate()
    report.exit_status = await asyncio.to_thread(router.process.wait, DEADLINE_SECONDS)
    report.slowest_start_seconds = router.slowest_start_seconds
    report.requests, report.wrong = ledger.requests, ledger.wrong
    report.told = dict(ledger.told.most_common(20))
    report.fates, report.faults = dict(ledger.fates.most_common()), dict(faults.counted.most_common())
    before, after = report.rests[0].holdings, report.rests[-1].holdings
    report.leaked_descriptors = list((after.descriptors - before.descriptors).elements())
    report.leaked_tasks = list((after.tasks - before.tasks).elements())
    middle = report.rests[(len(report.rests) - 1) // 2]
    report.later_requests = ledger.requests - middle.requests
    report.grown_objects = after.blocks - middle.holdings.blocks
    report.grown_bytes = after.taken_bytes - middle.holdings.taken_bytes
    report.leaked_sockets = len(list((router.state / "run").glob("*.sock")))


def _descriptors(pid: int) -> Counter[str]:
    """Sockets and pipes without the numbers that tell one from the other."""
    found = Counter[str]()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            name = re.sub(r":\[\d+\]", "", str(entry.readlink()))
            # libuv keeps one descriptor for when files run out: of /dev/null at first, and of / afterwards.
            found["/dev/null" if name == "/" else name] += 1
    return found


def _tracebacks(output: Path) -> list[str]:
    """Each from some lines before it up to the next line that has a time."""
    lines = output.read_text(errors="replace").splitlines()
    found, end = [], 0
    for at, line in enumerate(lines):
        if line.startswith("Traceback") and at >= end:
            end = at + 1
            while end < len(lines) and not re.match(r"\d{4}-\d\d-\d\d |llama-router ", lines[end]):
                end += 1
            found.append("\n".join(lines[max(0, at - LINES_BEFORE) : end]))
    return found


async def until(is_true: Callable[[], Any], what: str, within_seconds: float = DEADLINE_SECONDS) -> None:
    try:
        async with asyncio.timeout(within_seconds):
            while not (await found if isinstance(found := is_true(), Awaitable) else found):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited in vain until {what}") from None


def _binary(folder: Path, real: Path | None) -> Path:
    """A llama-server that is a fake one for the models whose names say so."""
    inner = folder / "fake"
    inner.mkdir()
    fake = make_fake_binary(inner)
    binary = folder / "llama-server"
    otherwise = f'exec {quote(str(real or fake))} "$@"'
    lists = '[ "$1" = --list-devices ] && exec echo Available devices:'
    fakes = f'case "$*" in *"--alias fake-"*|*"--alias broken"*) exec {quote(str(fake))} "$@";; esac'
    binary.write_text(f"#!/bin/sh\n{lists}\n{fakes}\n{otherwise}\n")
    binary.chmod(0o755)
    return binary


def _mount_disk(folder: Path) -> bool:
    """A small disk of its own where this process may mount one that nobody else sees."""
    if not os.environ.get("LLAMA_ROUTER_SOAK_MOUNTS"):
        return False
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def render(report: Report) -> str:
    lines = [f"{report.requests} requests in {report.seconds:.0f} s"]
    lines += [f"{count:8} {fate}" for fate, count in report.fates.items()]
    lines += ["faults:", *(f"{count:8} {fault}" for fault, count in report.faults.items())]
    lines += ["words of refusals:", *(f"{count:8} {words}" for words, count in report.told.items())]
    lines += [f"wrong or lost: {len(report.wrong)}", *(f"    {one}" for one in report.wrong[:20])]
    left = f"{report.leaked_processes} processes, {report.leaked_sockets} sockets"
    lines += [
        f"leaked: {left}, {len(report.leaked_descriptors)} descriptors, {len(report.leaked_tasks)} tasks",
        *(f"    {one}" for one in (*report.leaked_descriptors, *report.leaked_tasks)),
        "rests of the last router:",
        *(_row(rest) for rest in report.rests),
        f"in use from the middle rest to the last, after {report.later_requests} requests: "
        f"{report.grown_objects:+} objects, {report.grown_bytes / 1024:+.0f} KiB: "
        + (
            "too short to say" if len(report.rests) < RESTS else "A LEAK" if report.leaks_bytes else "no leak"
        ),
        f"slowest start {report.slowest_start_seconds:.1f} s, of a router that found what another had left",
        f"exit status {report.exit_status}, {len(report.tracebacks)} tracebacks",
        *report.tracebacks,
        *([f"what the routers said: {report.output}"] if report.output is not None else ()),
    ]
    return "\n".join(lines)


def _row(rest: Rest) -> str:
    held = rest.holdings
    return (
        f"{rest.seconds:8.0f} s {rest.requests:8} requests: {held.rss_bytes / 2**20:.1f} MiB resident, "
        f"{held.taken_bytes / 2**20:.1f} MiB taken and {held.blocks} small objects, "
        f"{held.descriptors.total()} descriptors, {held.tasks.total()} tasks ({rest.looks} looks)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--fake", action="store_true", help="no real llama-server")
    parser.add_argument("--json", action="store_true")
    told = "tracemalloc's snapshots of the rests, FILE.1 and on"
    parser.add_argument("--trace", type=Path, metavar="FILE", help=told)
    given = parser.parse_args()
    real = None if given.fake else Path(os.environ["LLAMA_SERVER"]).resolve()
    report = asyncio.run(
        soak(given.minutes * 60, seed=given.seed, clients=given.clients, real=real, trace=given.trace)
    )
    print(msgspec.json.encode(report, enc_hook=str).decode() if given.json else render(report))
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
