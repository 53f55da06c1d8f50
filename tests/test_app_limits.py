"""A running router that has come to a limit: files, disk, a folder that takes nothing any more, the clock."""

from __future__ import annotations

import contextlib
import io
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

import router as package
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.test_app import Stream, binary
from tests.waiting import is_healthy, until

Start = Callable[..., RouterProcess]


class OnItsOwnDisk(RouterProcess):
    """Its state lies on a disk of 2 MiB that nobody else sees."""

    def command(self) -> list[str]:
        mount = 'mkdir -p "$1" && mount -t tmpfs -o size=2m tmpfs "$1" && shift && exec "$@"'
        return ["unshare", "-rm", "sh", "-c", mount, "sh", str(self.state), *super().command()]

    @property
    def seen_state(self) -> Path:
        """Its folder, from outside."""
        return Path(f"/proc/{self.process.pid}/root{self.state}")

    def fill(self) -> Path:
        ballast = self.seen_state / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        return ballast

    def make_read_only(self) -> None:
        """For whatever is opened from now on."""
        remount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
        enter = ["nsenter", "-t", str(self.process.pid), "-U", "-m", "--preserve-credentials"]
        subprocess.run([*enter, "sh", "-c", remount, "sh", str(self.state)], check=True)


def can_mount() -> bool:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    tried = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /tmp"]
    return subprocess.run(tried, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="no user namespaces: a disk cannot be made")


