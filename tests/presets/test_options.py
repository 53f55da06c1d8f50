"""An option is found by every name that llama.cpp has for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.engines.llama_binary import find_binary
from router.errors import StartupError
from router.presets.layer import LayerReader
from router.presets.options import KNOWN_ONLY, Options, options_from_help, options_of
from tests.llama_server_options import HELP_FILE, OPTIONS


def found(name: str) -> tuple[str, bool]:
    spelling = OPTIONS.find(name)
    assert spelling is not None, name
    return spelling.option.name, spelling.is_negation


@pytest.mark.parametrize("name", ["ctx-size", "c", "LLAMA_ARG_CTX_SIZE", "--ctx-size", "-c", "ctx_size"])
def test_a_long_a_short_and_an_environment_name_mean_the_same(name):
    assert found(name) == ("ctx-size", False)


@pytest.mark.parametrize("name", ["no-kv-offload", "nkvo", "LLAMA_ARG_NO_KV_OFFLOAD", "no_kv_offload"])
def test_a_negation_is_the_option_turned_round(name):
    assert found(name) == ("kv-offload", True)


def test_an_option_that_merely_sounds_negative_is_none():
    assert found("no-host") == ("no-host", False)


def test_short_names_keep_their_case():
    assert found("C") == ("cpu-mask", False)
    assert found("c") == ("ctx-size", False)


@pytest.mark.parametrize(
    ("arg", "values"),
    [
        ("-c", 1), ("--jinja", 0), ("--no-jinja", 0), ("--control-vector-layer-range", 2), ("--no-mmap", 0),
        ("--mlock", 0), ("--draft-max", 1), ("--flash_attn", 1),
    ],
)  # fmt: skip
def test_an_argument_says_how_many_values_follow(arg, values):
    spelling = OPTIONS.find_arg(arg)
    assert spelling is not None
    assert spelling.values == values


@pytest.mark.parametrize("arg", ["c", "ctx-size", "--c", "-ctx-size", "--LLAMA_ARG_CTX_SIZE", "-h_ost", ""])
def test_on_a_command_line_only_an_argument_is_an_argument(arg):
    assert OPTIONS.find_arg(arg) is None


def test_options_of_older_servers_lead_to_what_they_are_now():
    assert found("draft-max") == ("spec-draft-n-max", False)
    assert found("no-mmap") == ("load-mode", False)


@pytest.mark.parametrize(
    "name",
    [
        "host", "port", "api-key", "api-key-file", "ssl-key-file", "models-dir", "models-max",
        "models-preset", "fit", "fit-target", "fit-ctx", "log-file", "log-disable", "hf-token", "docker-repo",
        "api-prefix", "version", "list-devices",
    ],
)  # fmt: skip
def test_what_would_take_a_child_out_of_the_routers_hands_is_refused_with_a_reason(name):
    spelling = OPTIONS.find(name)
    assert spelling is not None
    assert spelling.option.refused


def test_every_option_has_a_reason_at_most_once_and_no_name_twice():
    names = [
        arg
        for option in options_from_help(HELP_FILE.read_text())
        for arg in (*option.args, *option.negations)
    ]
    assert len(names) == len(set(names))
    assert all(option.env.isupper() or not option.env for option in options_from_help(HELP_FILE.read_text()))


def test_a_misspelt_option_has_a_nearest():
    assert OPTIONS.nearest("--ctx-sise") == "ctx-size"
    assert OPTIONS.nearest("top_pp") == "top-p"
    assert OPTIONS.nearest("zzzzzzzz") is None


# --- what is known without a llama-server, and what it is asked ---


def test_the_known_options_are_those_of_llama_server():
    said = {option.name: option for option in options_from_help(HELP_FILE.read_text())}
    ours = {"load-on-startup", "stop-timeout", "dedup-cache-models"}
    for name, known in KNOWN_ONLY.options.items():
        if name not in ours:
            assert (known.args, known.negations, known.env) == (
                said[name].args,
                said[name].negations,
                said[name].env,
            )
            assert (known.values, known.is_path) == (said[name].values, said[name].is_path), name


@pytest.mark.e2e
def test_the_known_options_are_those_of_this_llama_server():
    try:
        options = options_of(find_binary())
    except StartupError as error:
        pytest.skip(str(error))
    assert options.is_complete
    for name, known in KNOWN_ONLY.options.items():
        arg = known.args[-1]
        assert name in ("load-on-startup", "stop-timeout", "dedup-cache-models") or options.find_arg(arg)


def test_a_llama_server_is_asked_once_and_again_when_it_was_replaced(tmp_path: Path):
    binary = tmp_path / "llama-server"
    asked = tmp_path / "asked"

    def replace_by(*options: str) -> None:
        lines = "".join(f"echo '{option}'\n" for option in options)
        binary.write_text(f"#!/bin/sh\necho >> {asked}\n{lines}")
        binary.chmod(0o755)

    replace_by("--newest N    a number")
    assert options_of(binary).find("newest") == options_of(binary).find("--newest") is not None
    assert len(asked.read_text()) == 1
    replace_by("--newer-still N", "--and-more")
    assert options_of(binary).find("newest") is None
    assert options_of(binary).nearest("newerstill") == "newer-still"
    assert len(asked.read_text()) == 2


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "no program", "#!/bin/sh\nkill -9 $$\n"])
def test_of_a_llama_server_that_does_not_answer_only_the_known_options_are_known(tmp_path: Path, script: str):
    binary = tmp_path / "llama-server"
    binary.write_text(script)
    binary.chmod(0o755)
    assert not options_of(binary).is_complete
    assert not options_of(tmp_path / "none").is_complete


def test_without_a_llama_server_an_option_is_taken_as_it_looks():
    reader = LayerReader((Path("/here"),))
    for name, value in (("temp", 0.7), ("no-jinja", True), ("context_shift", False), ("top-k", "5")):
        reader.set_option(name, value, "f:1")
    reader.set_option("LLAMA_ARG_NEW", 1, "f:2")
    reader.set_option("port", 80, "f:3")
    layer = reader.layer()
    assert [token for tokens in layer.args.values() for token in tokens] == [
        "--temp", "0.7", "--no-jinja", "--no-context-shift", "--top-k", "5",
    ]  # fmt: skip
    assert [problem.split(":")[1] for problem in layer.problems] == ["2", "3"]


def test_a_help_of_another_program_has_no_options():
    assert not Options(options_from_help("usage: ls [FILE]...")).is_complete
