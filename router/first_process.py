"""PID 1 of a container: it starts the router as a child, passes signals on to it, reaps orphans, and stays
when another router process takes the place of the first.

A router that was PID 1 itself would end the container with each restart; default dispositions of signals do
not apply to PID 1, and processes that a llama-server has left behind would remain zombies. It speaks the
protocol of sd_notify(3) with the router: MAINPID= says which process is the router from then on.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from contextlib import suppress
from typing import Final

_SIGNALS: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_MESSAGE_BYTES: Final = 1 << 16
#: How often the router is looked for, in seconds: while it is the child of its predecessor, the kernel does
#: not tell this process of its exit.
_LOOK_SECONDS: Final = 1.0


def serve_in_child() -> None:
    """Return in a child of this process, if this is PID 1, which exits with the router's status. Any other
    process returns as it is. To be called before there are threads.
    """
    if os.getpid() == 1:
        first = _First(os.environ.pop("NOTIFY_SOCKET", ""))
        if first.start():
            os._exit(first.run())


class _First:
    """`manager` is where the service manager outside listens, "" if there is none."""

    def __init__(self, manager: str) -> None:
        self._manager = manager
        self._main = 0  # the pid of the router
        self._announced = 1  # the status with which the router is about to exit, as far as it has told
        self._woken, self._wakes = socket.socketpair()
        for one in (self._woken, self._wakes):
            one.setblocking(False)
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._told.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._told.bind("")  # an abstract address that the kernel chooses: no file system need take it

    def start(self) -> bool:
        """Start the child. True in this process, False in the child."""
        for number in (*_SIGNALS, signal.SIGCHLD):
            signal.signal(number, _wake)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._main = os.fork()
        if self._main:
            return True
        for number in (*_SIGNALS, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)  # not before: what has come until now is sent again by the parent
        os.setpgid(0, 0)  # Ctrl-C in a terminal reaches it once, from here
        self._pass_environment_on()
        for one in (self._woken, self._wakes, self._told):
            one.close()
        return False

    def _pass_environment_on(self) -> None:
        """What the manager outside meant for PID 1 is meant for this process."""
        name: bytes = self._told.getsockname()
        os.environ["NOTIFY_SOCKET"] = "@" + os.fsdecode(name[1:])
        os.environ.pop("WATCHDOG_PID", None)
        if os.environ.get("LISTEN_PID") == "1":
            os.environ["LISTEN_PID"] = str(os.getpid())

    def run(self) -> int:
        """The status with which the router exits, as a shell tells it."""
        while True:
            select.select([self._woken, self._told], [], [], _LOOK_SECONDS)
            numbers = _read(self._woken)
            self._listen()
            for number in numbers:
                if number != signal.SIGCHLD:
                    with suppress(ProcessLookupError):
                        os.kill(self._main, number)
            status = self._reap()
            if status is not None:
                return status

    def _reap(self) -> int | None:
        """Every child that has exited, adopted ones too. None while the router runs."""
        exited: dict[int, int] = {}
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                exited[found[0]] = os.waitstatus_to_exitcode(found[1])
        self._listen()  # what the router said before it exited
        if self._main in exited:
            status = exited[self._main]
            return status if status >= 0 else 128 - status
        try:
            os.kill(self._main, 0)
        except ProcessLookupError:  # reaped by its predecessor, which was its parent
            return self._announced
        return None

    def _listen(self) -> None:
        """Only the router is believed, as with NotifyAccess=main."""
        while True:
            try:
                data, ancillary, _, _ = self._told.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return
            if not ancillary or _CREDENTIALS.unpack(ancillary[0][2])[0] != self._main:
                continue
            lines = data.decode(errors="replace").split("\n")
            for line in lines:
                if line.startswith("MAINPID=") and line[8:].isdecimal():
                    self._main, self._announced = int(line[8:]), 1
                if line.startswith("EXIT_STATUS=") and line[12:].isdecimal():
                    self._announced = int(line[12:])
            self._tell_manager([line for line in lines if not line.startswith("MAINPID=")])

    def _tell_manager(self, lines: list[str]) -> None:
        """This process is the service, whichever the router is."""
        if self._manager:
            address = "\0" + self._manager[1:] if self._manager.startswith("@") else self._manager
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(_LOOK_SECONDS)
                out.sendto("\n".join(lines).encode(), address)


def _wake(*_: object) -> None:
    """Its number is written to the wakeup descriptor."""


def _read(end: socket.socket) -> bytes:
    try:
        return end.recv(4096)
    except BlockingIOError:
        return b""
