"""Who takes part in `bench/proxy`: each a program of its own between the clients and what stands behind it.

All start the same way, `with contestant.running(): ...`, with the same upstream; what is not on this machine
says how to get it. None is tuned but nginx, which is the limit. `logs_requests` is whether one writes a line
for each request: nginx and aiohttp's are told not to, the others are as they come.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0


class Absent(Exception):
    """It is not on this machine; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all contestants are given. `server` is what a router starts as its llama-server, `args` what it is
    given besides the model; `models` are files named for their model; `before` is another
    checkout of ours."""

    folder: Path
    server: Path
    models: tuple[Path, ...]
    models_max: int = 4
    args: tuple[str, ...] = ()
    llama_server: Path | None = None
    llama_swap: Path | None = None
    before: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.stem for path in self.models)


class Contestant:
    """`port` takes requests while it runs; `pids` are the processes that are the proxy, without those behind
    it."""

    name: str = ""
    logs_requests = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.folder = setting.folder / self.name
        self.folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        try:
            self.start()
            yield
        finally:
            self.stop()

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def start(self) -> None:
        self.process = spawn(self.command(), self.folder / "output", self.checkout, **self.environment())
        self.until(lambda: answers(self.port, self.health_path), "it listens")

    def restart(self) -> None:
        """As new, whatever it has kept, and whether it lives or not."""
        self.stop()
        self.start()

    def has_died(self) -> bool:
        return self.process is None or self.process.poll() is not None

    health_path = "/health"
    checkout = ROOT

    def environment(self) -> dict[str, str]:
        return {}

    def stop(self) -> None:
        if self.process is None:
            return
        end(self.process)
        for one in psutil.process_iter(["cmdline"]):  # also those of a router that has died
            if any(f"{self.folder}/" in argument for argument in one.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    one.kill()

    def pids(self) -> tuple[int, ...]:
        assert self.process is not None, "it runs"
        return (self.process.pid,)

    def unload(self, model: str) -> None:
        """Returns when the model's process is gone."""
        raise NotImplementedError

    def children(self) -> list[psutil.Process]:
        """The processes of its models."""
        assert self.process is not None, "it runs"
        return [one for one in psutil.Process(self.process.pid).children() if _lives(one)]

    def until_childless(self) -> None:
        self.until(lambda: not self.children(), "its models are gone", every_seconds=0.002)

    def until(self, is_true: object, what: str, every_seconds: float = 0.02) -> None:
        assert callable(is_true)
        deadline = time.monotonic() + START_SECONDS
        while not is_true():
            is_dead = self.process is not None and self.process.poll() is not None
            if is_dead or time.monotonic() > deadline:
                said = (self.folder / "output").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.name}: waited in vain until {what}; it said:\n{said}")
            time.sleep(every_seconds)


class Direct(Contestant):
    """No proxy: what the upstream and the clients do by themselves."""

    name = "direct"

    def command(self) -> Sequence[str]:
        socket_path = self.folder / "u.sock"
        socket_path.unlink(missing_ok=True)
        return [str(self.setting.server), "--host", str(socket_path), "--port", str(self.port)]


@dataclass
class _Behind:
    """An upstream of its own on a Unix socket, for those that do not start one."""

    setting: Setting
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> Path:
        path = self.folder / "u.sock"
        path.unlink(missing_ok=True)
        self.process = spawn([str(self.setting.server), "--host", str(path)], self.folder / "upstream-output")
        deadline = time.monotonic() + START_SECONDS
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return path

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)


