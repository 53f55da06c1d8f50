"""The folder of sockets and that of logs: whose they are, names for new ones, what is left of former ones."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Final

from router.config import StatePaths
from router.errors import StartupError
from router.process import SOCKET_PATH_MAX_BYTES

_logger = logging.getLogger("router.hosts.local")

#: Logs of dead children are kept for `logs` and for the answer to a failed load, but not for ever.
LOGS_KEPT: Final = 64
_SLUG_LENGTH: Final = 20


class RuntimeDir:
    """Held by one router at a time: two would take each other's children for orphans."""

    def __init__(self, paths: StatePaths) -> None:
        self.path = paths.runtime_dir
        self._logs = paths.logs_dir
        self._paths = paths
        self._lock: int | None = None

    def claim(self) -> None:
        """Raises StartupError where another router is at work, or the path is too long for a socket."""
        assert self._lock is None, "claimed twice"
        self._paths.prepare()
        if len(os.fsencode(self.path / _name("x" * _SLUG_LENGTH))) > SOCKET_PATH_MAX_BYTES:
            raise StartupError(
                f"the path {self.path} is too long for Unix sockets; use a shorter --state-dir"
            )
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StartupError(
                f"another llama-router (pid {holder or 'unknown'}) works in {self.path};"
                " stop it, or use another --state-dir"
            ) from None
        except OSError:  # open, it would keep the folder from the next try of this very process
            os.close(lock)
            raise
        with contextlib.suppress(OSError):  # for people only: on a full disk the lock holds without it
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def restore(self) -> None:
        """Make the folders anew where somebody has removed them, and hold the one that is held. Raises
        StartupError where another router has taken it meanwhile.
        """
        if self._lock is None:  # the last try to claim the folder failed
            self.claim()
        elif not os.fstat(self._lock).st_nlink:
            _logger.warning("%s was removed; children that listened in it are loaded anew", self.path)
            self.release()
            self.claim()
        else:
            self._restore_logs()

    def _restore_logs(self) -> None:
        """A model is worth more than its log: without a folder for it the model runs without one."""
        try:
            if not self._logs.is_dir():
                self._paths.prepare()
        except (OSError, StartupError) as error:
            _logger.warning("there is no folder for logs: %s", error)

    def release(self) -> None:
        """Give the folder to the next router. Safe to call twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def new_socket(self, instance: str) -> Path:
        """A path no child had before: llama-server never unlinks its socket, nor binds one that exists."""
        return self.path / _name(instance)

    def log_of(self, socket: Path) -> Path:
        """The log that belongs to a socket."""
        return self._logs / f"{socket.stem}.log"

    def remove_leftovers(self, alive: Collection[Path]) -> None:
        """Sockets nobody listens on any more, and the oldest logs of dead children. The lock must be held."""
        keep = {self.log_of(socket) for socket in alive}
        left: list[Path] = []
        with contextlib.suppress(OSError):
            left += [socket for socket in self.path.glob("*.sock") if socket not in alive]
        with contextlib.suppress(OSError):
            dead = [log for log in self._logs.glob("*.log") if log not in keep]
            dead.sort(key=lambda log: log.stat().st_mtime, reverse=True)
            left += dead[LOGS_KEPT:]
        for path in left:
            with contextlib.suppress(OSError):  # one that stays keeps none of the others
                path.unlink(missing_ok=True)


def _name(instance: str) -> str:
    """Short (a socket path is), readable, safe as a file name whatever the model is called, and new."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", instance).strip("-.")[:_SLUG_LENGTH] or "model"
    return f"{slug}-{secrets.token_hex(4)}.sock"
