"""Configuration, llama-server and models, as a doctor sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cli.doctor.findings import Finding, Level
from router.cli.doctor.software import (
    devices_of_binary,
    look_at_binary,
    look_at_configuration,
    look_at_models,
)
from router.config import Config, PathsConfig
from tests.fake_binary import make_fake_binary
from tests.make_gguf import make_llama


def bad(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.level is not Level.OK]


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_wrong_line_of_the_configuration_is_named(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text("[server]\nprot = 1\n[scheduler]\npolcy = 'lru'\n")
    config, findings = look_at_configuration(path)
    assert config is None
    hints = [one.found.rpartition("did you mean ")[2] for one in bad(findings)]
    assert hints == ["server.port?", "scheduler.policy?"]


def test_a_good_one_is_named_too(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text("[server]\nport = 1\n")
    config, findings = look_at_configuration(path)
    assert config is not None and config.server.port == 1
    assert not bad(findings) and str(path) in findings[-1].found


def test_a_missing_llama_server_is_told_with_the_way_to_one(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("LLAMA_SERVER", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    binary, (finding,) = look_at_binary(Config())
    assert binary is None and finding.level is Level.FAIL
    assert "bin/build-llama-server" in finding.do


def test_one_that_is_named_and_cannot_be_run_is_not_replaced(tmp_path: Path):
    missing = tmp_path / "llama-server"
    binary, (finding,) = look_at_binary(Config(paths=PathsConfig(llama_server=missing)))
    assert binary is None
    assert str(missing) in finding.found and "paths.llama_server" in finding.do


def test_one_that_lacks_a_library_is_told_so(tmp_path: Path):
    said = "llama-server: error while loading shared libraries: libcudart.so.12: no such file"
    path = program(tmp_path / "llama-server", f"echo '{said}' >&2; exit 127")
    _, (finding,) = look_at_binary(Config(paths=PathsConfig(llama_server=path)))
    assert "libcudart.so.12" in finding.found
    assert "library" in finding.do
    listed, (finding,) = devices_of_binary(path)
    assert listed == "" and finding.level is Level.FAIL


def test_one_that_runs_tells_its_version(tmp_path: Path):
    path = make_fake_binary(tmp_path)
    binary, (finding,) = look_at_binary(Config(paths=PathsConfig(llama_server=path)))
    assert binary == path and finding.level is Level.OK
    assert "fake" in finding.found


def config_of(folder: Path) -> Config:
    return Config(paths=PathsConfig(models_dirs=(folder,), hf_cache=False))


def test_models_are_counted_and_broken_ones_named(tmp_path: Path):
    make_llama(tmp_path / "good.gguf", sparse=True)
    for number in range(7):
        (tmp_path / f"broken{number}.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    findings = list(look_at_models(config_of(tmp_path)))
    assert findings[-1].found.startswith("1 model in ")
    assert len(bad(findings)) == 6, "not all seven are worth a line"
    assert bad(findings)[-1].found == "2 more cannot be used"


@pytest.mark.parametrize("exists", [True, False])
def test_where_there_is_none_the_folder_is_named(tmp_path: Path, exists: bool):
    folder = tmp_path / "models"
    if exists:
        folder.mkdir()
    findings = bad(list(look_at_models(config_of(folder))))
    assert len(findings) == (1 if exists else 2)
    assert all(str(folder) in one.do for one in findings)


def test_a_wrong_preset_file_is_told_with_its_line(tmp_path: Path):
    preset = tmp_path / "p.toml"
    preset.write_text("[defaults]\nctx_sise = 1\n")
    config = Config(paths=PathsConfig(models_dirs=(tmp_path,), hf_cache=False, presets=(preset,)))
    (finding,) = look_at_models(config)
    assert finding.level is Level.FAIL and f"{preset}:2" in finding.found
