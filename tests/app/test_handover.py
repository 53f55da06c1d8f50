"""What two processes say to each other while one takes the other's place, over a real socket pair; and a real
process that is started for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from router.app.handover import (
    VARIABLE,
    HandoverState,
    Predecessor,
    RestartFailed,
    Successor,
    _Line,
    taking_over,
)
from router.errors import StartupError
from tests.deadline import DEADLINE_SECONDS
from tests.hosts.test_records import RECORD
from tests.scarcity import few_descriptors


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What "the same command once more" is."""
    monkeypatch.delenv(VARIABLE, raising=False)

    def runs(script: str) -> None:
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", script])

    return runs


def lines(*messages: object) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


# --- messages ---


async def test_messages_come_one_by_one_however_they_were_cut(ends):
    line, there = _Line(ends[0]), ends[1]
    for piece in (lines({"ready": True}, {"ended": "r1"})[:20], lines({"ready": True}, {"ended": "r1"})[20:]):
        there.send(piece)
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await line.read() == {"ready": True}
        assert await line.read() == {"ended": "r1"}


async def test_more_leases_than_a_socket_takes_at_once_arrive(ends):
    """Each of thousands of streams has one."""
    successor = Successor(_Line(ends[0]), cast(Any, FakeProcess()))
    predecessor = Predecessor(ends[1], ())
    held = {f"r{number}": "a-model-with-a-rather-long-name#1" for number in range(20_000)}
    async with asyncio.timeout(DEADLINE_SECONDS):
        letting_go = asyncio.ensure_future(predecessor.let_go())
        await successor.says("ready")
        successor.let_go(held, [RECORD])
        left = await letting_go
        assert (left.leases, left.children) == (held, (RECORD,))


async def test_who_speaks_to_one_that_is_gone_goes_on(ends):
    line = _Line(ends[0])
    ends[1].close()
    line.write({"ended": "r1"})
    line.write({"ended": "r2"})


class FakeProcess:
    """Stands for one that has ended."""

    pid = 0

    def wait(self) -> int:
        return 3

    def send_signal(self, number: signal.Signals) -> None:
        raise ProcessLookupError


# --- the former process ---


async def test_the_next_process_is_the_same_command_with_the_sockets_and_the_variables(command, tmp_path):
    script = f"""
import json, os, socket, sys
fds = [int(fd) for fd in os.environ["{VARIABLE}"].split(",")]
line = socket.socket(fileno=fds[0])
told = [os.environ["NOTIFY_SOCKET"], *(socket.socket(fileno=fd).getsockname()[1] for fd in fds[1:])]
line.sendall(json.dumps({{"ready": told}}).encode() + b"\\n")
told = line.makefile().readline()
line.sendall(told.encode())
line.recv(1)
"""
    command(script)
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        successor = await Successor.start([first, second], {"NOTIFY_SOCKET": "/n"})
        async with asyncio.timeout(DEADLINE_SECONDS):
            message = await successor._line.read()
            assert message == {"ready": ["/n", first.getsockname()[1], second.getsockname()[1]]}
            successor.let_go({"r7": "tiny#1"}, [])
            assert await successor._line.read() == {"leases": {"r7": "tiny#1"}, "children": []}
            await successor.give_up()
        assert successor._process.returncode == -signal.SIGKILL


async def test_one_that_ends_before_it_has_said_so_has_failed_with_its_status(command):
    command("raise SystemExit(7)")
    successor = await Successor.start([], {})
    with pytest.raises(RestartFailed, match="ended with status 7 before it served; its log says why"):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await successor.says("ready")
    await successor.give_up()


async def test_one_that_says_why_it_does_not_start_has_failed_with_that(command):
    command(
        f"import os, socket; line = socket.socket(fileno=int(os.environ['{VARIABLE}']));"
        """line.sendall(b'{"failed": "config.toml:3: no such key"}\\n')"""
    )
    successor = await Successor.start([], {})
    with pytest.raises(RestartFailed, match="does not start: config.toml:3: no such key"):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await successor.says("ready")
    await successor.give_up()


async def test_one_that_talks_nonsense_has_failed(command):
    command(
        f"import os, socket; line = socket.socket(fileno=int(os.environ['{VARIABLE}']));"
        "line.sendall(b'hello\\n'); line.recv(1)"
    )
    successor = await Successor.start([], {})
    with pytest.raises(RestartFailed, match="what nobody understands"):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await successor.says("ready")
    await successor.give_up()