@pytest.fixture
def start() -> Iterator[Start]:
    """A router with two models, not started yet; in a short folder, as the paths of sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        folder = Path(name)

        def make(kind: type[RouterProcess] = RouterProcess, config: str = "", **env: str) -> RouterProcess:
            made = kind(folder, binary(folder), config=config, env=env)
            for model in ("tiny", "other"):
                make_llama(made.models / f"{model}.gguf", sparse=True)
            return made

        yield make


# --- files and connections ---


def only_so_many_files(up: RouterProcess, more: int) -> None:
    """More than are open now; with 0 really none, also where one that was open for a moment is closed."""
    process = psutil.Process(up.process.pid)
    _, hard = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + more if more else 3, hard))


def as_many_files_as_before(up: RouterProcess) -> None:
    process = psutil.Process(up.process.pid)
    _, hard = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def test_it_takes_as_many_files_as_it_may_have(start: Start):
    async with start() as up:
        soft, hard = psutil.Process(up.process.pid).rlimit(resource.RLIMIT_NOFILE)
        assert soft == hard


async def test_without_files_for_the_child_a_request_is_refused_with_the_reason_and_the_next_served(
    start: Start,
):
    async with start() as up:
        assert (await up.chat("tiny"))[0] == 200
        only_so_many_files(up, 0)
        status, answer = await up.chat("tiny")
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert "ulimit -n" in answer["error"]["message"]
        as_many_files_as_before(up)
        assert (await up.chat("tiny"))[0] == 200


async def test_without_files_for_a_spawn_the_load_fails_and_leaves_nothing(start: Start):
    async with start() as up:
        assert (await up.chat("tiny"))[0] == 200
        children = [child.pid for child in up.children()]
        process = psutil.Process(up.process.pid)
        for more in range(12):  # at each of the files that a start opens
            only_so_many_files(up, more)
            status, answer = await up.chat("other")
            as_many_files_as_before(up)
            if status == 200:
                break
            assert status in (500, 502, 503), answer
            await up.until(lambda: [c.pid for c in up.children()] == children, "nothing is left of it")
            assert not zombies(process)
        await until_served(up, "other")
        assert (await up.chat("tiny"))[0] == 200


async def test_a_reload_without_files_is_none_and_loses_no_model_at_whichever_file_it_happens(start: Start):
    async with start() as up:
        assert (await up.chat("tiny"))[0] == 200
        before = await listed(up)
        children = [child.pid for child in up.children()]
        outcomes = []
        for more in range(24):
            done = up.output.count("reloaded")
            only_so_many_files(up, more)
            up.send(signal.SIGHUP)
            await up.until(partial(_has_more, up, "reloaded", done), "it is reloaded, or not")
            as_many_files_as_before(up)
            outcomes.append(up.output.rpartition("reloaded")[0].endswith("not "))
            assert await listed(up) == before
        assert outcomes[0] and not outcomes[-1], "at first there were too few, in the end enough"
        assert [child.pid for child in up.children()] == children
        assert (await up.chat("other"))[0] == 200


def _has_more(up: RouterProcess, word: str, count: int) -> bool:
    return up.output.count(word) > count


async def listed(up: RouterProcess) -> dict[str, str]:
    async with up.client.get("/v1/models") as answer:
        return {model["id"]: model["status"]["value"] for model in (await answer.json())["data"]}


def zombies(process: psutil.Process) -> list[psutil.Process]:
    return [one for one in process.children() if one.status() == psutil.STATUS_ZOMBIE]


async def until_served(up: RouterProcess, model: str) -> None:
    """After the pause that follows a failed load."""
    await until(lambda: up.chat(model), holds=lambda answer: answer[0] == 200)


async def test_a_flood_of_connections_does_not_end_what_runs_and_when_it_is_over_all_are_served(
    start: Start,
):
    env = '{ FAKE_LLAMA_TOKENS = "100", FAKE_LLAMA_TOKEN_SECONDS = "0.02" }'
    async with start(config=f"[child]\nenv = {env}\n") as up, Stream(up, "tiny") as stream:
        only_so_many_files(up, 20)
        where = urlsplit(up.url)
        flood = []
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex((where.hostname, where.port))
                flood.append(one)
            assert (await stream.rest())[-1] == "[DONE]", "a stream that had begun runs on to its end"
            assert up.process.poll() is None
        async with aiohttp.ClientSession(up.url) as stranger:
            await until(lambda: is_healthy(stranger))
        assert (await up.chat("tiny"))[0] == 200


# --- disks ---


@needs_mount
async def test_on_a_full_disk_models_are_loaded_and_served_and_the_router_ends_well(start: Start):
    up = start(OnItsOwnDisk)
    assert isinstance(up, OnItsOwnDisk)
    async with up:
        assert (await up.chat("tiny"))[0] == 200
        ballast = up.fill()
        assert (await up.chat("tiny"))[0] == 200
        assert (await up.chat("other"))[0] == 200, "a new child, its record and its log find no room"
        await up.until(lambda: "going on in memory" in up.output, "it has said so")
        ballast.unlink()
        assert (await up.chat("tiny"))[0] == 200
        assert await up.stop() == 0
        assert not up.children()
        assert "Traceback" not in up.output


@needs_mount
async def test_a_restart_on_a_full_disk_keeps_the_models(start: Start):
    up = start(OnItsOwnDisk)
    assert isinstance(up, OnItsOwnDisk)
    async with up:
        up.fill()
        assert (await up.chat("tiny"))[0] == 200, up.output
        children = [child.pid for child in up.children()]
        assert "going on in memory" in up.output
        await up.restart()
        assert [child.pid for child in up.children()] == children
        async with up.client.post("/v1/chat/completions", json={"model": "tiny"}) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"


@needs_mount
async def test_with_a_state_folder_gone_read_only_what_is_loaded_serves_on_and_a_load_says_why_not(
    start: Start,
):
    up = start(OnItsOwnDisk)
    assert isinstance(up, OnItsOwnDisk)
    async with up:
        assert (await up.chat("tiny"))[0] == 200
        up.make_read_only()
        assert (await up.chat("tiny"))[0] == 200
        status, answer = await up.chat("other")
        assert (status, answer["error"]["code"]) == (503, "load_failed")
        assert "Read-only file system" in answer["error"]["message"]
        assert (await up.chat("tiny"))[0] == 200
        assert await up.stop() == 0
        assert not up.children()


# --- clocks ---


def test_nothing_is_waited_for_by_the_clock_on_the_wall():
    """Time that is set or jumps changes neither a wait nor an age: those are told by the loop's clock. Only
    what is shown to people or outlives the machine is dated.
    """
    shown = {
        "admin/access_log.py": 1,
        "admin/requests.py": 1,
        "admin/page/state.py": 1,
        "admin/page/stream.py": 1,
        "admin/context.py": 1,
    }
    shown |= {"cli/pull.py": 1, "downloads/downloads.py": 3, "observability/journal.py": 1}
    dated = {**shown, "hosts/local.py": 1, "db/store.py": 1, "app/parts.py": 1}
    root = Path(package.__file__).parent
    found = {}
    for path in root.rglob("*.py"):
        uses = re.findall(
            r"\btime\.time\(|datetime\.now|utcnow|CLOCK_REALTIME", path.read_text(encoding="utf-8")
        )
        if uses:
            found[path.relative_to(root).as_posix()] = len(uses)
    assert {name: count for name, count in found.items() if dated.get(name) != count} == {}


# --- memory ---


async def test_a_body_of_100_mb_is_held_once(start: Start):
    """`model` is found in its pieces, and these are handed to the child."""
    size = 100 << 20

    def peak(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10

    async with start() as up:
        assert (await up.chat("tiny"))[0] == 200
        before = peak(up.process.pid)
        body = b'{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"%b"}]}' % (b"x" * size)
        async with up.client.post("/v1/chat/completions", data=io.BytesIO(body)) as answer:
            assert answer.status == 200, await answer.text()
        assert peak(up.process.pid) - before < 1.2 * size, "it was copied on its way"
