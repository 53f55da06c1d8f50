"""The router as the first process of a PID namespace, as in a container: real namespaces, real signals."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.app.test_systemd import Manager
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.test_app import Stream, binary

ENTER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _can_enter() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run([*ENTER, "true"], capture_output=True).returncode
    )


pytestmark = pytest.mark.skipif(not _can_enter(), reason="no PID namespace can be made here")


class InContainer(RouterProcess):
    """It is PID 1 there. `process` is what started the namespace, and ends with it."""

    def command(self) -> list[str]:
        return [*ENTER, *super().command()]

    @property
    def first(self) -> psutil.Process:
        (first,) = psutil.Process(self.process.pid).children()
        return first

    def send(self, number: signal.Signals) -> None:
        self.first.send_signal(number)

    def inside(self) -> list[psutil.Process]:
        """All that runs there, but for the first."""
        return self.first.children(recursive=True)

    def zombies(self) -> list[psutil.Process]:
        return [one for one in self.inside() if one.status() == psutil.STATUS_ZOMBIE]

    async def restart_it(self) -> int:
        async with self.client.post("/restart") as response:
            answer = await response.json()
            assert response.status == 200, answer
        return int(answer["pid"])


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        yield Path(name)


def container(folder: Path, config: str = "", **env: str) -> InContainer:
    made = InContainer(folder, binary(folder), config=config, env=env)
    for model in ("tiny", "other"):
        make_llama(made.models / f"{model}.gguf", sparse=True)
    return made


def routers(up: InContainer) -> list[psutil.Process]:
    found = []
    for one in up.inside():
        with suppress(psutil.Error):  # it has just exited
            if "serve" in one.cmdline():
                found.append(one)
    return found


async def until_one_router(up: InContainer) -> None:
    await up.until(lambda: len(routers(up)) == 1, "the former router has exited")


async def test_a_restart_ends_neither_the_container_nor_a_model_and_can_be_repeated(folder: Path):
    async with container(folder) as up:
        await up.chat("tiny")
        before = [child.pid for child in up.children()]
        pids = {await up.restart_it()}
        await until_one_router(up)
        pids.add(await up.restart_it())
        await until_one_router(up)
        assert len(pids) == 2
        assert up.process.poll() is None
        assert [child.pid for child in up.children()] == before
        async with up.client.post("/v1/chat/completions", json={"model": "tiny"}) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"
        assert await up.stop() == 0, "SIGTERM reaches the router of now"
        assert not up.children()


async def test_a_stream_goes_on_through_a_restart(folder: Path):
    env = '{ FAKE_LLAMA_TOKENS = "200", FAKE_LLAMA_TOKEN_SECONDS = "0.02" }'
    async with container(folder, f'[models."tiny"]\nenv = {env}\n') as up:
        async with Stream(up, "tiny") as stream:
            await up.restart_it()
            assert (await stream.rest())[-1] == "[DONE]"
        await until_one_router(up)
        assert await up.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_first_process_stops_the_router(folder: Path, number: signal.Signals):
    async with container(folder) as up:
        await up.chat("tiny")
        assert await up.stop(number) == 0
        assert not up.children()


async def test_a_hangup_reloads_and_a_user_signal_restarts(folder: Path):
    async with container(folder) as up:
        make_llama(up.models / "third.gguf", sparse=True)
        up.send(signal.SIGHUP)
        await up.until(lambda: "reloaded: 3 models" in up.output, "it has looked again")
        up.send(signal.SIGUSR2)
        await up.until(lambda: "the router is pid" in up.output, "it has restarted")
        assert await up.stop() == 0


async def test_what_exits_without_a_parent_there_is_reaped(folder: Path):
    """A child that has forked twice, and the children of a router that has given its place away."""
    config = '[models."tiny"]\nenv = { FAKE_LLAMA_DOUBLE_FORK = "1" }\n'
    async with container(folder, config) as up:
        for model in ("tiny", "other"):
            await up.chat(model)
        await up.restart_it()
        await until_one_router(up)
        for child in up.children():
            child.kill()
        await up.until(lambda: not up.children(), "they are gone")
        await up.until(lambda: not up.zombies(), "they are reaped")
        assert await up.stop() == 0


async def test_a_router_that_cannot_start_ends_the_container_with_its_status(folder: Path):
    up = container(folder, "[server]\nprot = 1\n")
    up.spawn()
    assert await asyncio.to_thread(up.process.wait, 30) == 2
    assert "did you mean" in up.output


async def test_a_router_that_is_killed_ends_the_container_also_after_a_restart(folder: Path):
    async with container(folder) as up:
        await up.restart_it()
        await until_one_router(up)
        (router,) = routers(up)
        router.kill()
        assert await up.ended() == 128 + signal.SIGKILL


async def test_a_stop_while_the_former_router_still_streams_ends_the_container_as_any_stop(folder: Path):
    """The next router is a child of the former one, so that its status cannot be waited for."""
    env = '{ FAKE_LLAMA_TOKENS = "100000", FAKE_LLAMA_TOKEN_SECONDS = "0.02" }'
    config = f'[server]\nshutdown_grace_seconds = 0.2\n[models."tiny"]\nenv = {env}\n'
    async with container(folder, config) as up, Stream(up, "tiny"):
        await up.restart_it()
        assert len(routers(up)) == 2
        assert await up.stop() == 0
        assert not up.children()


async def test_a_service_manager_outside_hears_what_the_router_says_of_a_service_that_stays(folder: Path):
    with closing(Manager(str(folder / "notify"))) as manager:
        asyncio.get_running_loop().add_reader(manager.socket, manager.listen)
        notify: dict[str, Any] = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"}
        async with container(folder, WATCHDOG_PID="1", **notify) as up:
            await manager.hears("READY=1")
            await manager.hears("WATCHDOG=1")
            since = len(manager.heard)
            await up.restart_it()
            await manager.hears("READY=1", since=since)
            await until_one_router(up)
            await manager.hears("WATCHDOG=1", since=len(manager.heard))
            assert await up.stop() == 0
            await manager.hears("STOPPING=1")
            assert not any("MAINPID" in line for _, lines in manager.heard for line in lines)


async def test_sockets_that_are_meant_for_the_first_process_are_served(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        up = container(folder, LISTEN_PID="1", LISTEN_FDS="1")

        def spawn() -> None:
            script = f'exec 3<&{listening.fileno()}; exec "$@"'
            with open(folder / "output", "wb") as output:
                up.process = subprocess.Popen(
                    ["bash", "-c", script, "bash", *up.command()],
                    env=up._env, stdout=output, stderr=subprocess.STDOUT, pass_fds=[listening.fileno()],
                    cwd=Path(__file__).parents[1],
                )  # fmt: skip

        up.spawn = spawn  # type: ignore[method-assign]
        async with up:
            assert f":{listening.getsockname()[1]}" in up.output
            assert await up.get("/health") == {"status": "ok"}
            assert await up.stop() == 0
