"""The command line as a person types it, on a terminal, against a router with real llama-servers."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import running
from tests.make_gguf import make_llama
from tests.router_process import is_alive
from tests.waiting import until

pytestmark = pytest.mark.e2e

DEADLINE_SECONDS = 60.0


class Terminal:
    """A terminal in which one command runs. All that it ever showed is in `shown`."""

    def __init__(self, url: str, state: Path, *args: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "LLAMA_ROUTER_URL": url, "XDG_STATE_HOME": str(state)}
        command = [sys.executable, "-m", "router", *args]
        # A session of its own with this as its terminal, so that Ctrl-C goes where it does for a person.
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""
        self._seen = 0

    async def until(self, text: str) -> None:
        """Read on until `text` has been shown after what was awaited before."""
        await asyncio.to_thread(self._read_until, text)

    async def press(self, keys: str) -> None:
        await asyncio.to_thread(os.write, self._ours, keys.encode())

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, DEADLINE_SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read_until(self, text: str) -> None:
        while text not in self.shown[self._seen :]:
            ready, _, _ = select.select([self._ours], [], [], DEADLINE_SECONDS)
            assert ready, f"waited in vain for {text!r}; it shows:\n{self.shown}"
            self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
        self._seen = self.shown.index(text, self._seen) + len(text)


@contextmanager
def terminal(url: str, state: Path, *args: str) -> Iterator[Terminal]:
    made = Terminal(url, state, *args)
    try:
        yield made
    finally:
        made.close()


async def test_a_chat_with_a_stopped_answer(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        with terminal(router.url, tmp_path, "run", "a", "--max-tokens", "100000") as chat:
            await chat.until(">>> ")
            await chat.press("hello\n")
            await router.until(lambda: router.resident() == ["a"])
            await router.until(lambda: any(one.leases for one in router.pool.snapshot().instances))
            await chat.until("hello")
            chat.process.send_signal(signal.SIGINT)
            await chat.until("(stopped)")
            await router.until(lambda: not any(one.leases for one in router.pool.snapshot().instances))
            await chat.until(">>> ")
            await chat.press("/bye\n")
            assert await chat.ended() == 0
        history = tmp_path / "llama-router" / "chat_history"
        assert "hello" in history.read_text()
        assert history.stat().st_mode & 0o777 == 0o600


async def test_a_chat_tells_what_it_waits_for(tmp_path: Path) -> None:
    config = (
        "[scheduler]\nmodels_max = 1\n[server]\nstream_head_seconds = 0.1\nstream_heartbeat_seconds = 0.1\n"
    )
    async with running(tmp_path, ["a", "b"], config) as router, AsyncExitStack() as request:
        await request.enter_async_context(router.pool.lease("a"))
        with terminal(router.url, tmp_path, "run", "b", "hello", "--max-tokens", "4") as chat:
            await chat.until("b waits for ")
            await request.aclose()  # however long the command took to begin
            assert await chat.ended() == 0


async def test_a_log_is_followed_until_ctrl_c(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        with terminal(router.url, tmp_path, "logs", "a") as logs:
            await logs.until("has not been loaded")
            assert await logs.ended() == 1
        with terminal(router.url, tmp_path, "logs", "-f", "a") as logs:
            await router.chat("a")
            await logs.until("a#1")
            await logs.until("model loaded")
            logs.process.send_signal(signal.SIGINT)
            assert await logs.ended() == 0
        with terminal(router.url, tmp_path, "logs", "-n", "1", "--json", "a") as logs:
            assert await logs.ended() == 0
            await logs.until('"')
            assert len(logs.shown.splitlines()) == 1


async def test_a_load_and_an_unload_are_seen_to_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, ["a"]) as router:
        with terminal(router.url, tmp_path, "load", "a") as load:
            await load.until("a: loaded")
            assert await load.ended() == 0
        async with AsyncExitStack() as request:
            await request.enter_async_context(router.pool.lease("a"))
            with terminal(router.url, tmp_path, "unload", "a") as unload:
                await unload.until("waits for 1 request to end")
                await request.aclose()
                await unload.until("a: unloaded")
                assert await unload.ended() == 0


async def test_a_router_on_a_unix_socket_is_found_by_its_configuration_and_can_be_replaced(
    folder: Path, llama_server: Path
) -> None:
    path, config = folder / "router.sock", folder / "config.toml"
    (folder / "models").mkdir()
    make_llama(folder / "models" / "a.gguf", name="a")
    config.write_text(
        f'[server]\nhost = "{path}"\napi_keys = ["secret"]\n[paths]\nmodels_dirs = ["models"]\n'
        f'hf_cache = false\nstate_dir = "state"\nllama_server = "{llama_server}"\n'
    )
    environment = {**os.environ, "LLAMA_ROUTER_CONFIG": str(config)}
    environment.pop("LLAMA_ROUTER_URL", None)

    def call(*args: str) -> str:
        command = [sys.executable, "-m", "router", *args]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    output = folder / "output"
    with output.open("wb") as written:
        serve = subprocess.Popen(
            [sys.executable, "-m", "router", "serve"], env=environment, stdout=written, stderr=written
        )
    pid = serve.pid
    try:
        await until(lambda: f"listens on unix:{path}" in output.read_text() or serve.poll() is not None)
        assert serve.poll() is None, output.read_text()
        assert await asyncio.to_thread(call, "run", "a", "hello", "--max-tokens", "4")
        pid = json.loads(await asyncio.to_thread(call, "restart", "--json"))["pid"]
        assert pid != serve.pid
        rows = json.loads(await asyncio.to_thread(call, "ps", "--json"))
        assert [one["model"] for one in rows] == ["a"], "it stays loaded"
    finally:
        for one in {pid, serve.pid}:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGTERM)
        await asyncio.to_thread(serve.wait, DEADLINE_SECONDS)
        await _gone(pid)


async def _gone(pid: int) -> None:
    """The next process is no child of ours: nobody tells of its end."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        await until(lambda: not is_alive(process))
