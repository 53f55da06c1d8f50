"""`doctor --url`: what a router elsewhere says of itself."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest
from click.testing import CliRunner

from router.cli import cli
from router.hosts import Measurement
from tests.admin.fake_pool import GPU
from tests.admin.upstream import free_port
from tests.cli.conftest import Terminal, api, known, models_dir, terminal

__all__ = ["api", "known", "models_dir", "terminal"]  # fixtures


async def test_a_router_that_is_well_is_told_with_its_devices_and_models(terminal: Terminal):
    lines = (await terminal.run("doctor")).output.splitlines()
    assert f"answers at {terminal.api.url}" in lines[0]
    assert any(
        line.startswith("ok    device: ") and "H200: 20.0 GiB free of 24.0 GiB" in line for line in lines
    )
    assert any(line.startswith("ok    models: ") for line in lines)
    assert not any(about in line for line in lines for about in ("limits", "disk", "folders", "Python"))


async def test_what_the_router_there_warns_of_is_a_finding(terminal: Terminal, monkeypatch):
    snapshot = terminal.api.pool.snapshot()
    sick = replace(snapshot.devices[0], free=None, others=None, room=None)
    monkeypatch.setattr(terminal.api.pool, "snapshot", lambda: replace(snapshot, devices=(sick,)))
    lost = replace(terminal.api.known.definitions.infos[GPU], free_bytes=None, error="the GPU is lost")
    terminal.api.pool.measurements["local"] = Measurement(
        1.0, {GPU: None}, infos={GPU: lost}, warnings=("models run on the CPU: a reason",)
    )
    found = json.loads((await terminal.run("doctor", "--json", status=1)).output)
    told = {(one["level"], one["found"]) for one in found}
    assert ("fail", "NVIDIA H200: the GPU is lost") in told
    assert ("warn", "models run on the CPU: a reason") in told
    assert {"level", "about", "found", "do"} == found[0].keys()


async def test_the_variable_of_its_siblings_is_heeded_and_a_configuration_comes_before_it(
    terminal: Terminal, monkeypatch, tmp_path
):
    monkeypatch.setenv("LLAMA_ROUTER_URL", f"http://127.0.0.1:{free_port()}")
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1 and "no router answers" in result.output
    config = tmp_path / "config.toml"
    config.write_text("[server]\nprot = 1\n")
    assert "did you mean server.port?" in CliRunner().invoke(cli, ["doctor", "-c", str(config)]).output


def test_a_configuration_and_an_address_are_two_things():
    result = CliRunner().invoke(cli, ["doctor", "-c", "a.toml", "--url", "http://b"])
    assert result.exit_code == 2
    assert "give one of them" in result.output


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "unix:/nowhere/router.sock"])
def test_where_no_router_answers_that_is_the_finding(url: str):
    result = CliRunner().invoke(cli, ["doctor", "--url", url.format(port=free_port())])
    assert result.exit_code == 1
    (line, do) = result.output.splitlines()
    assert line.startswith("fail  address: no router answers at ")
    assert do.startswith("      -> ")


def test_another_program_there_is_called_so(monkeypatch):
    monkeypatch.setattr("router.cli.doctor.remote._READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = CliRunner().invoke(cli, ["doctor", "--url", f"http://127.0.0.1:{other.getsockname()[1]}"])
    assert result.exit_code == 1
    assert result.output.startswith("fail  address: ")
