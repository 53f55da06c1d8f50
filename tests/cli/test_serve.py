"""What the options of `serve` become; the serving itself is tested in tests/test_app.py and tests/e2e."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from router.cli import cli
from router.config import Config
from tests.certificates import make_certificate


@pytest.fixture
def served(monkeypatch) -> list[Config]:
    """The configurations that `serve` would have served."""
    configs: list[Config] = []

    def run(config: Config, catalog: object, read_config: Any, *, say: object, predecessor: object) -> None:
        assert read_config() == config, "a reload must see the same options"
        configs.append(config)

    monkeypatch.setattr("router.app.run", run)
    monkeypatch.setattr("router.cli.first_model.find_models", lambda config, say: None)
    monkeypatch.setenv("LLAMA_ROUTER_CONFIG", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    return configs


def serve(*args: str) -> Result:
    return CliRunner().invoke(cli, ["serve", *args])


def test_without_options_it_is_the_configuration(served: list[Config]):
    assert serve().exit_code == 0
    assert served == [Config()]


def test_every_option_reaches_its_key(served: list[Config], tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    preset = tmp_path / "p.ini"
    result = serve(
        *("--host", "0.0.0.0", "--port", "9000", "--models-max", "2", "--memory-margin", "512"),
        *("--policy", "cost", "--api-key", "one", "--api-key", "two", "--no-autoload"),
        *("--models-dir", str(a), "--models-dir", str(b), "--models-preset", str(preset)),
        *("--state-dir", str(tmp_path / "state")),
    )
    assert result.exit_code == 0, result.output
    (config,) = served
    assert (config.server.hosts, config.server.port) == (("0.0.0.0",), 9000)
    assert config.server.api_keys == ("one", "two")
    assert (config.scheduler.models_max, config.scheduler.policy) == (2, "cost")
    assert config.scheduler.autoload is False
    assert config.memory.margin_mib == 512
    assert config.paths.models_dirs == (a, b)
    assert config.paths.presets == (preset,)
    assert config.paths.state_dir == tmp_path / "state"


def test_the_command_line_has_the_last_word_over_the_file(served: list[Config], tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text("[server]\nport = 1111\nhost = '127.0.0.2'\n[child]\nargs = ['--threads', '2']\n")
    serve("--config", str(file), "--port", "2222", "--", "--no-warmup", "--port", "3")
    (config,) = served
    assert (config.server.host, config.server.port) == ("127.0.0.2", 2222)
    assert config.child.args == ("--threads", "2", "--no-warmup", "--port", "3")


def test_a_word_that_belongs_nowhere_is_refused(served: list[Config]):
    result = serve("model.gguf")
    assert result.exit_code == 2
    assert "unexpected extra argument" in result.output
    assert not served


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--policy", "newest"), "scheduler.policy"),
        (("--models-max", "-1"), "scheduler.models_max"),
        (("--port", "99999"), "server.port"),
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
    ],
)
def test_an_impossible_value_is_one_message_and_status_2(
    served: list[Config], args: tuple[str, ...], says: str
):
    result = serve(*args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert not served


def test_libraries_are_imported_without_what_is_of_no_use_here():
    """In a process of its own: here aiohttp was imported long ago."""
    code = """
import os, sys
from router.cli.serve import _lighter_libraries
before = dict(os.environ)
with _lighter_libraries():
    import aiohttp
assert dict(os.environ) == before, "what it starts has the environment as it was"
assert "frozenlist._frozenlist" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")


async def test_a_client_in_the_router_trusts_whom_the_machine_trusts_and_nobody_else(tmp_path: Path):
    """As the router imports its libraries, in a process of its own, against a real server."""
    certificate, context = make_certificate(tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        await writer.drain()
        writer.close()

    code = """
import sys
from router.cli.serve import _lighter_libraries
with _lighter_libraries():
    from router.app import run
    import aiohttp, asyncio
async def ask():
    async with aiohttp.ClientSession() as client, client.get(sys.argv[1]) as answer:
        print(await answer.text())
try:
    asyncio.run(ask())
except aiohttp.ClientConnectorCertificateError:
    print("not trusted")
"""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SSL_CERT_")}
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    def ask(**trusted: str) -> str:
        command = [sys.executable, "-c", code, url]
        done = subprocess.run(command, env=environ | trusted, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    async with server:
        assert await asyncio.to_thread(ask, SSL_CERT_FILE=str(certificate)) == "hello"
        assert await asyncio.to_thread(ask) == "not trusted"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is glibc's")
def test_what_threads_hold_comes_from_one_place():
    """Eight at once, each with more than fits where small objects are, and less than is mapped by itself."""
    script = """
import re, sys, threading
from router.cli.serve import share_memory_between_threads
if sys.argv[1] == "shared":
    share_memory_between_threads()
together = threading.Barrier(8)
counted = []
def hold():
    held = [bytearray(10_000) for _ in range(20)]
    if together.wait() == 0:
        starts = [int(line.partition("-")[0], 16) for line in open("/proc/self/maps") if " rw-p " in line]
        counted.append(sum(start % (64 << 20) == 0 for start in starts))
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
print(*counted)
"""

    def arenas(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True).stdout
        )

    assert arenas("as it is") >= 4
    assert arenas("shared") == 0


@pytest.mark.parametrize("option", ["-m", "--model"])
def test_a_file_behind_the_dashes_is_served(served: list[Config], tmp_path: Path, option: str):
    file = tmp_path / "Some.v1.gguf"
    file.write_bytes(b"GGUF")
    result = serve("--", option, str(file), "--jinja")
    assert result.exit_code == 0, result.output
    assert served[0].models["Some.v1"]["model"] == str(file)
    assert served[0].child.args == ("--jinja",)


def test_a_file_behind_the_dashes_that_does_not_exist_ends_the_start(served: list[Config]):
    result = serve("--", "-m", "/nowhere/x.gguf")
    assert result.exit_code == 2
    assert "no such file" in result.output
    assert not served


@pytest.mark.parametrize("args", [("--host", "127.0.0.1", "--host", "[::1]"), ("--host", "127.0.0.1,::1")])
def test_several_addresses_are_one_option_or_several(served: list[Config], args: tuple[str, ...]):
    assert serve(*args).exit_code == 0
    assert served[0].server.hosts == ("127.0.0.1", "::1")


def test_an_address_with_a_port_is_refused_by_its_key(served: list[Config]):
    result = serve("--host", "127.0.0.1:9000")
    assert result.exit_code != 0 and not served
    assert "command line: server.host" in result.output
    assert "server.port, --port" in result.output
