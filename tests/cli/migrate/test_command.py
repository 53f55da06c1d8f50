"""`import`: where the configuration goes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli import cli


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "swap.yaml"
    path.write_text("models:\n  a:\n    cmd: llama-server -m /a.gguf -c 1\n")
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, ["import", *map(str, args)])


def test_without_a_file_it_goes_to_the_terminal_and_the_report_beside_it(yaml: Path):
    result = run(yaml)
    assert '[models.a]\nmodel = "/a.gguf"\n' in result.stdout
    assert "! a: there is no file /a.gguf" in result.stderr
    assert "!" not in result.stdout


def test_a_file_is_written_once(yaml: Path, tmp_path: Path):
    made = tmp_path / "config.toml"
    assert "is written; next: llama-router config check" in run(yaml, "-o", made).stderr
    assert "[models.a]" in made.read_text()
    made.write_text("mine")
    refused = run(yaml, "-o", made)
    assert refused.exit_code == 1 and "exists already" in refused.stderr
    assert made.read_text() == "mine"
    assert run(yaml, "-o", made, "--force").exit_code == 0
    assert "[models.a]" in made.read_text()


def test_a_folder_is_made_and_one_that_cannot_be_is_told(yaml: Path, tmp_path: Path):
    assert run(yaml, "-o", tmp_path / "new" / "config.toml").exit_code == 0
    refused = run(yaml, "-o", yaml / "config.toml")
    assert refused.exit_code == 1 and f"{yaml}/config.toml: " in refused.stderr


def test_other_files_are_not_guessed_at(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert "only llama-swap's .yaml and llama.cpp's .ini" in run(path).stderr


def test_presets_of_llama_cpp_are_read_as_they_are_and_what_is_left_out_is_reported(tmp_path: Path):
    path = tmp_path / "presets.ini"
    path.write_text("version = 1\n[*]\nc = 4096\nport = 9000\n[a]\nmodel = a.gguf\nngll = 1\n")
    result = run(path)
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout) == {"paths": {"presets": [str(path)]}}
    assert f"{path}:4: port is left out: the router answers clients itself" in result.stderr
    assert f"{path}:7: ngll: llama-server has no such option" in result.stderr
