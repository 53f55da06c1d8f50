"""What cannot be served is said clearly, with the child's own last lines, and the router lives on."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.make_gguf import make_llama
from tests.router_process import REPOSITORY, RouterProcess

pytestmark = pytest.mark.e2e


async def error_of(router: RouterProcess, model: str, status: int) -> Any:
    answered, body = await router.chat(model)
    assert answered == status, body
    return body["error"]


async def test_an_unknown_model_is_404_with_the_names_and_the_nearest(router: Start):
    async with router("qwen-tiny", "gemma-tiny") as up:
        error = await error_of(up, "qwen-tny", 404)
        assert error["type"] == "not_found_error"
        assert "did you mean 'qwen-tiny'" in error["message"]
        assert "gemma-tiny" in error["message"]
        assert not up.children()


async def test_a_file_cut_in_half_is_named_and_harms_nobody(router: Start, folder: Path):
    make = router("whole")
    whole = make_llama(folder / "cut.gguf")
    (make.models / "cut.gguf").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    async with make as up:
        error = await error_of(up, "cut", 422)
        assert "cut.gguf" in error["message"]
        (shown,) = [m for m in (await up.get("/models"))["data"] if m["id"] == "cut"]
        assert shown["status"]["failed"] is True
        assert (await up.chat("whole"))[0] == 200


async def test_what_only_llama_server_finds_wrong_is_told_in_its_own_words(router: Start):
    config = '[models."one"]\nflags = { override-kv = "llama.block_count=int:7" }\n'
    async with router("one", "two", config=config) as up:
        error = await error_of(up, "one", 503)
        assert error["code"] == "load_failed"
        assert any("llama" in line for line in error["log_tail"]), error
        assert (await up.chat("two"))[0] == 200


async def test_a_llama_server_that_ends_at_once_is_told_with_its_last_line(router: Start, folder: Path):
    binary = folder / "llama-server"
    binary.write_text('#!/bin/sh\n[ "$1" = --list-devices ] && exit 0\necho no libcuda.so.1 >&2\nexit 127\n')
    binary.chmod(0o755)
    up = router("one", config=f'[paths]\nllama_server = "{binary}"\n')
    async with up:
        error = await error_of(up, "one", 503)
        assert "no libcuda.so.1" in error["message"]
        assert "127" in error["message"]
        assert await up.get("/health") == {"status": "ok"}


def serve(*args: str, llama_server: Path) -> subprocess.CompletedProcess[str]:
    """A router that is expected to end by itself."""
    command = [sys.executable, "-m", "router", "serve", *args]
    environment = {"LLAMA_SERVER": str(llama_server), "PATH": "/usr/bin:/bin", "HOME": "/nowhere"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


async def test_a_port_in_use_is_a_message_and_status_2(router: Start, folder: Path, llama_server: Path):
    make_llama(folder / "one.gguf")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        args = ("--port", port, "--models-dir", str(folder), "--state-dir", str(folder / "state"))
        ended = await asyncio.to_thread(serve, *args, llama_server=llama_server)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_an_unwritable_state_folder_is_a_message_and_status_2(folder: Path, llama_server: Path):
    make_llama(folder / "one.gguf")
    (folder / "file").touch()
    args = ("--port", "0", "--models-dir", str(folder), "--state-dir", str(folder / "file" / "state"))
    ended = await asyncio.to_thread(serve, *args, llama_server=llama_server)
    assert ended.returncode == 2
    assert "cannot write to" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_child_that_is_killed_in_mid_stream_ends_the_stream_with_an_error(router: Start):
    async with router("one") as up:
        assert (await up.chat("one"))[0] == 200
        body = {"model": "one", "stream": True, "max_tokens": 100_000, "ignore_eos": True, "messages": []}
        async with up.client.post("/v1/chat/completions", json=body) as answer:
            data = await answer.content.readany()
            up.children()[0].kill()
            data += await answer.content.read()
        assert b'"code":"upstream_failed"' in data.splitlines()[-2]
        assert b"[DONE]" not in data
        assert (await up.chat("one"))[0] == 200
