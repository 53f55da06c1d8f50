"""llama.cpp's INI presets."""

from __future__ import annotations

import tomllib
from pathlib import Path

from click.testing import CliRunner

from router.cli import cli


def test_it_is_read_as_it_is_and_what_is_left_out_is_reported(tmp_path: Path):
    path = tmp_path / "presets.ini"
    path.write_text("version = 1\n[*]\nc = 4096\nport = 9000\n[a]\nmodel = a.gguf\nngll = 1\n")
    result = CliRunner().invoke(cli, ["import", str(path)])
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout) == {"paths": {"presets": [str(path)]}}
    assert f"{path}:4: port is left out: the router answers clients itself" in result.stderr
    assert f"{path}:7: ngll: llama-server has no such option" in result.stderr
