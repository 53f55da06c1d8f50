"""The router as a whole, as a process of its own, with the fake llama-server: how it starts, reloads and
ends."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.fake_binary import make_fake_binary
from tests.make_gguf import make_llama
from tests.router_process import REPOSITORY, RouterProcess

#: Streams that last until somebody ends them.
ENDLESS = """
[server]
shutdown_grace_seconds = 30.0
[child]
stop_grace_seconds = 1.0
env = { FAKE_LLAMA_TOKENS = "100000", FAKE_LLAMA_TOKEN_SECONDS = "0.05" }
"""

Start = Callable[..., RouterProcess]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the paths of Unix sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        yield Path(name)


@pytest.fixture
def router(folder: Path) -> Start:
    """A router with two models, not started yet."""

    def make(*args: str, config: str = "", env: dict[str, str] | None = None) -> RouterProcess:
        made = RouterProcess(folder, binary(folder), *args, config=config, env=env)
        for name in ("tiny", "other"):
            if not (made.models / f"{name}.gguf").exists():
                make_llama(made.models / f"{name}.gguf", sparse=True)
        return made

    return make


def binary(folder: Path) -> Path:
    """The fake llama-server, that also says at once which devices it knows: none."""
    inner = folder / "fake"
    inner.mkdir(exist_ok=True)
    outer = folder / "llama-server"
    lists = '[ "$1" = --list-devices ] && exec echo Available devices:'
    outer.write_text(f'#!/bin/sh\n{lists}\nexec {shlex.quote(str(make_fake_binary(inner)))} "$@"\n')
    outer.chmod(0o755)
    return outer


class Stream:
    """A streamed chat that a test looks into while it runs."""

    def __init__(self, router: RouterProcess, model: str) -> None:
        self._router = router
        self._model = model
        self.data = b""

    async def __aenter__(self) -> Stream:
        body = {"model": self._model, "stream": True, "messages": []}
        timeout = aiohttp.ClientTimeout(total=30)
        self._session = aiohttp.ClientSession(timeout=timeout)
        self._answer = await self._session.post(self._router.url + "/v1/chat/completions", json=body)
        assert self._answer.status == 200, await self._answer.text()
        self.data = await self._answer.content.readany()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._answer.close()
        await self._session.close()

    async def next(self) -> bytes:
        """What comes next, b"" at the end."""
        return await self._answer.content.readany()

    async def rest(self) -> list[str]:
        """The data of its events, to its end."""
        self.data += await self._answer.content.read()
        return [event.removeprefix("data: ") for event in self.data.decode().split("\n\n") if event]


# --- starting ---


async def test_it_says_where_it_listens_and_answers_there(router: Start):
    async with router() as up:
        assert "(2 models)" in up.output
        assert await up.get("/health") == {"status": "ok"}
        assert [model["id"] for model in (await up.get("/v1/models"))["data"]] == ["other", "tiny"]
        status, answer = await up.chat("tiny")
        assert (status, answer["model"]) == (200, "tiny")
        assert len(up.children()) == 1


def serve(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A router that is expected to end by itself."""
    command = [sys.executable, "-m", "router", "serve", "--models-dir", str(folder), *args]
    environment = {**os.environ, "LLAMA_SERVER": str(binary(folder)), "LLAMA_ROUTER_CONFIG": "", **env}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_port_in_use_is_a_message_and_status_2(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = serve(folder, "--port", port, "--state-dir", str(folder / "state"))
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: another program does already" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_state_folder_that_cannot_be_written_to_is_a_message_and_status_2(folder: Path):
    (folder / "file").touch()
    ended = serve(folder, "--port", "0", "--state-dir", str(folder / "file" / "state"))
    assert ended.returncode == 2
    assert f"cannot write to {folder / 'file' / 'state'}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_missing_llama_server_is_a_message_and_status_2(folder: Path):
    ended = serve(folder, "--port", "0", "--state-dir", str(folder / "state"), LLAMA_SERVER="/nowhere/x")
    assert ended.returncode == 2
    assert "/nowhere/x" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_second_router_on_the_same_folder_gives_up_and_harms_nobody(router: Start, folder: Path):
    async with router() as up:
        await up.chat("tiny")
        ended = await asyncio.to_thread(serve, folder / "models", "--port", "0", "--state-dir", str(up.state))
        assert ended.returncode == 2
        assert "another llama-router" in ended.stderr
        assert (await up.chat("tiny"))[0] == 200
        assert len(up.children()) == 1


async def test_listening_for_everybody_without_a_key_warns_loudly(router: Start):
    async with router("--host", "0.0.0.0") as up:
        await up.until(lambda: "ANYBODY WHO REACHES" in up.output, "it has warned")
    for args in (("--host", "0.0.0.0", "--api-key", "secret"), ()):
        async with router(*args) as up:
            await up.stop()  # all of its log is written then
            assert "ANYBODY" not in up.output


async def test_models_that_are_wanted_from_the_start_are_loaded_without_a_request(router: Start):
    async with router(config='[models."tiny"]\nload_on_startup = true\n') as up:
        await up.until(up.children, "the model is loaded")


async def test_children_of_a_router_that_was_killed_serve_on_under_the_next(router: Start):
    async with router() as up:
        await up.chat("tiny")
        (orphan,) = up.children()
        assert await up.stop(signal.SIGKILL) == -signal.SIGKILL
        assert orphan.is_running()
        await up.start_again()
        async with up.client.post("/v1/chat/completions", json={"model": "tiny"}) as answer:
            assert answer.headers["X-Router-Action"] == "already_loaded"
        assert up.children() == [orphan]
        assert await up.stop() == 0
        assert not up.children(), "it ends with the router that adopted it"


async def test_a_killed_routers_child_of_another_llama_server_is_started_anew(router: Start):
    async with router() as killed:
        await killed.chat("tiny")
        (orphan,) = killed.children()
        await killed.stop(signal.SIGKILL)
        async with router() as up:  # its binary has been written anew
            assert (await up.chat("tiny"))[0] == 200
            await up.until(lambda: orphan not in up.children(), "the old one is gone")


async def test_what_stands_after_the_dashes_goes_to_every_child(router: Start):
    async with router("--", "--threads", "3") as up:
        await up.chat("tiny")
        await up.chat("other")
        for child in up.children():
            assert child.cmdline()[-2:] == ["--threads", "3"]


# --- children that fail ---


async def test_a_child_that_ends_at_once_is_told_with_its_last_lines_and_the_router_lives_on(router: Start):
    async with router(config='[models."tiny"]\nenv = { FAKE_LLAMA_EXIT_STATUS = "3" }\n') as up:
        status, answer = await up.chat("tiny")
        assert status == 503
        assert answer["error"]["code"] == "load_failed"
        assert "status 3" in answer["error"]["message"]
        assert (await up.chat("other"))[0] == 200
        (shown,) = [m for m in (await up.get("/models"))["data"] if m["id"] == "tiny"]
        assert shown["status"]["failed"] is True


async def test_a_child_that_dies_in_mid_stream_ends_the_stream_with_an_error(router: Start):
    async with router(config='[models."tiny"]\nenv = { FAKE_LLAMA_CRASH_MID_STREAM = "3" }\n') as up:
        assert (await up.chat("tiny"))[0] == 200
        events = await up.events("tiny")
        assert "[DONE]" not in events
        assert json.loads(events[-1])["error"]["code"] == "upstream_failed"
        assert (await up.chat("tiny"))[0] == 200, "and it is started again"


async def test_a_child_that_was_killed_is_started_again(router: Start):
    async with router() as up:
        await up.chat("tiny")
        up.children()[0].kill()
        for _ in range(3):
            assert (await up.chat("tiny"))[0] == 200


# --- reloading ---


async def test_hangup_finds_new_models_and_leaves_the_others_alone(router: Start):
    async with router() as up:
        await up.chat("tiny")
        before = [child.pid for child in up.children()]
        make_llama(up.models / "third.gguf", sparse=True)
        up.send(signal.SIGHUP)
        await up.until(lambda: "reloaded: 3 models" in up.output, "it has reloaded")
        assert (await up.chat("third"))[0] == 200
        assert (await up.chat("tiny"))[0] == 200
        assert before[0] in [child.pid for child in up.children()]


async def test_a_list_that_looks_again_finds_what_came_and_forgets_what_went(router: Start):
    async with router() as up:
        make_llama(up.models / "third.gguf", sparse=True)
        (up.models / "other.gguf").unlink()
        listed = (await up.get("/models?reload=1"))["data"]
        assert [model["id"] for model in listed] == ["third", "tiny"]


async def test_a_model_that_changed_is_started_anew(router: Start):
    async with router() as up:
        await up.chat("tiny")
        (before,) = up.children()
        up.config.write_text('[models."tiny"]\nctx_size = 1024\n')
        up.send(signal.SIGHUP)
        await up.until(lambda: "reloaded" in up.output, "it has reloaded")
        assert (await up.chat("tiny"))[0] == 200
        await up.until(lambda: not before.is_running(), "the old one is gone")
        assert "1024" in up.children()[0].cmdline()


async def test_a_broken_configuration_changes_nothing(router: Start):
    async with router() as up:
        await up.chat("tiny")
        up.config.write_text("[server]\nprot = 1\n")
        up.send(signal.SIGHUP)
        await up.until(lambda: "not reloaded" in up.output, "it has refused")
        assert "prot" in up.output
        assert "port" in up.output
        assert (await up.chat("tiny"))[0] == 200
        assert len(up.children()) == 1


async def test_alias_patterns_of_two_models_that_share_a_name_are_refused_by_a_reload(router: Start):
    async with router(config='[models."tiny"]\naliases = ["gpt-*"]\n') as up:
        assert (await up.chat("gpt-4o-2024"))[0] == 200
        up.config.write_text('[models."tiny"]\naliases = ["gpt-*"]\n[models.other]\naliases = ["*-mini"]\n')
        up.send(signal.SIGHUP)
        await up.until(lambda: "not reloaded" in up.output, "it has refused")
        assert "both match 'gpt-mini'" in up.output
        assert (await up.chat("gpt-5-mini"))[0] == 200
        assert len(up.children()) == 1


async def test_what_needs_a_new_start_says_so(router: Start):
    async with router() as up:
        up.config.write_text("[scheduler]\nmodels_max = 1\n")
        up.send(signal.SIGHUP)
        await up.until(lambda: "[scheduler] has changed" in up.output, "it has said so")


# --- ending ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_status_0_and_nothing_left(router: Start, number: signal.Signals):
    async with router() as up:
        await up.chat("tiny")
        await up.chat("other")
        assert len(up.children()) == 2
        assert await up.stop(number) == 0
        assert not up.children()
        assert not up.sockets()
        assert "Traceback" not in up.output


async def test_running_streams_may_end_first(router: Start):
    env = '{ FAKE_LLAMA_TOKENS = "20", FAKE_LLAMA_TOKEN_SECONDS = "0.05" }'
    async with router(config=f"[child]\nenv = {env}\n") as up, Stream(up, "tiny") as stream:
        up.send(signal.SIGTERM)
        assert (await stream.rest())[-1] == "[DONE]"
        assert await up.ended() == 0


async def test_while_it_ends_nobody_new_is_served(router: Start):
    async with router(config=ENDLESS) as up, Stream(up, "tiny"):
        assert await up.get("/health") == {"status": "ok"}
        up.send(signal.SIGTERM)
        await up.until(lambda: "may take 30 s to end" in up.output, "it drains")
        async with up.client.get("/health") as answer:  # on the connection that is open already
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "shutting_down"
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as stranger, stranger.get(up.url):
                pass
        up.send(signal.SIGTERM)
        assert await up.ended() == 0


async def test_a_second_signal_ends_the_streams_with_a_word(router: Start):
    async with router(config=ENDLESS) as up, Stream(up, "tiny") as stream:
        up.send(signal.SIGTERM)
        await up.until(lambda: "a second signal ends them now" in up.output, "it drains")
        up.send(signal.SIGINT)
        assert json.loads((await stream.rest())[-1])["error"]["code"] == "shutting_down"
        assert await up.ended() == 0
        assert not up.children()
        assert not up.sockets()


async def test_the_grace_is_bounded(router: Start):
    config = ENDLESS.replace("30.0", "0.1")
    async with router(config=config) as up, Stream(up, "tiny") as stream:
        up.send(signal.SIGTERM)
        assert "error" in json.loads((await stream.rest())[-1])
        assert await up.ended() == 0


async def test_children_that_ignore_the_signal_are_killed(router: Start):
    config = '[child]\nstop_grace_seconds = 0.2\nenv = { FAKE_LLAMA_IGNORE_SIGTERM = "1" }\n'
    async with router(config=config) as up:
        await up.chat("tiny")
        assert await up.stop() == 0
        assert not up.children()
        assert not up.sockets()


async def test_a_model_that_is_loading_does_not_hold_the_end_up(router: Start):
    async with router(config='[child]\nenv = { FAKE_LLAMA_HANG_LOAD = "1" }\n') as up:
        async with up.client.post("/models/load", json={"model": "tiny"}) as answer:
            assert answer.status == 200
        await up.until(up.children, "it loads")
        assert await up.stop() == 0
        assert not up.children()
        assert not up.sockets()
