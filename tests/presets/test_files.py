"""A preset file becomes layers; what is wrong in one section is kept to that section."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.presets.files import PresetFile, read_preset_file
from router.presets.known_options import REFUSALS
from tests.llama_server_options import OPTIONS


@pytest.fixture
def read(tmp_path):
    def read(text: str, name: str = "p.toml") -> PresetFile:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_preset_file(tmp_path / name, OPTIONS)

    return read


# --- TOML ---


def test_a_toml_file_has_defaults_families_and_models(read, tmp_path):
    file = read("""
[defaults]
ctx_size = 4096
[families.tiny]
match = ["*tiny*"]
architectures = ["llama"]
flags = { temp = 0.5 }
[models."org/repo:Q4_K_M"]
model = "m.gguf"
aliases = ["a", "b"]
ttl_seconds = -1
tensor_split = [3, 1.5]
n_gpu_layers = "auto"
env = { GGML_CUDA_FORCE_MMQ = "1" }
args = ["--top-k", "5", "-ub", "256"]
""")
    assert not file.problems
    assert file.defaults[0].fields == {"ctx_size": 4096}
    (family,) = file.families
    assert (family.match, family.architectures) == (("*tiny*",), ("llama",))
    assert family.layer.args == {"temperature": ("--temperature", "0.5")}
    layer = file.models["org/repo:Q4_K_M"]
    assert layer.fields == {
        "model": tmp_path / "m.gguf",
        "aliases": ("a", "b"),
        "ttl_seconds": -1.0,
        "tensor_split": (3.0, 1.5),
        "n_gpu_layers": "auto",
        "env": {"GGML_CUDA_FORCE_MMQ": "1"},
        "ubatch_size": 256,
    }
    assert layer.args == {"top-k": ("--top-k", "5")}
    assert layer.origin == f"{tmp_path}/p.toml:8"


def test_a_wrong_setting_names_file_line_key_value_and_the_nearest_key(read, tmp_path):
    file = read("""[models.a]
cxt_size = 5
ctx_size = "big"
priority = "urgent"
flags = { tmep = 1, port = 80 }
temp = 0.5
args = "--jinja"
[models.b]
pinned = true
""")
    assert not file.problems
    assert [problem.removeprefix(f"{tmp_path}/p.toml:") for problem in file.models["a"].problems] == [
        "2: models.a.cxt_size: there is no such setting; did you mean ctx_size?",
        "3: ctx_size = 'big': expected a number or 'auto'",
        "4: priority = 'urgent': expected one of 'high', 'normal', 'low'",
        "5: tmep: llama-server has no such option; did you mean temp?",
        f"5: port = 80: is not for presets: {REFUSALS['answers']}",
        "6: models.a.temp: there is no such setting; options of llama-server belong into flags",
        "7: args: expected a list of strings",
    ]
    assert not file.models["b"].problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[defaults]\ncxt_size = 1",
            ":2: defaults.cxt_size: there is no such setting; did you mean ctx_size?",
        ),
        ("[defaults]\nmodel = 'x'", ":1: [defaults]: model can only be set for a single model"),
        ("defaults = 1", "a preset file has the tables [defaults], [families.NAME] and [models.NAME]"),
        ("['my model']\nctx_size = 1", 'did you mean [models."my model"]?'),
        ("ctx_size = 1", ":1: ctx_size: a preset file has the tables"),
        (
            "[families.f]\nflags = { temp = 1 }",
            "[families.f] matches nothing: it needs match or architectures",
        ),
        ("[families.f]\nmatch = 'x'", ":2: families.f.match: expected a list of strings"),
        ("[families.f]\nmatch = ['x']\naliases = ['y']", "aliases can only be set for a single model"),
        ("families = { f = 1 }", "families.f: expected a table"),
        ("x = ", "p.toml: Invalid value (at end of document)"),
    ],
)
def test_what_concerns_more_than_one_model_is_a_problem_of_the_file(read, text, problem):
    assert any(problem in each for each in read(text).problems)


def test_a_model_that_is_not_a_table_is_its_own_problem(read):
    file = read("models = { a = 1 }")
    assert not file.problems
    assert "expected a table, [models.a]" in file.models["a"].problems[0]


# --- INI ---


def test_an_ini_file_has_defaults_and_models(read, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "in-cwd.gguf").touch()
    monkeypatch.chdir(tmp_path / "cwd")
    file = read(
        "version = 1\n[*]\nc = 1\nversion = 2\n[ a:b ]\nm = in-cwd.gguf\nmm = beside.gguf\nalias = x\n",
        "p.ini",
    )
    assert not file.problems
    assert file.defaults[0].fields == {"ctx_size": 1}
    assert file.models["a:b"].fields == {
        "model": tmp_path / "cwd" / "in-cwd.gguf",
        "mmproj": tmp_path / "beside.gguf",
        "aliases": ("x",),
    }
    assert file.models["a:b"].origin == f"{tmp_path}/p.ini:5"


def test_an_unknown_key_in_an_ini_file_disables_that_model_alone(read, tmp_path):
    file = read("[a]\ntmep = 1\n[b]\ntemp = 1\n", "p.ini")
    assert file.models["a"].problems == (
        f"{tmp_path}/p.ini:2: tmep: llama-server has no such option; did you mean temp?",
    )
    assert not file.models["b"].problems
    assert not file.problems


def test_an_unknown_key_for_all_models_is_a_problem_of_the_file(read, tmp_path):
    file = read("c = 1\n[*]\ntmep = 1\nmodel = x\nbroken\n", "p.ini")
    assert [problem.removeprefix(f"{tmp_path}/") for problem in file.problems] == [
        "p.ini:1: c stands before any section; settings for all models belong into [*]",
        "p.ini:5: 'broken' is not of the form key = value",
        "p.ini:3: tmep: llama-server has no such option; did you mean temp?",
        "p.ini:2: [*]: model can only be set for a single model (--model): it names one model",
    ]


# --- files ---


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("gone.toml", None, "No such file or directory"),
        ("p.toml", b"\xff", "is not UTF-8 text (byte 0)"),
        ("p.yaml", b"", "a preset file is named .toml or .ini"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert read_preset_file(tmp_path / name, OPTIONS).problems == [f"{tmp_path}/{name}: {problem}"]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    for name in ("p.toml", "p.ini"):
        (tmp_path / name).write_bytes("\ufeff[models.a]\n".encode())
        assert not read_preset_file(tmp_path / name, OPTIONS).problems


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.lists(
        st.sampled_from(["[a]", "[*]", "c = 1", "model = x", "ngl = y", "=", "jinja", "# x", "[", "port=1"])
        | st.text(max_size=12),
        max_size=8,
    ).map("\n".join)
)
def test_no_ini_file_is_more_than_problems(tmp_path: Path, text):
    (tmp_path / "p.ini").write_text(text, encoding="utf-8", errors="replace")
    file = read_preset_file(tmp_path / "p.ini", OPTIONS)
    for message in (*file.problems, *(problem for layer in file.layers for problem in layer.problems)):
        assert message.startswith(f"{tmp_path}/p.ini:")
