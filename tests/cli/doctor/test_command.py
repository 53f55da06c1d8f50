"""`doctor`: everything in order, and a status that a script can use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli import cli
from tests.admin.upstream import free_port
from tests.fake_binary import make_fake_binary
from tests.make_gguf import make_llama


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    make_llama(tmp_path / "models" / "tiny.gguf", sparse=True)
    path = tmp_path / "config.toml"
    path.write_text(
        f'[server]\nport = {free_port()}\n[paths]\nmodels_dirs = ["models"]\nhf_cache = false\n'
        f'state_dir = "state"\nllama_server = "{make_fake_binary(tmp_path)}"\n'
    )
    return path


def test_a_machine_that_is_ready_is_told_so_line_by_line(config: Path):
    result = CliRunner().invoke(cli, ["doctor", "--config", str(config)])
    assert result.exit_code == 0, result.output
    abouts = [line.partition(":")[0].split()[-1] for line in result.output.splitlines() if "->" not in line]
    looked_at = {"router", "configuration", "llama-server", "device", "folders", "limits", "disk", "models"}
    assert looked_at | {"address"} <= set(abouts)


def test_what_is_wrong_has_a_remedy_and_a_status(config: Path):
    config.write_text(config.read_text().replace("llama_server = ", 'llama_server = "/nowhere" #'))
    result = CliRunner().invoke(cli, ["doctor", "-c", str(config)])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("fail  llama-server: "))
    assert lines[at + 1].startswith("      -> ")
    assert any(line.startswith("ok    models") for line in lines), "the rest is looked at all the same"


def test_as_json_it_is_a_list(config: Path):
    found = json.loads(CliRunner().invoke(cli, ["doctor", "-c", str(config), "--json"]).output)
    assert {"level", "about", "found", "do"} == found[0].keys()


def test_with_a_wrong_configuration_there_is_nothing_else_to_look_at(config: Path):
    config.write_text("[server]\nprot = 1\n")
    result = CliRunner().invoke(cli, ["doctor", "-c", str(config)])
    assert result.exit_code == 1
    assert "did you mean server.port?" in result.output
    assert "llama-server:" not in result.output
