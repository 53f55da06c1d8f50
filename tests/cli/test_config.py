"""`config check`"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from router.cli import cli
from tests.make_gguf import make_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    make_llama(tmp_path / "models" / "tiny.gguf", sparse=True)
    return tmp_path


def check(folder: Path, text: str, *args: str) -> Result:
    path = folder / "config.toml"
    path.write_text(f'[paths]\nmodels_dirs = ["models"]\nhf_cache = false\n{text}')
    return CliRunner().invoke(cli, ["config", "check", str(path), *args])


def test_what_differs_from_the_defaults_is_shown(folder: Path):
    result = check(
        folder,
        "[scheduler]\nmodels_max = 2\n[models.tiny]\nctx_size = 512\n[memory.devices.host]\nmargin_mib = 5\n",
    )
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"{folder / 'config.toml'}: ok"
    assert "  scheduler.models_max = 2" in lines
    assert '  models.tiny = {"ctx_size": 512}' in lines
    assert '  memory.devices = {"host": {"margin_mib": 5, "enabled": true}}' in lines
    assert lines[-1] == "1 model can be used"
    assert not any("queue_limit" in line for line in lines)


def test_keys_are_counted_and_not_shown(folder: Path):
    result = check(folder, '[server]\napi_keys = ["secret", "other"]\n')
    assert "server.api_keys" in result.output and "(2 set)" in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[scheduler]\npolcy = 'lru'\n", "config.toml:5: scheduler.polcy: there is no such key; did you"),
        ("[server]\nport = 99999\n", "config.toml:5: server.port"),
        ("[paths\n", "config.toml"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_a_status(folder: Path, text: str, says: str):
    result = check(folder, text)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path):
    result = CliRunner().invoke(cli, ["config", "check", str(tmp_path / "nothing.toml")])
    assert result.exit_code == 2 and "nothing.toml" in result.stderr


def test_a_model_whose_settings_are_wrong_is_named_and_the_rest_is_fine(folder: Path):
    result = check(folder, "[models.tiny]\nctx_sise = 1\n")
    assert result.exit_code == 0
    assert "tiny cannot be used: " in result.stderr and "did you mean ctx_size?" in result.stderr
    assert result.stdout.endswith("0 models can be used\n")


def test_as_json_it_is_data(folder: Path):
    told = json.loads(check(folder, "[server]\nport = 9\n", "--json").stdout)
    assert told["differs"]["server.port"] == 9
    assert (told["models"], told["broken"], told["warnings"]) == (["tiny"], {}, [])


def test_a_default_model_that_there_is_not_is_a_warning(folder: Path):
    result = check(folder, '[server]\ndefault_model = "tinyy"\n')
    assert result.exit_code == 0
    assert "! server.default_model: model 'tinyy' not found; did you mean 'tiny'?" in result.stderr


def test_alias_patterns_of_two_models_that_share_a_name_are_a_mistake(folder: Path):
    result = check(folder, '[models.tiny]\naliases = ["gpt-*"]\n[models.b]\naliases = ["*-mini"]\n')
    assert result.exit_code == 2
    assert "both match 'gpt-mini'" in result.stderr and "config.toml:6" in result.stderr
