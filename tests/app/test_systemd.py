"""What a service manager hears from a running router, and the sockets that it opens for it.

The router is a process of its own; the test plays the manager: its end of NOTIFY_SOCKET and of LISTEN_FDS."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import psutil
import pytest

from router.app.requests import Requests
from router.app.serving import _Server
from router.app.systemd import Notifier, take_sockets
from router.errors import StartupError
from tests.deadline import DEADLINE_SECONDS
from tests.make_gguf import make_llama
from tests.router_process import REPOSITORY, RouterProcess
from tests.test_app import binary
from tests.waiting import until

_CREDENTIALS = struct.Struct("3i")
WATCHDOG_SECONDS = 0.4


class Manager:
    """Hears what a service says. `heard` is (pid of the sender, its assignments)."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(address)
        self.heard: list[tuple[int, list[str]]] = []

    def close(self) -> None:
        with suppress(RuntimeError):  # where no loop runs nobody reads
            asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()

    def listen(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            pid, _, _ = _CREDENTIALS.unpack(ancillary[0][2])
            self.heard.append((pid, data.decode().split("\n")))

    async def hears(self, wanted: str, *, pid: int | None = None, since: int = 0) -> list[str]:
        """Return the first message from `since` on that has an assignment that begins so."""

        def found() -> list[str] | None:
            self.listen()
            for sender, message in self.heard[since:]:
                if pid in (None, sender) and any(line.startswith(wanted) for line in message):
                    return message
            return None

        message: list[str] = await until(found, wanted)
        return message


class UnderSystemd(RouterProcess):
    """`listening` are sockets that it finds as systemd would give them."""

    def __init__(self, *args: Any, listening: tuple[socket.socket, ...] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self.listening = listening

    def spawn(self) -> None:
        fds = [one.fileno() for one in self.listening]
        script = "".join(f"exec {3 + number}<&{fd}; " for number, fd in enumerate(fds))
        script += f'LISTEN_PID=$$ LISTEN_FDS={len(fds)} exec "$@"'
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", *self.command()],
                cwd=REPOSITORY,
                env=self._env,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
            )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the paths of Unix sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        yield Path(name)


@pytest.fixture
async def manager(folder: Path) -> AsyncIterator[Manager]:
    with closing(Manager(str(folder / "notify"))) as made:
        # As it comes: ten messages that nobody reads are all that the kernel holds.
        asyncio.get_running_loop().add_reader(made.socket, made.listen)
        yield made


def service(folder: Path, *, listening: tuple[socket.socket, ...] = (), **env: str) -> UnderSystemd:
    made = UnderSystemd(folder, binary(folder), listening=listening, env=env)
    make_llama(made.models / "tiny.gguf", sparse=True)
    return made


def notified(folder: Path) -> UnderSystemd:
    microseconds = str(int(WATCHDOG_SECONDS * 1e6))
    return service(folder, NOTIFY_SOCKET=str(folder / "notify"), WATCHDOG_USEC=microseconds)


async def test_it_says_that_it_is_ready_alive_what_it_does_and_that_it_stops(folder: Path, manager: Manager):
    async with notified(folder) as up:
        message = await manager.hears("READY=1")
        assert any(line.startswith("STATUS=0 models loaded") for line in message)
        assert await up.get("/health") == {"status": "ok"}
        await up.chat("tiny")
        assert "WATCHDOG=1" in await manager.hears("STATUS=1 models loaded (tiny)")
        since = len(manager.heard)
        for _ in range(3):
            await manager.hears("WATCHDOG=1", since=since)
            since = len(manager.heard)
        assert await up.stop() == 0
        await manager.hears("STOPPING=1")
        assert {pid for pid, _ in manager.heard} == {up.process.pid}


async def test_nothing_is_said_before_it_listens(folder: Path, manager: Manager):
    up = notified(folder)
    up.config.write_text("[server]\nprot = 1\n")
    up.spawn()
    assert await asyncio.to_thread(up.process.wait, DEADLINE_SECONDS) == 2
    manager.listen()
    assert manager.heard == []


async def test_its_children_cannot_speak_in_its_name(folder: Path, manager: Manager):
    async with notified(folder) as up:
        await up.chat("tiny")
        (child,) = up.children()
        names = set(child.environ())
        assert not names & {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"}


async def test_a_reload_is_told_from_its_beginning_to_its_end(folder: Path, manager: Manager):
    async with notified(folder) as up:
        await manager.hears("READY=1")
        since = len(manager.heard)
        up.send(signal.SIGHUP)
        message = await manager.hears("RELOADING=1", since=since)
        assert message[1].startswith("MONOTONIC_USEC=")
        await manager.hears("READY=1", since=since)


async def test_after_a_restart_the_new_process_is_the_service(folder: Path, manager: Manager):
    async with notified(folder) as up:
        await manager.hears("READY=1")
        since = len(manager.heard)
        successor = await up.restart()
        reloading = await manager.hears("RELOADING=1", since=since, pid=up.process.pid)
        assert reloading[1].startswith("MONOTONIC_USEC=")
        # From the former, as only the main process is believed.
        message = await manager.hears("READY=1", since=since, pid=up.process.pid)
        assert message[0] == f"MAINPID={successor.pid}"
        await manager.hears("WATCHDOG=1", pid=successor.pid)
        await up.until(lambda: up.process.poll() is not None, "the former process has ended")
        manager.listen()
        last = [lines[0] for pid, lines in manager.heard if pid == up.process.pid][-1]
        assert last.startswith("MAINPID="), "it says nothing any more, not even that it stops"


async def test_a_restart_that_fails_is_told_with_its_reason(folder: Path, manager: Manager):
    async with notified(folder) as up:
        await manager.hears("READY=1")
        since = len(manager.heard)
        up.config.write_text("[server]\nprot = 1\n")
        up.send(signal.SIGUSR2)
        message = await manager.hears("READY=1", since=since)
        assert any(line.startswith("STATUS=not restarted: ") and "prot" in line for line in message)
        await manager.hears("WATCHDOG=1", since=len(manager.heard), pid=up.process.pid)


async def test_the_watchdog_hears_nothing_when_the_scheduler_does_not_answer(folder: Path, manager: Manager):
    class Broken:
        def snapshot(self) -> None:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        await _server(Broken(), Notifier(str(folder / "notify"), 1.0))._notify()
    manager.listen()
    assert manager.heard == []


def _server(pool: Any, notifier: Notifier) -> Any:
    """Of a server what tells the service manager that it lives."""
    server: Any = object.__new__(_Server)
    server.router = SimpleNamespace(requests=Requests(), context=SimpleNamespace(pool=pool))
    server.notifier, server.listening, server.stop = notifier, [], asyncio.Event()
    server.restart = SimpleNamespace(done=asyncio.Event(), lost=asyncio.Event())
    return server


async def _tell(folder: Path, listening: socket.socket) -> None:
    """As a router that listens on one socket does, until it is cancelled."""
    snapshot = SimpleNamespace(instances=(), queues=())
    server = _server(SimpleNamespace(snapshot=lambda: snapshot), Notifier(str(folder / "notify"), 0.1))
    server.listening.append(listening)
    await server._notify()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
async def test_the_watchdog_hears_nothing_while_the_socket_accepts_and_nobody_answers(
    folder: Path, manager: Manager, family: socket.AddressFamily, caplog: pytest.LogCaptureFixture
):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        writer.close()

    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(folder / "http"))
        listening.listen()
        telling = asyncio.ensure_future(_tell(folder, listening))
        await until(lambda: caplog.text.count("own socket was not answered") >= 3)
        assert manager.heard == []
        start = asyncio.start_server if family == socket.AF_INET else asyncio.start_unix_server
        async with await start(answer, sock=listening.dup()):
            await manager.hears("WATCHDOG=1")
        telling.cancel()


async def test_the_watchdog_is_told_though_no_file_is_left_to_ask_with(
    folder: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
):
    """What runs is served; to end it would not help."""

    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr("router.app.listening.check_left", none_left)
        telling = asyncio.ensure_future(_tell(folder, listening))
        await manager.hears("WATCHDOG=1")
        telling.cancel()


async def test_a_router_that_is_frozen_is_not_heard_and_what_replaces_it_has_its_models(
    folder: Path, manager: Manager
):
    async with notified(folder) as up:
        assert (await up.chat("tiny"))[0] == 200
        before = [child.pid for child in up.children()]
        up.send(signal.SIGSTOP)
        await up.until(lambda: psutil.Process(up.process.pid).status() == psutil.STATUS_STOPPED, "it stands")
        manager.listen()
        heard = len(manager.heard)
        await asyncio.sleep(2 * WATCHDOG_SECONDS)  # in which the watchdog would be heard
        manager.listen()
        assert len(manager.heard) == heard, "systemd ends it now, with SIGABRT and then SIGKILL"
        up.send(signal.SIGABRT)
        up.send(signal.SIGKILL)
        await asyncio.to_thread(up.process.wait)
        await up.start_again()
        async with up.client.post("/v1/chat/completions", json={"model": "tiny"}) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"
        assert [child.pid for child in up.children()] == before


async def test_it_serves_on_the_sockets_of_the_manager_also_who_came_before_it_was_up(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        early = socket.create_connection(first.getsockname())
        early.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with service(folder, listening=(first, second)) as up:
            assert b"200 OK" in await asyncio.to_thread(early.recv, 4096)
            early.close()
            for one in (first, second):
                assert f"http://127.0.0.1:{one.getsockname()[1]}" in up.output
            await up.chat("tiny")
            before = up.children()
            await up.restart()
            assert await up.get("/health") == {"status": "ok"}
            assert up.children() == before


async def test_a_unix_socket_of_the_manager_will_do(folder: Path):
    path = str(folder / "http")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        up = service(folder, listening=(listening,))
        up.spawn()
        try:
            await up.until(lambda: f"listens on unix:{path}" in up.output, "the router listens")
            connector = aiohttp.UnixConnector(path)
            async with (
                aiohttp.ClientSession(connector=connector) as client,
                client.get("http://router/health") as answer,
            ):
                assert answer.status == 200
        finally:
            assert await up.stop() == 0


# --- the variables ---


def test_without_a_manager_nothing_is_said_or_taken():
    environ = {"HOME": "/home"}
    notifier = Notifier.from_environ(environ)
    notifier.ready("up")
    assert (notifier.address, notifier.watchdog_seconds, notifier.variables()) == ("", None, {})
    assert take_sockets(environ) == ()


def test_variables_meant_for_another_process_are_taken_out_and_ignored():
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1", "LISTEN_PID": "1"}
    environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
    assert Notifier.from_environ(environ).watchdog_seconds is None
    assert take_sockets(environ) == ()
    assert environ == {}


def test_the_next_process_gets_them_again_for_whatever_its_pid_will_be():
    environ = {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier.from_environ(environ)
    assert notifier.watchdog_seconds == 30.0
    assert notifier.variables() == {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "30000000"}


def test_an_abstract_address_is_understood(folder: Path):
    name = f"@llama-router-test-{os.getpid()}"
    with closing(Manager("\0" + name[1:]).socket) as manager:
        Notifier(name).ready("all\nwell")
        assert manager.recv(4096) == b"READY=1\nSTATUS=all well"


def test_a_manager_that_does_not_read_just_now_hears_all_but_the_signs_of_life(folder: Path):
    notifier = Notifier(str(folder / "notify"))
    with closing(Manager(str(folder / "notify"))) as manager:
        for _ in range(100):
            notifier.alive("up")
        busy = threading.Timer(0.05, manager.listen)
        busy.start()
        notifier.ready("serving", main_pid=1)
        busy.join()
        manager.listen()
        assert len(manager.heard) < 100
        assert manager.heard[-1][1][:2] == ["MAINPID=1", "READY=1"]


def test_the_next_process_is_named_though_no_file_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch):
    given = Notifier.from_environ({"NOTIFY_SOCKET": str(folder / "notify")})
    with closing(Manager(str(folder / "notify"))) as manager, given.opened() as notifier:

        def none_left(*_: object) -> None:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("router.app.systemd.socket.socket", none_left)
            notifier.ready("serving", main_pid=17)
        manager.listen()
        assert [lines[0] for _, lines in manager.heard] == ["MAINPID=17"]


def test_a_manager_that_is_gone_is_no_reason_to_fail(folder: Path, caplog):
    Notifier(str(folder / "nobody")).ready("up")
    assert "cannot tell the service manager READY=1" in caplog.text


def test_a_socket_that_does_not_listen_is_a_message():
    script = "import os; from router.app.systemd import take_sockets as take\n"
    script += "os.environ['LISTEN_PID'] = str(os.getpid()); take(os.environ)"
    with open(os.devnull) as null:
        done = subprocess.run(
            ["bash", "-c", f'exec 3<&{null.fileno()}; exec "$@"', "bash", sys.executable, "-c", script],
            cwd=REPOSITORY,
            env={**os.environ, "LISTEN_FDS": "1"},
            pass_fds=[null.fileno()],
            capture_output=True,
            text=True,
        )
    last = done.stderr.splitlines()[-1]
    assert last.endswith("the inherited descriptor 3 is not a socket: Socket operation on non-socket")
    assert StartupError.__name__ in last
