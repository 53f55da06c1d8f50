"""One router process gives place to the next: what the two say to each other, over a socket pair, in order.

    the former                                     the next
    starts it, with the listening sockets -------> reads, checks and defines: whatever may go wrong
                                          <------- {"ready": true}, or {"failed": why}, or it ends
    stops accepting; lets go of its children
    {"leases": {"r7": "tiny#1"}, "children": [...]} -> adopts the children, and holds these leases on them
                                          <------- {"serving": true}: it accepts
    {"ended": "r7"} for each --------------------> evicts nobody whom the former still streams from
    ends ----------------------------------------> all of its leases have ended, however it ended

While nobody accepts, connections stand in the queue of the socket, which both hold: none is refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, Self

import msgspec

from router.app.systemd import listening_socket
from router.descriptors import check_left
from router.errors import RouterError
from router.hosts.records import ProcessRecord

log = logging.getLogger("router.app")

#: "7,5,6": the descriptor to speak over, then those that listen.
VARIABLE: Final = "LLAMA_ROUTER_HANDOVER"
_CHUNK_BYTES: Final = 1 << 16


class RestartFailed(RouterError):
    """No next process has taken over; this one serves on, as far as it has not let go of its models."""

    code = "restart_failed"


class Gone(Exception):
    """The other process has ended."""


class _Line:
    """Messages of one JSON object per line."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._end.setblocking(False)
        self._data = b""
        self._unsent = bytearray()

    async def read(self) -> dict[str, Any]:
        """Raises Gone, and ValueError for what is no message."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._data:
            try:
                chunk = await loop.sock_recv(self._end, _CHUNK_BYTES)
            except OSError:
                chunk = b""
            if not chunk:
                raise Gone
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def write(self, message: Mapping[str, object]) -> None:
        """Never waits: what the socket does not take at once follows when it does. One that is gone misses
        it.
        """
        self._unsent += json.dumps(message).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._end.send(self._unsent)]
        except BlockingIOError:  # the leases of some thousand streams
            asyncio.get_running_loop().add_writer(self._end, self._send)
            return
        except OSError:
            self._unsent.clear()
        self._unwatch()

    def _unwatch(self) -> None:
        with suppress(RuntimeError):  # before there is a loop nothing was watched
            asyncio.get_running_loop().remove_writer(self._end)

    def close(self) -> None:
        self._unwatch()
        self._end.close()


class HandoverState(msgspec.Struct, frozen=True):
    """What the former process had. `leases` are those that are still held: lease -> instance."""

    leases: dict[str, str] = {}
    children: tuple[ProcessRecord, ...] = ()


class Successor:
    """The next process, as the former sees it."""

    def __init__(self, line: _Line, process: subprocess.Popen[bytes]) -> None:
        self._line = line
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, listening: Sequence[socket.socket], variables: Mapping[str, str]) -> Self:
        """The same command once more, with the program as it is on disk now. Raises RestartFailed, and then
        neither a process nor a descriptor of the try is left; nor if it is cancelled.
        """
        with ExitStack() as opened:
            try:
                here, there = socket.socketpair()
                opened.callback(here.close)
                with there:
                    fds = [there.fileno(), *(one.fileno() for one in listening)]
                    environ = {**os.environ, **variables, VARIABLE: ",".join(map(str, fds))}
                    process = await _spawned([sys.executable, *sys.orig_argv[1:]], environ, fds)
            except (OSError, RuntimeError) as error:  # no file, no process, no thread, no program
                why = error.strerror if isinstance(error, OSError) and error.strerror else error
                raise RestartFailed(f"cannot start the next router: {why}") from error
            opened.pop_all()
        return cls(_Line(here), process)

    async def says(self, word: str) -> None:
        """Return when it has said so. Raises RestartFailed with its reason, or with how it ended."""
        try:
            message = await self._line.read()
        except Gone:
            status = await asyncio.to_thread(self._process.wait)
            raise RestartFailed(
                f"the next router ended with status {status} before it served; its log says why"
            ) from None
        except ValueError as error:
            raise RestartFailed(f"the next router says what nobody understands: {error}") from error
        if word not in message:
            raise RestartFailed(f"the next router does not start: {message.get('failed', message)}")

    def let_go(self, held: Mapping[str, str], children: Sequence[ProcessRecord]) -> None:
        """The children are its own from now on. Their records are said, too: where the disk takes nothing,
        they stand nowhere else.
        """
        self._line.write({"leases": dict(held), "children": msgspec.to_builtins(children)})

    def lease_ended(self, lease: str) -> None:
        self._line.write({"ended": lease})

    async def give_up(self) -> None:
        """End one that is not to take over, and wait for it."""
        self.end(signal.SIGKILL)
        try:
            await asyncio.to_thread(self._process.wait)
        finally:
            self._line.close()

    def end(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


async def _spawned(
    argv: Sequence[str], environ: Mapping[str, str], fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    """A process, started in a thread. Cancelled, it leaves none: the thread cannot be interrupted, and a next
    router that finds its predecessor gone would take the place of one that was told to stop.
    """
    check_left()

    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, env=environ, pass_fds=fds)

    starting = asyncio.get_running_loop().run_in_executor(None, spawn)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(OSError):
            process = await starting
            process.kill()
            process.wait()
        raise


class Predecessor:
    """The former process, as the next sees it. `listening` are its sockets."""

    def __init__(self, end: socket.socket, listening: tuple[socket.socket, ...]) -> None:
        self._line = _Line(end)
        self.listening = listening

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Self | None:
        """None where this is not a restart."""
        text = environ.pop(VARIABLE, "")
        if not text:
            return None
        fd, *fds = map(int, text.split(","))
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd), tuple(listening_socket(fd) for fd in fds))

    def refuse(self, reason: str) -> None:
        self._line.write({"failed": reason})

    async def let_go(self) -> HandoverState:
        """Ask for the children."""
        self._line.write({"ready": True})
        try:
            message = await self._line.read()
        except Gone:  # it has died: what it left is found as after any crash
            return HandoverState()
        return msgspec.convert(message, HandoverState)

    def serving(self) -> None:
        self._line.write({"serving": True})

    async def ended(self) -> AsyncIterator[str]:
        """The leases that end, until the former process does."""
        with suppress(Gone):
            while True:
                yield (await self._line.read())["ended"]


@contextmanager
def taking_over() -> Iterator[Predecessor | None]:
    """The process whose place this one takes, if there is one: it is told why this one does not start."""
    predecessor = Predecessor.from_environ(os.environ)
    try:
        yield predecessor
    except RouterError as error:
        if predecessor is not None:
            predecessor.refuse(error.message)
        raise
