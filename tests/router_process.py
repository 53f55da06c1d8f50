"""A router as a person starts it: `python -m router serve` in a process of its own, on a port of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp
import psutil

from tests.deadline import DEADLINE_SECONDS
from tests.waiting import until

REPOSITORY = Path(__file__).parent.parent


class RouterProcess:
    """`async with RouterProcess(folder, binary, ...)` is up when it listens, and gone afterwards with all
    it started.

    `folder` holds its state, its models (`folder/models`) and its output; `config` is the text of its
    config.toml.
    """

    def __init__(
        self,
        folder: Path,
        binary: Path | str,
        *args: str,
        config: str = "",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.models = folder / "models"
        self.state = folder / "state"
        self.models.mkdir(exist_ok=True)
        self.config = folder / "config.toml"
        self.config.write_text(config)
        self._output = folder / "output"
        self._args = args
        self.successor: psutil.Process | None = None
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_", "FAKE_"))},
            "LLAMA_SERVER": str(binary),
            "HF_HOME": str(folder / "no-cache"),
            **(env or {}),
        }

    async def __aenter__(self) -> Self:
        self.spawn()
        try:
            await self.until(lambda: self.address or self.process.poll() is not None, "the router listens")
            assert self.address, self.output
        except BaseException:
            self.process.kill()
            raise
        self.url = self.address.replace("0.0.0.0", "127.0.0.1")
        self.client = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(total=DEADLINE_SECONDS))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        if self.successor is not None and self.process.poll() is None:
            self.process.terminate()  # it still waits for clients on old connections
        if not self.has_ended():
            await self.stop()
        for child in self.children():
            child.kill()

    async def start_again(self) -> None:
        """Once more after its end, on another port; what it said before is forgotten."""
        await self.client.close()
        self.successor = None
        await self.__aenter__()

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "router", "serve", "--config", str(self.config), "--port", "0"]
        return [*command, "--state-dir", str(self.state), "--models-dir", str(self.models), *self._args]

    def spawn(self) -> None:
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                self.command(), cwd=REPOSITORY, env=self._env, stdout=output, stderr=subprocess.STDOUT
            )

    # --- what is seen of it from outside ---

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def address(self) -> str:
        found = re.search(r"listens on (http://\S+)", self.output)
        return found[1] if found else ""

    def children(self) -> list[psutil.Process]:
        """Every llama-server whose socket is in this router's folder, also after the router's own end."""
        return [one for one in psutil.process_iter() if str(self.state / "run") + "/" in _host_argument(one)]

    def sockets(self) -> list[str]:
        return sorted(path.name for path in (self.state / "run").glob("*.sock"))

    def has_ended(self) -> bool:
        """This process, and the one that took its place."""
        successor = self.successor
        return self.process.poll() is not None and (successor is None or not is_alive(successor))

    # --- what is done to it ---

    async def restart(self) -> psutil.Process:
        """A new process takes over: signals go there from now on."""
        async with self.client.post("/restart") as response:
            answer = await response.json()
            assert response.status == 200, answer
        self.successor = psutil.Process(answer["pid"])
        return self.successor

    def send(self, number: signal.Signals) -> None:
        (self.successor or self.process).send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return await self.ended()

    async def ended(self) -> int:
        await self.until(self.has_ended, "the router has ended")
        assert self.process.returncode is not None
        return self.process.returncode

    async def until(self, is_true: Callable[[], object], what: str) -> None:
        try:
            await until(is_true, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; its output:\n{self.output}") from None

    # --- requests ---

    async def get(self, path: str) -> Any:
        async with self.client.get(path) as response:
            return await response.json()

    async def chat(self, model: str, **fields: Any) -> tuple[int, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, **fields}
        async with self.client.post("/v1/chat/completions", json=body) as response:
            return response.status, await response.json()

    async def events(self, model: str, **fields: Any) -> list[str]:
        """The data of every event of a streamed chat, to its end."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True, **fields}
        async with self.client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            text = (await response.read()).decode()
        return [event.removeprefix("data: ") for event in text.split("\n\n") if event.startswith("data: ")]


def is_alive(process: psutil.Process) -> bool:
    """Also where nobody reaps the orphans of this machine."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _host_argument(process: psutil.Process) -> str:
    try:
        arguments = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""
    return arguments[arguments.index("--host") + 1] if "--host" in arguments[:-1] else ""
