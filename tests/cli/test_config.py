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


MISSING = "[models.gone]\nmodel = '/nowhere/a.gguf'\n"


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        (MISSING, "gone", "/nowhere/a.gguf"),
        ("[models.tiny]\ndevices = ['cuda:7']\n", "tiny", "device 'cuda:7' is not on this machine"),
        ("[models.tiny]\nctx_size = 900000000\n", "tiny", "GiB"),
        ("[models.tiny]\nlora = ['/nowhere/l.gguf']\n", "tiny", "/nowhere/l.gguf"),
        ("[models.tiny]\nenv = { LLAMA_ARG_TOP_K = '1' }\n", "tiny", "LLAMA_ARG_TOP_K cannot be set"),
        ("[models.tiny]\nenv = { CUDA_VISIBLE_DEVICES = '1' }\n", "tiny", "set the key `devices`"),
        ("[child]\nenv = { LLAMA_API_KEY = 'x' }\n", "tiny", "LLAMA_API_KEY cannot be set"),
        ("[models.tiny]\nargs = ['--refused', '1']\n", "tiny", "error: invalid argument: --refused"),
        ("[child]\nargs = ['--refused', '1']\n", "tiny", "error: invalid argument: --refused"),
        ("[models.tiny]\nmodel = 'models/tiny.gguf'\nhf_repo = 'org/repo'\n", "tiny", "name two models"),
    ],
)
def test_a_model_of_which_every_load_would_be_refused_is_named_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, reason: str
):
    server = folder / "llama-server"
    server.write_text(
        '#!/bin/sh\nfor a; do case $a in --refused) echo "error: invalid argument: $a"; exit 1;; esac; done\n'
    )
    server.chmod(0o755)
    monkeypatch.setenv("LLAMA_SERVER", str(server))
    result = check(folder, text)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith(f"! {name} cannot be used: ")]
    assert reason in line
    assert list(json.loads(check(folder, text, "--json").stdout)["broken"]) == [name]


def test_without_a_llama_server_the_rest_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLAMA_SERVER", str(folder / "none"))
    result = check(folder, "[models.tiny]\nargs = ['--top-k', '1']\n")
    assert result.exit_code == 0 and result.stdout.endswith("1 model can be used\n")


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
