from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from router.config import StatePaths
from router.errors import StartupError
from router.hosts.runtime_dir import RuntimeDir


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeDir:
    paths = StatePaths(tmp_path / "state", tmp_path / "run")
    directory = RuntimeDir(paths)
    directory.claim()
    return directory


def test_a_claimed_folder_is_private_and_released_twice_without_harm(runtime):
    assert runtime.path.stat().st_mode & 0o777 == 0o700
    assert (runtime.path / "lock").read_text() == f"{os.getpid()}\n"
    runtime.release()
    runtime.release()


def test_a_folder_is_claimed_by_one_at_a_time(runtime):
    other = RuntimeDir(StatePaths(runtime.path.parent / "state", runtime.path))
    with pytest.raises(StartupError, match=f"pid {os.getpid()}"):
        other.claim()
    runtime.release()
    other.claim()
    other.release()


def test_a_lock_left_by_a_crash_holds_nobody_up(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "lock").write_text("999999 and more than that\n" * 10)
    runtime = RuntimeDir(StatePaths(tmp_path / "state", tmp_path / "run"))
    runtime.claim()
    assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()}\n"
    runtime.release()


def test_a_path_too_long_for_a_socket_is_refused_at_the_start(tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    with pytest.raises(StartupError, match="too long for Unix sockets; use a shorter --state-dir"):
        RuntimeDir(StatePaths(tmp_path / "state", deep)).claim()


@pytest.mark.parametrize(
    "name", ["qwen3-8b#4", "../../x", "", "#", "ä" * 500, "a" * 500, "-rf", "a\0b\n", "CON"]
)
def test_a_socket_is_named_safely_shortly_and_anew(runtime, name):
    first, second = runtime.new_socket(name), runtime.new_socket(name)
    assert first != second
    assert first.parent == runtime.path
    assert first.suffix == ".sock"
    assert len(first.name.encode()) < 40
    assert not first.name.startswith(("-", "."))
    assert first.name.isprintable()
    assert runtime.log_of(first).stem == first.stem
    runtime.release()


def test_sockets_of_the_living_and_their_logs_are_kept(runtime):
    alive, dead = runtime.new_socket("alive#1"), runtime.new_socket("dead#1")
    for socket in (alive, dead):
        socket.touch()
        runtime.log_of(socket).touch()
    runtime.remove_leftovers([alive])
    assert alive.exists()
    assert not dead.exists()
    assert runtime.log_of(alive).exists()
    assert runtime.log_of(dead).exists(), "the log of a dead child may still be asked for"
    runtime.release()


def test_of_many_old_logs_the_newest_are_kept(runtime):
    for i in range(70):
        log = runtime.log_of(runtime.path / f"{i}.sock")
        log.touch()
        os.utime(log, (i, i))
    runtime.remove_leftovers([])
    left = sorted(int(log.stem) for log in runtime.log_of(Path("x.sock")).parent.glob("*.log"))
    assert left == list(range(6, 70))
    runtime.release()


def test_a_claim_that_fails_leaves_nothing_that_refuses_the_next(tmp_path, monkeypatch):
    runtime = RuntimeDir(StatePaths(tmp_path / "state", tmp_path / "run"))
    before = len(list(Path("/proc/self/fd").iterdir()))

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No locks available"):
        patch.setattr(fcntl, "flock", no_locks)
        runtime.claim()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    runtime.claim()
    runtime.release()


def test_a_disk_that_takes_no_pid_is_no_reason_not_to_claim(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    runtime = RuntimeDir(StatePaths(tmp_path / "state", tmp_path / "run"))
    runtime.claim()
    runtime.release()


def test_a_folder_that_could_not_be_restored_once_is_restored_the_next_time(runtime, monkeypatch):
    shutil.rmtree(runtime.path)

    def out_of_files(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(StartupError, match="Too many open files"):
        patch.setattr(os, "open", out_of_files)
        runtime.restore()
    runtime.restore()
    assert (runtime.path / "lock").exists()
    runtime.release()


def test_a_leftover_that_cannot_be_removed_keeps_none_of_the_others(runtime, monkeypatch):
    sockets = [runtime.path / f"{name}.sock" for name in "abc"]
    for socket in sockets:
        socket.touch()
    unlink = Path.unlink

    def fail_for_one(path: Path, *more: object, **options: object) -> None:
        if path.name == "b.sock":
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path)

    monkeypatch.setattr(Path, "unlink", fail_for_one)
    runtime.remove_leftovers([])
    assert [path.name for path in runtime.path.glob("*.sock")] == ["b.sock"]
    runtime.release()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_a_folder_of_logs_that_cannot_be_looked_at_keeps_no_child_from_its_start(
    runtime, monkeypatch, number
):
    def broken(self: Path) -> bool:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "is_dir", broken)
    runtime.restore()
    monkeypatch.undo()
    runtime.release()