async def test_a_program_that_is_gone_is_a_failed_restart_and_leaves_no_descriptor(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(RestartFailed, match="cannot start the next router: No such file"):
        await Successor.start([], {})
    assert len(sorted(Path("/proc/self/fd").iterdir())) == len(before)


@pytest.mark.parametrize("free", range(0, 18, 3))
async def test_files_that_run_out_at_whichever_step_are_a_failed_restart_and_leave_none_open(command, free):
    command("import sys; sys.stdin.read()")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await asyncio.to_thread(int)  # its thread, and what that opens, is there
        before = sorted(Path("/proc/self/fd").iterdir())
        with few_descriptors(free), pytest.raises(RestartFailed, match="Too many open files"):
            await Successor.start([listening], {})
        assert len(sorted(Path("/proc/self/fd").iterdir())) == len(before)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("socket.socketpair", OSError(24, "Too many open files"), "Too many open files"),
        ("subprocess.Popen", OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        ("subprocess.Popen", RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
async def test_whatever_is_not_to_be_had_is_a_failed_restart_and_leaves_no_descriptor(
    command, monkeypatch, target, error, words
):
    def fail(*_: object, **__: object) -> None:
        raise error

    command("")
    monkeypatch.setattr(target, fail)
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(RestartFailed, match=f"cannot start the next router: {words}"):
        await Successor.start([], {})
    assert len(sorted(Path("/proc/self/fd").iterdir())) == len(before)


async def test_a_start_that_is_cancelled_leaves_no_process_that_would_take_over_later(command, monkeypatch):
    command("import time; time.sleep(600)")
    popen, begun, go_on = subprocess.Popen, threading.Event(), threading.Event()
    made: list[subprocess.Popen[bytes]] = []

    def slow(*args: Any, **more: Any) -> subprocess.Popen[bytes]:
        begun.set()
        go_on.wait(DEADLINE_SECONDS)
        made.append(popen(*args, **more))
        return made[0]

    monkeypatch.setattr("router.app.handover.subprocess.Popen", slow)
    starting = asyncio.ensure_future(Successor.start([], {}))
    await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
    starting.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert made[0].returncode == -signal.SIGKILL


async def test_giving_up_one_that_has_ended_already_is_nothing(command):
    command("")
    successor = await Successor.start([], {})
    await asyncio.to_thread(successor._process.wait)
    await successor.give_up()


# --- the next process ---


def test_where_it_is_no_restart_there_is_none():
    assert Predecessor.from_environ({}) is None


async def test_the_next_takes_its_descriptors_and_lets_no_child_have_them(ends):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fds = [os.dup(ends[1].fileno()), os.dup(listening.fileno())]
        for fd in fds:
            os.set_inheritable(fd, True)
        environ = {VARIABLE: ",".join(map(str, fds)), "HOME": "/"}
        predecessor = Predecessor.from_environ(environ)
        assert predecessor is not None
        assert environ == {"HOME": "/"}, "what it starts is not to take it for its own"
        assert not any(os.get_inheritable(fd) for fd in fds)
        assert [one.getsockname() for one in predecessor.listening] == [listening.getsockname()]
        predecessor.serving()
        assert ends[0].recv(100) == lines({"serving": True})
        predecessor._line.close()
        for one in predecessor.listening:
            one.close()


async def test_if_the_former_dies_before_it_has_let_go_there_are_no_leases(ends):
    predecessor = Predecessor(ends[1], ())
    letting_go = asyncio.ensure_future(predecessor.let_go())
    await asyncio.sleep(0)
    ends[0].close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await letting_go == HandoverState()


async def test_leases_end_one_by_one_and_at_the_latest_with_the_former(ends):
    predecessor = Predecessor(ends[1], ())
    ends[0].send(lines({"ended": "r1"}, {"ended": "r2"}))
    ended = []
    async with asyncio.timeout(DEADLINE_SECONDS):
        async for lease in predecessor.ended():
            ended.append(lease)
            if lease == "r2":
                ends[0].close()
    assert ended == ["r1", "r2"]


async def test_a_former_that_dies_in_the_middle_of_a_word_has_ended(ends):
    predecessor = Predecessor(ends[1], ())
    ends[0].send(lines({"ended": "r1"}) + b'{"ended": "r')
    ends[0].close()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert [lease async for lease in predecessor.ended()] == ["r1"]


def test_why_a_next_process_does_not_start_is_told_to_the_former_and_raised(ends, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(os.dup(ends[1].fileno())))
    with pytest.raises(StartupError), taking_over() as predecessor:
        assert predecessor is not None
        raise StartupError("cannot write to /state")
    assert ends[0].recv(1000) == lines({"failed": "cannot write to /state"})
    assert predecessor is not None
    predecessor._line.close()


def test_without_a_former_it_is_just_raised():
    with pytest.raises(StartupError), taking_over() as predecessor:
        assert predecessor is None
        raise StartupError("cannot write to /state")
