"""An option is found by every name that llama.cpp has for it."""

from __future__ import annotations

import pytest

from router.presets.options import all_options, nearest_option, spelling_of, spelling_of_arg


def found(name: str) -> tuple[str, bool]:
    spelling = spelling_of(name)
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
    spelling = spelling_of_arg(arg)
    assert spelling is not None
    assert spelling.values == values


@pytest.mark.parametrize("arg", ["c", "ctx-size", "--c", "-ctx-size", "--LLAMA_ARG_CTX_SIZE", "-h_ost", ""])
def test_on_a_command_line_only_an_argument_is_an_argument(arg):
    assert spelling_of_arg(arg) is None


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
    spelling = spelling_of(name)
    assert spelling is not None
    assert spelling.option.refused


def test_every_option_has_a_reason_at_most_once_and_no_name_twice():
    names = [arg for option in all_options() for arg in (*option.args, *option.negations)]
    assert len(names) == len(set(names))
    assert all(option.env.isupper() or not option.env for option in all_options())


def test_a_misspelt_option_has_a_nearest():
    assert nearest_option("--ctx-sise") == "ctx-size"
    assert nearest_option("top_pp") == "top-p"
    assert nearest_option("zzzzzzzz") is None
