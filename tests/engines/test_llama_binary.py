from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.engines.llama_binary import find_fit_params
from router.engines.llama_server import BuildInfo, find_binary, list_devices, refused_args, version
from router.errors import StartupError
from tests.fake_binary import make_fake_binary


def program(path: Path, script: str = "exit 0", *, age_seconds: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    when = path.stat().st_mtime - age_seconds
    os.utime(path, (when, when))
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home")}


def cache(environ: dict[str, str]) -> Path:
    return Path(environ["HOME"]) / ".cache" / "llama-router" / "llama-server"


def test_the_order_is_configured_then_variable_then_path_then_newest_build(tmp_path, environ):
    program(cache(environ) / "older" / "llama-server", age_seconds=100)
    built = program(cache(environ) / "newer" / "bin" / "llama-server")
    program(cache(environ) / "building-x" / "llama-server", age_seconds=-100)
    assert find_binary(None, environ) == built
    on_path = program(tmp_path / "bin" / "llama-server")
    assert find_binary(None, environ) == on_path
    environ["LLAMA_SERVER"] = str(program(tmp_path / "named"))
    assert find_binary(None, environ) == tmp_path / "named"
    assert find_binary(program(tmp_path / "configured"), environ) == tmp_path / "configured"
    assert find_binary("", environ) == tmp_path / "named"


def test_a_bare_name_is_looked_up_on_path(tmp_path, environ):
    there = program(tmp_path / "p" / "my-server")
    assert find_binary("my-server", environ | {"PATH": str(there.parent)}) == there


def test_the_cache_may_be_elsewhere(tmp_path, environ):
    built = program(tmp_path / "cache" / "llama-router" / "llama-server" / "key" / "llama-server")
    assert find_binary(None, environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}) == built


def test_one_that_was_named_is_never_silently_replaced(tmp_path, environ):
    program(tmp_path / "bin" / "llama-server")
    with pytest.raises(StartupError, match=r"paths\.llama_server is /no/such, which is not a program"):
        find_binary("/no/such", environ)
    with pytest.raises(StartupError, match=r"\$LLAMA_SERVER is .*text"):
        (tmp_path / "text").write_text("not executable")
        find_binary(None, environ | {"LLAMA_SERVER": str(tmp_path / "text")})


def test_where_there_is_none_it_says_how_to_get_one(environ):
    with pytest.raises(StartupError, match="run bin/build-llama-server"):
        find_binary(None, environ)


async def test_the_version_is_what_it_says_of_itself(tmp_path):
    script = "echo 'version: 0.6.0-dev (build 11434, commit abc)' >&2; echo 'built with x' >&2"
    assert await version(program(tmp_path / "s", script)) == "0.6.0-dev (build 11434, commit abc)"


async def test_the_stand_in_can_be_asked_like_the_real_one(tmp_path):
    binary = make_fake_binary(tmp_path)
    assert await version(binary) == "fake (build 0, commit fake)"
    assert await list_devices(binary) == "Available devices:\n  (none)\n"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hello", "is no llama-server: --version says 'hello'"),
        ("echo 'libcudart.so.12: cannot open' >&2; exit 127", "status 127: libcudart"),
        ("kill -ILL $$", "status -4"),
    ],
)
async def test_a_binary_that_does_not_work_says_why(tmp_path, script, words):
    with pytest.raises(StartupError, match=words):
        await version(program(tmp_path / "s", script))


async def test_a_file_that_is_no_program_says_so(tmp_path):
    (tmp_path / "s").write_text("x")
    with pytest.raises(StartupError, match="Permission denied"):
        await version(tmp_path / "s")


async def test_one_that_never_answers_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("router.engines.llama_binary._ASK_SECONDS", 0.2)
    with pytest.raises(StartupError, match="gave no answer"):
        await version(program(tmp_path / "s", "exec sleep 1000"))


async def test_asking_for_the_version_shows_it_no_gpu_but_asking_for_devices_does(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    shown = program(tmp_path / "s", 'echo "version: <$CUDA_VISIBLE_DEVICES>"')
    assert await version(shown) == "<>"
    assert await list_devices(shown) == "version: <7>\n"


def test_fit_params_stands_beside_the_server_or_beside_what_that_links_to(tmp_path):
    build = tmp_path / "build"
    build.mkdir()
    for name in ("llama-server", "llama-fit-params"):
        (build / name).touch(mode=0o755)
    (tmp_path / "llama-server").symlink_to(build / "llama-server")
    assert find_fit_params(build / "llama-server") == build / "llama-fit-params"
    assert find_fit_params(tmp_path / "llama-server") == build / "llama-fit-params"
    (build / "llama-fit-params").chmod(0o644)
    assert find_fit_params(build / "llama-server") is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo version: 1", None),
        ('echo "error: invalid argument: $1"; echo usage; exit 1', "error: invalid argument: --x"),
        (
            "echo 'error while handling argument \"-t\": stoi' >&2; exit 1",
            'error while handling argument "-t": stoi',
        ),
        ("echo 'error while handling argument \"-devd\": invalid device: CUDA0'; exit 1", None),
        ("exit 3", None),
    ],
)
async def test_a_binary_says_which_arguments_it_does_not_take(tmp_path, script, reason):
    assert await refused_args(program(tmp_path / "server", script), ["--x", "1"]) == reason


async def test_a_binary_that_cannot_be_run_is_an_error(tmp_path):
    with pytest.raises(StartupError, match="cannot run"):
        await refused_args(tmp_path / "none", ["--x"])


@pytest.mark.parametrize(
    ("says", "build"),
    [
        ("version: 0.6.0-dev (build 11434, commit unknown)", "b11434-unknown"),
        ("version: 6000 (abc1234)", "b6000-abc1234"),
        ("version: next", None),
        ("nothing", None),
    ],
)
async def test_the_build_is_told_as_llama_cpp_tells_it(tmp_path, says, build):
    assert await BuildInfo().of(program(tmp_path / "server", f"echo '{says}'")) == build


async def test_the_build_is_asked_for_once_and_again_when_the_binary_was_replaced(tmp_path):
    asked = tmp_path / "asked"
    info = BuildInfo()
    script = f"echo >> {asked}; echo 'version: 1 (a)'"
    server = program(tmp_path / "server", script)
    assert [await info.of(server), await info.of(server)] == ["b1-a", "b1-a"]
    assert asked.read_text() == "\n"
    program(server, script.replace("1 (a)", "22 (b)"))
    assert await info.of(server) == "b22-b"
    assert await info.of(tmp_path / "none") is None
