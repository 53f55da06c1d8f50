"""Where the router keeps what it writes: its database, the logs and the sockets of its children."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from router.config.tree import Config
from router.errors import StartupError

MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path holds 108 bytes, the last of them zero."""
SOCKET_NAME_BYTES = 40
"""Room kept for `/NAME.sock` beside the folder; hosts name their sockets shorter than that."""


@dataclass(frozen=True, slots=True)
class StatePaths:
    """`runtime_dir` holds sockets and is short enough for them; `state_dir` outlives a reboot."""

    state_dir: Path
    runtime_dir: Path

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def database(self) -> Path:
        return self.state_dir / "router.sqlite"

    def prepare(self) -> None:
        """Make the folders, private (0700), and see that they can be written to.

        A `state_dir` that exists already keeps its mode: it may be a folder that the user shares with others.
        Raises StartupError with the reason.
        """
        for folder in (self.state_dir, self.logs_dir, self.runtime_dir):
            try:
                _make_folder(folder)
                if folder != self.state_dir:
                    _claim(folder)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                reason = error.strerror or str(error)
                where = (
                    Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else folder
                )
                if where not in (folder, *folder.parents):
                    where = folder
                raise StartupError(f"cannot write to {folder}: {where}: {reason}") from error


def state_paths(config: Config) -> StatePaths:
    """By XDG, or all below `paths.state_dir` where that is set.

    A runtime folder whose name is too long for a socket is replaced by a short, private one in /tmp.
    """
    if config.paths.state_dir is not None:
        state_dir = config.paths.state_dir
        runtime_dir = state_dir / "run"
    else:
        state_dir = _xdg("XDG_STATE_HOME", ".local/state") / "llama-router"
        xdg_runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        runtime_dir = Path(xdg_runtime) / "llama-router" if xdg_runtime.startswith("/") else state_dir / "run"
    return StatePaths(state_dir, _short_enough(runtime_dir))


def models_dirs(config: Config) -> tuple[Path, ...]:
    """The folders to look for models in: those of `paths.models_dirs`, else llama-router/models in
    $XDG_DATA_HOME.
    """
    return config.paths.models_dirs or (_xdg("XDG_DATA_HOME", ".local/share") / "llama-router" / "models",)


def _xdg(variable: str, default: str) -> Path:
    """A base directory of the XDG specification, which says to ignore a relative one."""
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def _short_enough(folder: Path) -> Path:
    if len(os.fsencode(folder)) + SOCKET_NAME_BYTES <= MAX_SOCKET_PATH_BYTES:
        return folder
    # The hash keeps two routers of one user apart, and gives each the same folder again after a restart.
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path("/tmp") / f"llama-router-{os.getuid()}-{digest}"


def _make_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _claim(folder: Path) -> None:
    """Refuse a folder of somebody else: in /tmp anybody may take a name before us, and then replace the
    sockets in it.
    """
    for status in (folder.lstat(), folder.stat()):  # a link of theirs to a folder of ours is theirs too
        if status.st_uid != os.getuid():
            raise StartupError(f"cannot use {folder}: it belongs to another user (uid {status.st_uid})")
    if stat.S_IMODE(folder.stat().st_mode) != 0o700:
        folder.chmod(0o700)