class Nginx(Contestant):
    name = "nginx"
    _CONFIG: Final = """
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log crit;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
    uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
    client_max_body_size 0;
    upstream behind {{ server unix:{socket}; keepalive 256; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
        self.binary = shutil.which("nginx", path=search)
        if self.binary is None:
            raise Absent("apt-get install nginx-light")
        self._behind = _Behind(setting, self.folder)

    def command(self) -> Sequence[str]:
        config = self.folder / "nginx.conf"
        socket_path = self._behind.start()
        config.write_text(self._CONFIG.format(folder=self.folder, socket=socket_path, port=self.port))
        assert self.binary is not None, "found"
        user = "user root;" if os.geteuid() == 0 else ""
        return [self.binary, "-p", str(self.folder), "-c", str(config), "-g", f"daemon off; {user}"]

    def stop(self) -> None:
        super().stop()
        self._behind.stop()

    def pids(self) -> tuple[int, ...]:
        assert self.process is not None, "it runs"
        return (self.process.pid, *(one.pid for one in psutil.Process(self.process.pid).children()))


class Naive(Contestant):
    name = "aiohttp"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._behind = _Behind(setting, self.folder)

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "bench.proxy_naive", str(self._behind.start()), str(self.port)]

    def stop(self) -> None:
        super().stop()
        self._behind.stop()


class Ours(Contestant):
    """With the configuration it has by itself, its access log among it."""

    name = "ours"
    logs_requests = access_log = True
    log_format = ""  # a line of [server] that not every checkout knows

    def command(self) -> Sequence[str]:
        setting, config = self.setting, self.folder / "config.toml"
        config.write_text(
            f"[server]\naccess_log = {str(self.access_log).lower()}\n"
            f"{self.log_format}\n"
            f"[scheduler]\nmodels_max = {setting.models_max}\nqueue_limit = 4096\nlinger = 0.0\n"
            f"[memory]\nmargin_mib = 64\n"
            f"[child]\nargs = {json.dumps(setting.args)}\nctx_size = 2048\n"
        )
        folder = self.folder / "models"
        folder.mkdir(exist_ok=True)
        for model in setting.models:
            (folder / model.name).unlink(missing_ok=True)
            os.link(model, folder / model.name)
        command = [sys.executable, "-m", "router", "serve", "--config", str(config), "--port", str(self.port)]
        return [*command, "--state-dir", str(self.folder / "state"), "--models-dir", str(folder)]

    def environment(self) -> dict[str, str]:
        return {"LLAMA_SERVER": str(self.setting.server), "HF_HOME": str(self.folder / "none")}

    def unload(self, model: str) -> None:
        post(self.port, "/models/unload", {"model": model})
        self.until_childless()


class OursQuiet(Ours):
    name = "ours-no-log"
    logs_requests = access_log = False


class Before(Ours):
    """Ours as it is in another checkout: what a change has brought."""

    name = "before"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.before is None:
            raise Absent("--before FOLDER, another checkout of this project")
        self.checkout = setting.before


class LlamaRouter(Contestant):
    """llama.cpp's own. It starts its own file again for each model: that file is replaced once it runs."""

    name = "llama.cpp"
    logs_requests = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if setting.llama_server is None:
            raise Absent("bin/build-llama-server, or --llama-server FILE")
        self.binary = self.folder / "llama-server"

    def command(self) -> Sequence[str]:
        setting, folder = self.setting, self.folder / "models"
        folder.mkdir(exist_ok=True)
        for model in setting.models:
            (folder / model.name).unlink(missing_ok=True)
            os.link(model, folder / model.name)
        command = [str(self.binary), "--host", "127.0.0.1", "--port", str(self.port)]
        command += [
            "--models-dir",
            str(folder),
            "--models-max",
            str(setting.models_max),
            "-c",
            "2048",
            "-np",
            "4",
        ]
        return [*command, *setting.args, "--no-ui"]

    def start(self) -> None:
        self._become(self.setting.llama_server)
        super().start()
        if self.setting.server != self.setting.llama_server:
            self._become(self.setting.server)

    def _become(self, program: Path | None) -> None:
        assert program is not None, "absent without"
        self.binary.unlink(missing_ok=True)
        shutil.copy(program, self.binary)

    def unload(self, model: str) -> None:
        post(self.port, "/models/unload", {"model": model})
        self.until_childless()


class LlamaSwap(Contestant):
    name = "llama-swap"
    logs_requests = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        found = setting.llama_swap or shutil.which("llama-swap")
        if found is None:
            raise Absent("--llama-swap FILE, a release of github.com/mostlygeek/llama-swap")
        self.binary = str(found)

    def command(self) -> Sequence[str]:
        config = self.folder / "config.yaml"
        models = {}
        for model in self.setting.models:
            own = [
                "--host",
                "127.0.0.1",
                "--port",
                "${PORT}",
                "-m",
                str(model),
                "-c",
                "2048",
                "-np",
                "4",
                "--no-ui",
            ]
            command = " ".join((str(self.setting.server), *own, *self.setting.args))
            models[model.stem] = {"cmd": command, "concurrencyLimit": 4096}
        config.write_text(json.dumps({"startPort": free_port(), "models": models}))  # JSON is YAML
        return [self.binary, "-config", str(config), "-listen", f"127.0.0.1:{self.port}"]

    def unload(self, model: str) -> None:
        post(self.port, f"/api/models/unload/{model}", {})
        self.until_childless()


CONTESTANTS: Final[tuple[type[Contestant], ...]] = (
    Direct,
    Nginx,
    Ours,
    OursQuiet,
    Before,
    Naive,
    LlamaSwap,
    LlamaRouter,
)
ROUTERS: Final[tuple[type[Contestant], ...]] = (Ours, Before, LlamaSwap, LlamaRouter)


# --- processes and plain requests -------------------------------------------------------------------------


def upstream_program(folder: Path) -> Path:
    """`bench/proxy_upstream.py` as an executable that starts without the environment of this one."""
    program = folder / "upstream"
    source = Path(__file__).with_name("proxy_upstream.py")
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P {shlex.quote(str(source))} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def spawn(
    command: Sequence[str], output: Path, folder: Path = ROOT, **environment: str
) -> subprocess.Popen[bytes]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("LLAMA_", "FAKE_"))}
    with open(output, "ab") as file:
        return subprocess.Popen(
            command, cwd=folder, env={**kept, **environment}, stdout=file, stderr=subprocess.STDOUT
        )


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _lives(process: psutil.Process) -> bool:
    """It may end while it is looked at."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


def answers(port: int, path: str) -> bool:
    """With whatever status: llama-swap has no model yet, aiohttp no route."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1.0) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        return error.code != 502
    except OSError:
        return False
    return True


def post(port: int, path: str, body: object) -> bytes:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=START_SECONDS) as answer:
        data: bytes = answer.read()
        return data
