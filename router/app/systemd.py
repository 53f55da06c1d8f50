"""systemd's two protocols, of sd_notify(3) and sd_listen_fds(3): what the service manager is told, and the
sockets it opens. Without systemd both do nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final, Self

from router.errors import StartupError

log = logging.getLogger("router.app")

#: Where the inherited sockets begin (SD_LISTEN_FDS_START).
FIRST_FD: Final = 3
#: A manager that is busy, or executes itself anew, reads what it was told within this time.
PATIENCE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Notifier:
    """Tells the service manager of the state of the service. `watchdog_seconds` is the time within which it
    wants a sign of life, None if it wants none.
    """

    address: str = ""
    watchdog_seconds: float | None = None
    out: socket.socket | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Self:
        """Takes the variables out: what this process starts shall not speak in its name."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_meant = bool(address) and pid in ("", str(os.getpid()))
        is_wanted = is_meant and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address, int(microseconds) / 1e6 if is_wanted else None)

    @contextmanager
    def opened(self) -> Iterator[Self]:
        """With its socket held open. Files may have run out by the time at which a restart must name the next
        process, and a manager that has not heard of that process ends it together with this one.
        """
        with ExitStack() as held:
            out = None
            if self.address:
                with suppress(OSError):
                    out = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            yield replace(self, out=out)

    def variables(self) -> dict[str, str]:
        """For the process that takes this one's place."""
        if not self.address:
            return {}
        seconds = self.watchdog_seconds
        watchdog = {} if seconds is None else {"WATCHDOG_USEC": str(round(seconds * 1e6))}
        return {"NOTIFY_SOCKET": self.address, **watchdog}

    def ready(self, status: str, *, main_pid: int | None = None) -> None:
        """It serves; or, after `reloading`, it serves again. `main_pid` is who is the service from now on."""
        self.tell(*([f"MAINPID={main_pid}"] if main_pid is not None else []), "READY=1", _status(status))

    def reloading(self, status: str) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.tell("RELOADING=1", f"MONOTONIC_USEC={now}", _status(status))

    def stopping(self, status: str) -> None:
        self.tell("STOPPING=1", _status(status))

    def exiting(self, status: int) -> None:
        """With what status this process is about to exit: while its predecessor is its parent, no other
        process can wait for it.
        """
        self.tell(f"EXIT_STATUS={status}")

    def alive(self, status: str) -> None:
        watchdog = ["WATCHDOG=1"] if self.watchdog_seconds is not None else []
        self.tell(*watchdog, _status(status), patience_seconds=0.0)  # the next one says the same

    def tell(self, *assignments: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits for a manager that does not read just now: one that does not hear who the service is would
        end it. But lost messages are no reason to stop serving.
        """
        if not self.address:
            return
        # A leading @ stands for the zero byte of an abstract socket.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with ExitStack() as opened:
                out = self.out
                if out is None:
                    out = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                out.settimeout(patience_seconds)
                out.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            log.warning("cannot tell the service manager %s: %s", assignments[0], error)


def take_sockets(environ: MutableMapping[str, str]) -> tuple[socket.socket, ...]:
    """The listening sockets that the service manager opened for this process; none is usual. Raises
    StartupError for what is not a listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return ()
    return tuple(listening_socket(fd) for fd in range(FIRST_FD, FIRST_FD + int(count)))


def listening_socket(fd: int) -> socket.socket:
    """An inherited descriptor as a socket, which no child inherits in turn. Raises StartupError."""
    try:
        os.set_inheritable(fd, False)
        found = socket.socket(fileno=fd)
        is_listening = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        raise StartupError(f"the inherited descriptor {fd} is not a socket: {error.strerror}") from error
    if found.type != socket.SOCK_STREAM or not is_listening:
        raise StartupError(f"the inherited socket {fd} does not listen for streams (ListenStream=)")
    found.setblocking(False)
    return found


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())
