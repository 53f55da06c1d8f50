"""The command line as a whole: its table of commands, and what an expected failure looks like."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from router import __version__
from router.cli import COMMANDS, cli
from router.errors import ConfigError, ModelNotFound, RouterError


def test_every_command_of_the_table_is_there_and_helps():
    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert "Usage:" in result.output


def test_help_lists_the_commands_with_a_line_each():
    output = CliRunner().invoke(cli, ["--help"]).output
    for name in COMMANDS:
        assert f"\n  {name} " in output


def test_an_unknown_command_is_refused():
    result = CliRunner().invoke(cli, ["serv"])
    assert result.exit_code == 2
    assert "No such command 'serv'" in result.output


def test_the_version_is_told():
    assert CliRunner().invoke(cli, ["--version"]).output == f"llama-router, version {__version__}\n"


@pytest.mark.parametrize(("error", "status"), [(ConfigError("port: no"), 2), (ModelNotFound("who?"), 1)])
def test_an_expected_failure_is_one_message_and_a_status(monkeypatch, error: RouterError, status: int):
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr("router.cli.ps.ps", failing)
    result = CliRunner().invoke(cli, ["ps"])
    assert result.exit_code == status
    assert result.stderr == f"llama-router: {error.message}\n"


@pytest.mark.parametrize("heavy", ["aiohttp", "huggingface_hub", "rich", "router.supervisor.pool"])
def test_a_small_command_does_not_load_the_server(heavy: str):
    code = f"import sys, router.cli.ps, router.__main__; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_server_does_not_load_what_it_hardly_ever_needs():
    # What is 0.5 MiB and more, and hardly ever needed.
    heavy = {"huggingface_hub", "httpx2", "rich", "psutil", "statistics", "pynvml", "prometheus_client"}
    code = f"import sys, router.app; sys.exit(' '.join({heavy!r} & sys.modules.keys()) or 0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
