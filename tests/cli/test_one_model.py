"""Arguments of llama-server that name one model become a section about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cli.one_model import one_model
from router.errors import StartupError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my model-00001-of-00002.gguf").touch()
    return tmp_path / "my model-00001-of-00002.gguf"


@pytest.mark.parametrize("args", [["-m", "{}"], ["--model", "{}"], ["--model={}"]])
@pytest.mark.parametrize("is_relative", [False, True])
def test_a_file_is_a_model_called_after_it(file: Path, args: list[str], is_relative: bool):
    given = [arg.format(file.name if is_relative else file) for arg in args]
    assert one_model(["-fa", "on", *given, "--jinja"]) == (
        {'models."my model"': {"model": str(file)}},
        ["-fa", "on", "--jinja"],
    )


def test_what_goes_with_the_model_is_its_own(file: Path):
    args = [
        "-m",
        str(file),
        "--mmproj",
        "p.gguf",
        "-a",
        "x,y",
        "--lora",
        "l.gguf",
        "-md",
        "/d.gguf",
        "-c",
        "9",
    ]
    section, rest = one_model(args)
    assert section == {
        'models."my model"': {
            "model": str(file),
            "mmproj": str(file.parent / "p.gguf"),
            "aliases": ["x", "y"],
            "lora": [str(file.parent / "l.gguf")],
            "draft_model": "/d.gguf",
        }
    }
    assert rest == ["-c", "9"]


def test_a_repository_is_a_model_called_like_it():
    assert one_model(["-hf", "o/r:Q4_0"]) == ({'models."o/r:Q4_0"': {"hf_repo": "o/r:Q4_0"}}, [])


@pytest.mark.parametrize(
    "args", [[], ["--mmproj", "p"], ["-c", "4096"], ["--chat-template", "-m"], ["--unknown", "x"], ["-m"]]
)
def test_without_a_model_all_arguments_are_for_all_models(args: list[str]):
    assert one_model(args) == ({}, args)


def test_a_file_that_does_not_exist_is_told(tmp_path: Path):
    with pytest.raises(StartupError, match="no such file"):
        one_model(["-m", str(tmp_path / "typo.gguf")])


def test_a_scaled_adapter_and_a_control_vector_beside_it_are_its_own(file: Path):
    section, rest = one_model(["-m", file.name, "--lora-scaled", "/l.gguf:0.5", "--control-vector=/v.gguf"])
    (settings,) = section.values()
    assert settings == {
        "model": str(file),
        "args": ["--lora-scaled", "/l.gguf:0.5", "--control-vector=/v.gguf"],
    }
    assert rest == []


@pytest.mark.parametrize("args", [["-m", ""], ["--model="]])
def test_a_file_without_a_name_is_told(args: list[str]):
    with pytest.raises(StartupError, match="names no file"):
        one_model(args)
