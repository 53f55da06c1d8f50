"""bin/run in a fresh checkout: the environment is made once, renewed when it must be, and else costs nothing.

The checkout is a copy of bin/ with a router that prints what it was started with, and no requirements.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(__file__).parent.parent / "bin"
DEADLINE_SECONDS = 120.0

ROUTER = """\
import json, os, sys
server = os.environ.get("LLAMA_SERVER")
print(json.dumps({"arguments": sys.argv[1:], "server": server, "python": sys.executable}))
"""


class Checkout:
    """A fresh clone, in a folder with spaces, of a person who has a llama-server on PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a fresh clone"
        self.tools = folder / "tools"
        shutil.copytree(BIN, self.root / "bin", ignore=shutil.ignore_patterns("__pycache__"))
        (self.root / "router").mkdir()
        (self.root / "router" / "__init__.py").write_text("")
        for name in ("build_llama_server.py", "installation.py"):
            shutil.copy(BIN.parent / "router" / name, self.root / "router")
        (self.root / "router" / "__main__.py").write_text(ROUTER)
        self.require("# nothing\n")
        self.tools.mkdir()
        self.llama_server = program(self.tools / "llama-server")
        self.environment = {
            "PATH": f"{self.tools}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PIP_NO_INDEX": "1",
        }

    def require(self, text: str) -> None:
        (self.root / "requirements.txt").write_text(text)

    def try_run(self, *arguments: str, cwd: Path | None = None, **environment: str):
        return subprocess.run(
            [self.root / "bin" / "run", *arguments],
            env={**self.environment, **environment},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> dict:
        """What the router was started with; and that nothing was said besides when nothing was to do."""
        done = self.try_run(*arguments, cwd=cwd, **environment)
        assert done.returncode == 0, done.stderr
        return {**json.loads(done.stdout), "said": done.stderr}


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Shared, since making its environment takes seconds: it has been started once."""
    made = Checkout(tmp_path_factory.mktemp("home"))
    first = made.run("--port", "9000")
    assert "creating .venv" in first["said"]
    assert first["arguments"] == ["serve", "--port", "9000"]
    return made


def test_it_starts_the_router_of_the_checkout_with_its_own_python_and_llama_server(checkout, tmp_path):
    (tmp_path / "router").mkdir()  # a folder of that name where one happens to stand is not it
    started = checkout.run("--set", "a=b c", cwd=tmp_path)
    assert started["arguments"] == ["serve", "--set", "a=b c"]
    assert started["python"] == str(checkout.root / ".venv" / "bin" / "python")
    assert started["server"] == str(checkout.llama_server)
    assert started["said"] == ""


def test_a_later_start_asks_neither_pip_nor_the_search_for_llama_server(checkout):
    checkout.run()
    pip = next((checkout.root / ".venv").rglob("site-packages/pip"))
    search = checkout.root / "router" / "build_llama_server.py"
    text, stamp = search.read_text(), search.stat().st_mtime_ns
    pip.rename(pip.with_name("pip.away"))
    search.write_text("raise SystemExit('asked')")
    os.utime(search, ns=(stamp, stamp))
    try:
        assert checkout.run()["said"] == ""
    finally:
        pip.with_name("pip.away").rename(pip)
        search.write_text(text)
        os.utime(search, ns=(stamp, stamp))


def test_another_llama_server_is_noticed(checkout, tmp_path):
    other = program(tmp_path / "llama-server")
    assert checkout.run(LLAMA_SERVER=str(other))["server"] == str(other)
    assert checkout.run()["server"] == str(checkout.llama_server)
    config = tmp_path / "config.toml"
    config.write_text('[paths]\nllama_server = "./llama-server"\n')
    assert checkout.run("--config", str(config))["server"] == str(other)
    assert checkout.run(f"--config={config}")["server"] == str(other)
    assert checkout.run("-c", str(config), "--", "-c", "4096", "-h")["server"] == str(other)
    assert checkout.run(LLAMA_ROUTER_CONFIG=str(config))["server"] == str(other)
    other.unlink()
    done = checkout.try_run("--config", str(config))
    assert done.returncode == 1
    assert "not a program that can be run" in done.stderr


def test_changed_requirements_are_installed_and_a_failure_is_tried_again(checkout):
    try:
        checkout.require("no-such-package==1.0\n")
        for _ in range(2):
            done = checkout.try_run()
            assert done.returncode == 1
            assert done.stdout == ""
            assert "could not install requirements.txt" in done.stderr
    finally:
        checkout.require("# nothing, but differently\n")
    assert "installing requirements.txt" in checkout.run()["said"]
    assert checkout.run()["said"] == ""


def test_help_is_the_routers_and_builds_nothing(checkout):
    without = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    assert checkout.run("-h", **without) == checkout.run("-h", **without)
    assert checkout.run("--help", **without)["arguments"] == ["serve", "--help"]
    assert checkout.run("--help", **without)["server"] is None


def test_the_command_llama_router_is_there_and_works_from_anywhere(checkout, tmp_path):
    link = tmp_path / "llama-router"
    link.symlink_to(checkout.root / ".venv" / "bin" / "llama-router")
    done = subprocess.run([link, "ps"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["arguments"] == ["ps"]


def test_a_python_that_is_only_a_name_is_passed_over_and_an_old_one_is_told(tmp_path):
    checkout = Checkout(tmp_path)
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11", "python"):
        program(checkout.tools / name, "#!/bin/sh\nexit 127\n")
    program(checkout.tools / "python3", "#!/bin/sh\nexit 3\n")
    done = checkout.try_run()
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed (python3 is older)" in done.stderr
    program(checkout.tools / "python", "#!/bin/sh\nexit 4\n")
    done = checkout.try_run()
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (checkout.root / ".venv").exists()
