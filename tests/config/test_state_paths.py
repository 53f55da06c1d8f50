"""Where the router writes: private, short enough for sockets, and refused with a reason when it cannot."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from router.config import Config, PathsConfig, StatePaths, models_dirs, state_paths
from router.config.state_paths import MAX_SOCKET_PATH_BYTES, SOCKET_NAME_BYTES
from router.errors import StartupError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def with_state_dir(folder: Path) -> Config:
    return Config(paths=PathsConfig(state_dir=folder))


def test_by_default_the_folders_are_those_of_the_xdg_specification(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert state_paths(Config()) == StatePaths(
        Path("/h/.local/state/llama-router"), Path("/h/.local/state/llama-router/run")
    )
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    assert state_paths(Config()) == StatePaths(Path("/s/llama-router"), Path("/r/llama-router"))
    assert state_paths(Config()).logs_dir == Path("/s/llama-router/logs")
    assert state_paths(Config()).database.parent == Path("/s/llama-router")


def test_with_a_folder_of_its_own_everything_is_below_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    paths = state_paths(with_state_dir(Path("/srv/router")))
    assert (paths.state_dir, paths.runtime_dir) == (Path("/srv/router"), Path("/srv/router/run"))


def test_folders_are_made_private(tmp_path):
    paths = StatePaths(tmp_path / "a" / "state", tmp_path / "b" / "run")
    paths.prepare()
    assert [mode(folder) for folder in (paths.state_dir, paths.logs_dir, paths.runtime_dir)] == [0o700] * 3
    paths.prepare()


def test_folders_are_private_whatever_the_umask_is(tmp_path):
    before = os.umask(0)
    try:
        StatePaths(tmp_path / "state", tmp_path / "run").prepare()
    finally:
        os.umask(before)
    assert mode(tmp_path / "state") == mode(tmp_path / "run") == 0o700


def test_a_state_folder_that_was_there_keeps_its_mode_but_not_the_one_for_sockets(tmp_path):
    (tmp_path / "state" / "run").mkdir(parents=True)
    (tmp_path / "state").chmod(0o755)
    (tmp_path / "state" / "run").chmod(0o777)
    StatePaths(tmp_path / "state", tmp_path / "state" / "run").prepare()
    assert mode(tmp_path / "state") == 0o755
    assert mode(tmp_path / "state" / "run") == 0o700


@pytest.mark.parametrize("in_the_way", ["state", "state/logs", "state/run"])
def test_a_file_in_the_way_is_refused_with_the_reason(tmp_path, in_the_way):
    paths = StatePaths(tmp_path / "state", tmp_path / "state" / "run")
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("")
    with pytest.raises(StartupError) as refused:
        paths.prepare()
    assert str(tmp_path / in_the_way) in str(refused.value)
    assert "exists" in str(refused.value) or "Not a directory" in str(refused.value)


def test_a_file_in_the_way_further_up_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match=f"cannot write to {tmp_path}/file/state: {tmp_path}/file: "):
        StatePaths(tmp_path / "file" / "state", tmp_path / "run").prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StartupError, match="Permission denied"):
        StatePaths(tmp_path / "state", tmp_path / "run").prepare()


def test_a_folder_for_sockets_that_belongs_to_somebody_else_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with pytest.raises(StartupError, match="belongs to another user"):
        StatePaths(tmp_path / "state", tmp_path / "run").prepare()


def test_a_folder_too_long_for_a_socket_is_replaced_by_a_short_one(tmp_path):
    deep = tmp_path / ("x" * 80)
    paths = state_paths(with_state_dir(deep))
    assert paths.state_dir == deep
    assert paths.runtime_dir.parent == Path("/tmp")
    assert str(os.getuid()) in paths.runtime_dir.name
    assert state_paths(with_state_dir(deep)) == paths, "the same after a restart"
    assert state_paths(with_state_dir(tmp_path / ("y" * 80))) != paths, "each its own"


@pytest.mark.parametrize("length", range(1, 120))
def test_a_socket_fits_into_whatever_folder_it_is(length):
    folder = state_paths(with_state_dir(Path("/" + "é" * length))).runtime_dir
    path = os.fsencode(folder / "s.sock") + b"x" * (SOCKET_NAME_BYTES - len("/s.sock"))
    assert len(path) <= MAX_SOCKET_PATH_BYTES


def test_the_longest_path_that_is_kept_can_really_be_bound():
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        room = MAX_SOCKET_PATH_BYTES - SOCKET_NAME_BYTES - len(f"{short}//run")
        paths = state_paths(with_state_dir(Path(short, "x" * room)))
        assert paths.runtime_dir.parent == paths.state_dir
        paths.prepare()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(paths.runtime_dir / ("n" * (SOCKET_NAME_BYTES - len("/.sock")) + ".sock")))


def test_models_are_looked_for_in_the_data_folder_unless_folders_are_named(home, monkeypatch):
    assert models_dirs(Config()) == (home / ".local/share/llama-router/models",)
    monkeypatch.setenv("XDG_DATA_HOME", "/d")
    assert models_dirs(Config()) == (Path("/d/llama-router/models"),)
    assert models_dirs(Config(paths=PathsConfig(models_dirs=(Path("/m"),)))) == (Path("/m"),)
