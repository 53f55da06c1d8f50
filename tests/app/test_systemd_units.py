"""deploy/systemd: the units as `install` writes them, and what it does when it is run again, or against."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.router_process import REPOSITORY

UNITS = ("llama-router.service", "llama-router.socket")

SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in *is-active*) [ -n "$ACTIVE" ] ;; esac
"""


class Installation:
    """A checkout, in a folder with a space and a %; a stand-in of systemctl writes down how it is called."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "a 100% checkout"
        for part in ("bin", "deploy"):
            shutil.copytree(REPOSITORY / part, self.checkout / part)
        python = program(self.checkout / ".venv" / "bin" / "python")
        (self.checkout / "requirements.txt").write_text("")
        installed = python.parent.parent / "requirements.txt.installed"
        installed.write_text(f"{self.checkout}\n\n")
        self.home = folder / "home"
        self.units = self.home / "config" / "systemd" / "user"
        self.secrets = self.home / "config" / "llama-router" / "llama-router.env"
        self.calls = folder / "calls"
        self.calls.touch()
        self.llama_server = program(folder / "tools" / "llama-server")
        # As bin/run remembers it: otherwise the search would need a Python with all its modules.
        python.write_text(f'#!/bin/sh\necho "{self.llama_server}"\n')
        program(folder / "tools" / "systemctl", SYSTEMCTL)
        self.environment = {
            "PATH": f"{folder / 'tools'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "CALLS": str(self.calls),
        }

    def install(self, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [self.checkout / "deploy" / "systemd" / "install", *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def made(self) -> list[str]:
        return sorted(path.name for path in self.units.iterdir()) if self.units.exists() else []


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def made(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_it_writes_the_units_of_its_checkout_and_starts_them(made: Installation):
    made.install("--listen", "127.0.0.1:9999")
    assert made.made() == sorted(UNITS)
    service = (made.units / "llama-router.service").read_text()
    path = str(made.checkout).replace("%", "%%")
    assert f'ExecStart="{path}/bin/run"' in service
    assert f'Environment="LLAMA_SERVER={made.llama_server}"' in service
    assert "ListenStream=127.0.0.1:9999" in (made.units / "llama-router.socket").read_text()
    assert "--user enable --now llama-router.socket llama-router.service" in made.calls.read_text()
    assert not any("@" in line for unit in UNITS for line in (made.units / unit).read_text().splitlines()[1:])


def test_secrets_are_for_the_user_alone_and_never_overwritten(made: Installation):
    made.install()
    assert stat.S_IMODE(made.secrets.stat().st_mode) == 0o600
    made.secrets.write_text("LLAMA_ROUTER_KEY=mine\n")
    made.install()
    assert made.secrets.read_text() == "LLAMA_ROUTER_KEY=mine\n"


def test_a_second_time_it_changes_nothing_and_a_running_router_is_only_replaced(made: Installation):
    made.install()
    stamps = [(made.units / unit).stat().st_mtime_ns for unit in UNITS]
    made.calls.write_text("")
    said = made.install(ACTIVE="yes")
    assert said.count("is as it should be") == 2
    assert [(made.units / unit).stat().st_mtime_ns for unit in UNITS] == stamps
    calls = made.calls.read_text()
    assert "--user reload llama-router.service" in calls
    assert "restart" not in calls and "stop" not in calls


def test_a_dry_run_shows_everything_and_does_nothing(made: Installation):
    said = made.install("--dry-run")
    assert "ExecStart=" in said and "ListenStream=" in said and "enable --now" in said
    assert made.made() == []
    assert not made.secrets.exists()
    assert "enable" not in made.calls.read_text()


def test_uninstalling_removes_the_units_and_leaves_the_secrets(made: Installation):
    made.install()
    made.install("--uninstall")
    assert made.made() == []
    assert made.secrets.exists()
    assert "--user disable --now llama-router.socket llama-router.service" in made.calls.read_text()
    made.install("--uninstall")


def test_without_systemd_the_units_are_written_and_the_next_step_is_told(made: Installation, tmp_path: Path):
    program(tmp_path / "tools" / "systemctl", "#!/bin/sh\nexit 1\n")
    assert "systemctl --user enable --now" in made.install()
    assert made.made() == sorted(UNITS)


def test_what_is_no_address_is_refused(made: Installation):
    done = subprocess.run(
        [made.checkout / "deploy" / "systemd" / "install", "--listen", "8080\nExecStart=/bin/sh"],
        env=made.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert made.made() == []


def test_systemd_finds_no_fault_with_the_units(made: Installation):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not on this machine")
    made.install()
    runtime = made.home / "run"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        [analyze, "verify", "--user", "--man=no", *(made.units / unit for unit in UNITS)],
        env={**os.environ, **made.environment, "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
