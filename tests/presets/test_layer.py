"""What decides memory becomes a field however it is written; all else stays an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.presets.layer import Layer, LayerReader, merge
from router.presets.options import options_from_help
from tests.llama_server_options import HELP_FILE, OPTIONS

HERE = Path("/here")
ARGS = [arg for option in options_from_help(HELP_FILE.read_text()) for arg in option.args]


def ini(**options: Any) -> Layer:
    reader = LayerReader((HERE,), is_ini=True, options=OPTIONS)
    for name, value in options.items():
        reader.set_option(name, value, "f:1")
    return reader.layer()


def args(*tokens: str) -> Layer:
    reader = LayerReader((HERE,), options=OPTIONS)
    reader.set_args(tokens, "f:1")
    return reader.layer()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("c", "4096", "ctx_size", 4096),
        ("c", "0", "ctx_size", 0),
        ("LLAMA_ARG_CTX_SIZE", "8", "ctx_size", 8),
        ("ngl", "99", "n_gpu_layers", 99),
        ("ngl", "all", "n_gpu_layers", "all"),
        ("ngl", "-1", "n_gpu_layers", "auto"),
        ("gpu-layers", "-2", "n_gpu_layers", "all"),
        ("np", "2", "parallel", 2),
        ("no-kvu", "1", "kv_unified", False),
        ("kv-unified", "off", "kv_unified", False),
        ("no-kv-unified", "false", "kv_unified", True),
        ("b", "1", "batch_size", 1),
        ("ub", "1", "ubatch_size", 1),
        ("ctk", "q8_0", "cache_type_k", "q8_0"),
        ("fa", "1", "flash_attn", "on"),
        ("fa", "auto", "flash_attn", "auto"),
        ("flash-attn", "off", "flash_attn", "off"),
        ("swa-full", "true", "swa_full", True),
        ("swa-full", "false", "swa_full", False),
        ("cram", "-1", "cache_ram_mib", -1),
        ("sm", "row", "split_mode", "row"),
        ("ts", "3,1", "tensor_split", (3.0, 1.0)),
        ("alias", '"a", "b, c" ,d', "aliases", ("a", "b, c", "d")),
        ("alias", 'say "hi",b', "aliases", ('say "hi"', "b")),
        ("tags", ' , "x",,', "tags", ("x",)),
        ("ts", "3/1.5", "tensor_split", (3.0, 1.5)),
        ("mg", "1", "main_gpu", 1),
        ("dev", "CUDA0, CUDA1", "devices", ("CUDA0", "CUDA1")),
        ("dev", "none", "n_gpu_layers", 0),
        ("cmoe", "1", "cpu_moe", True),
        ("ncmoe", "3", "n_cpu_moe", 3),
        ("ot", "a=CPU,b=CUDA0", "override_tensor", ("a=CPU", "b=CUDA0")),
        ("nkvo", "1", "kv_offload", False),
        ("no-mmproj-offload", "on", "mmproj_offload", False),
        ("no-mmproj", "1", "mmproj_auto", False),
        ("m", "x.gguf", "model", HERE / "x.gguf"),
        ("mm", "/p.gguf", "mmproj", Path("/p.gguf")),
        ("md", "d.gguf", "draft_model", HERE / "d.gguf"),
        ("lora", "a.gguf,/b.gguf", "lora", (HERE / "a.gguf", Path("/b.gguf"))),
        ("hf", "org/repo:Q4_K_M", "hf_repo", "org/repo:Q4_K_M"),
        ("alias", " a , b,", "aliases", ("a", "b")),
        ("embeddings", "on", "embedding", True),
        ("rerank", "enabled", "reranking", True),
        ("pooling", "rank", "pooling", "rank"),
        ("load-on-startup", "true", "load_on_startup", True),
        ("stop-timeout", "3", "stop_grace_seconds", 3.0),
        ("sleep-idle-seconds", "60", "ttl_seconds", 60.0),
    ],
)
def test_an_option_that_is_a_field_becomes_one(name, text, field, value):
    layer = ini(**{name: text})
    assert layer == Layer({field: value})


@pytest.mark.parametrize(("name", "field"), [("m", "model"), ("sm", "split_mode"), ("pooling", "pooling")])
def test_an_empty_value_takes_back_what_a_layer_below_has_set(name, field):
    assert ini(**{name: ""}) == Layer({field: None})


@pytest.mark.parametrize(("name", "text"), [("np", "-1"), ("parallel", "-1")])
def test_what_leaves_the_choice_to_the_server_sets_nothing(name, text):
    assert ini(**{name: text}) == Layer()


@pytest.mark.parametrize(
    ("name", "value", "tokens"),
    [
        ("temp", "0.7", ("--temperature", "0.7")),
        ("spec-type", "draft-mtp", ("--spec-type", "draft-mtp")),
        ("top_p", "0.9", ("--top-p", "0.9")),
        ("jinja", "true", ("--jinja",)),
        ("jinja", "off", ("--no-jinja",)),
        ("no-jinja", "1", ("--no-jinja",)),
        ("no-jinja", "0", ("--jinja",)),
        ("LLAMA_ARG_NO_JINJA", "1", ("--no-jinja",)),
        ("metrics", "1", ("--metrics",)),
        ("metrics", "0", ()),
        ("grammar-file", "g.gbnf", ("--grammar-file", "/here/g.gbnf")),
        ("no-mmap", "1", ("--load-mode", "none")),
        ("mmap", "0", ("--load-mode", "none")),
        ("mlock", "on", ("--load-mode", "mmap+mlock")),
        ("chat-template-kwargs", '{"a": "b # c"}', ("--chat-template-kwargs", '{"a": "b # c"}')),
    ],
)
def test_any_other_option_becomes_arguments(name, value, tokens):
    layer = ini(**{name: value})
    assert list(layer.args.values()) == [tokens]
    assert not layer.fields
    assert not layer.problems


@pytest.mark.parametrize(("name", "value"), [("mmap", "1"), ("no-mmap", "0"), ("mlock", "off")])
def test_an_old_switch_that_says_what_is_so_anyway_sets_nothing(name, value):
    assert ini(**{name: value}) == Layer()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("tmep", "1", "llama-server has no such option; did you mean temp?"),
        ("c", "many", "expected a whole number"),
        ("c", "-5", "expected int >= 0"),
        ("ngl", "most", "expected a whole number"),
        ("jinja", "yes", "expected on or off"),
        ("ts", "3,x", "expected numbers, such as 3,1"),
        ("ctk", "q8", "did you mean 'q8_0'?"),
        ("hf", "no-slash", "expected user/repo or user/repo:QUANTISATION"),
        ("stop-timeout", "soon", "expected a number of seconds"),
        ("stop-timeout", "nan", "expected float >= 0.0"),
    ],
)
def test_a_wrong_value_is_a_problem_with_its_place(name, value, reason):
    layer = ini(**{name: value})
    (problem,) = layer.problems
    assert problem.startswith(f"f:1: {name}")
    assert reason in problem


def test_in_an_ini_file_what_is_not_for_presets_is_left_out_with_a_warning():
    layer = ini(port="80", **{"models-dir": "/m"})
    assert not layer.problems
    assert not layer.args
    assert [warning.split(":")[2].strip() for warning in layer.warnings] == [
        "port is left out", "models-dir is left out",
    ]  # fmt: skip


def test_in_an_ini_file_the_later_of_two_spellings_wins():
    assert ini(**{"c": "1", "ctx-size": "2", "temp": "0.1", "temperature": "0.2"}) == Layer(
        {"ctx_size": 2}, {"temperature": ("--temperature", "0.2")}
    )


# --- arguments ---


def test_arguments_are_taken_apart_like_a_command_line():
    layer = args(
        "--temp", "0.7", "-c", "100", "--jinja", "-ngl", "-1", "--control-vector-layer-range", "1", "9"
    )
    assert layer == Layer(
        {"ctx_size": 100, "n_gpu_layers": "auto"},
        {
            "temperature": ("--temperature", "0.7"),
            "jinja": ("--jinja",),
            "control-vector-layer-range": ("--control-vector-layer-range", "1", "9"),
        },
    )


def test_a_value_that_looks_like_an_option_is_still_the_value():
    assert args("--reverse-prompt", "--jinja").args == {"reverse-prompt": ("--reverse-prompt", "--jinja")}


def test_an_option_may_be_given_several_times():
    assert args("--override-kv", "a=int:1", "--override-kv", "b=int:2").args == {
        "override-kv": ("--override-kv", "a=int:1", "--override-kv", "b=int:2")
    }


@pytest.mark.parametrize(
    ("token", "fields", "arguments"),
    [
        ("--ctx-size=4096", {"ctx_size": 4096}, {}),
        ("-c=4096", {"ctx_size": 4096}, {}),
        ("--override-tensor=exps=CPU", {"override_tensor": ("exps=CPU",)}, {}),
        ("--temp=-1", {}, {"temperature": ("--temperature", "-1")}),
        ("--chat-template=", {}, {"chat-template": ("--chat-template", "")}),
        ("--jinja=off", {}, {"jinja": ("--no-jinja",)}),
        ("--brand-new=1", {}, {"--brand-new=1": ("--brand-new=1",)}),
    ],
)
def test_a_value_may_be_joined_to_its_option(token, fields, arguments):
    layer = args(token)
    assert (layer.fields, layer.args, layer.problems) == (fields, arguments, ())


@pytest.mark.parametrize("tokens", [("--no-mmap", "--mlock"), ("--mlock", "--no-mmap")])
def test_the_old_switches_of_loading_go_together(tokens):
    assert args(*tokens).args["load-mode"][-2:] == ("--load-mode", "mlock")
    assert ini(mlock="on", mmap="off").args == {"load-mode": ("--load-mode", "mlock")}


def test_an_unknown_argument_is_passed_on_with_what_follows_it_and_a_warning():
    layer = args("--brand-new", "1", "-2", "--tempp", "--jinja")
    assert layer.args == {
        "--brand-new": ("--brand-new", "1", "-2"),
        "--tempp": ("--tempp",),
        "jinja": ("--jinja",),
    }
    assert "--brand-new is unknown and passed on as it is" in layer.warnings[0]
    assert "did you mean --temp?" in layer.warnings[1]


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (("--port", "1"), "is not for presets: the router answers clients itself"),
        (("-c",), "-c needs a value"),
        (("--control-vector-layer-range", "1"), "needs a value"),
        (("stray",), "'stray' belongs to no option"),
        (("--jinja", "true"), "'true' belongs to no option"),
        (("-c", "x"), "args: -c = 'x': expected a whole number"),
        (("--models-dir", "/m"), "would make the child a router"),
    ],
)
def test_a_wrong_argument_is_a_problem(tokens, reason):
    (problem,) = args(*tokens).problems
    assert reason in problem


def test_the_same_setting_twice_in_a_section_is_a_problem():
    reader = LayerReader((HERE,), options=OPTIONS)
    reader.set_field("ctx_size", 1, "f:1")
    reader.set_args(["-c", "1"], "f:2")
    assert not reader.layer().problems, "saying the same twice harms nobody"
    reader.set_args(["-c", "2"], "f:3")
    assert reader.layer().problems == ("f:3: args: -c = '2': is already set to 1 in this section",)


# --- fields ---


def test_flags_may_be_numbers_lists_and_tables():
    layer = ini(
        temp=0.7, jinja=False, **{"chat-template-kwargs": {"enable_thinking": False}, "samplers": ["a", "b"]}
    )
    assert layer.args == {
        "temperature": ("--temperature", "0.7"),
        "jinja": ("--no-jinja",),
        "chat-template-kwargs": ("--chat-template-kwargs", '{"enable_thinking": false}'),
        "samplers": ("--samplers", "a,b"),
    }


def test_a_relative_path_is_taken_from_the_first_folder_that_has_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "in-a").touch()
    reader = LayerReader((tmp_path / "a", tmp_path / "b"), is_ini=True)
    reader.set_option("model", "in-a", "f:1")
    reader.set_option("mmproj", "in-none", "f:1")
    assert reader.layer().fields == {"model": tmp_path / "a" / "in-a", "mmproj": tmp_path / "b" / "in-none"}


# --- layers ---


def test_a_layer_above_replaces_value_by_value_and_argument_by_argument():
    below = Layer(
        {"ctx_size": 1, "aliases": ("a",), "env": {"A": "1", "B": "1"}},
        {"jinja": ("--jinja",), "temperature": ("--temperature", "1")},
        origin="below",
    )
    above = Layer(
        {"aliases": ("b",), "env": {"B": "2"}},
        {"temperature": ("--temperature", "2")},
        ("p",),
        ("w",),
        "above",
    )
    assert merge([below, above]) == Layer(
        {"ctx_size": 1, "aliases": ("b",), "env": {"A": "1", "B": "2"}},
        {"jinja": ("--jinja",), "temperature": ("--temperature", "2")},
        ("p",),
        ("w",),
        "above",
    )


def test_a_switch_can_be_taken_back_above():
    merged = merge([ini(metrics="1"), ini(metrics="0")])
    assert [token for tokens in merged.args.values() for token in tokens] == []


def test_naming_another_file_above_takes_back_the_repository_below():
    repo, file = ini(hf="a/b", hff="x.gguf"), ini(m="/m.gguf")
    assert merge([repo, file]).fields["model"] == Path("/m.gguf")
    assert "hf_repo" not in merge([repo, file]).fields
    assert "hf_file" not in merge([repo, file]).fields
    assert "model" not in merge([file, repo]).fields


texts = st.text(max_size=12) | st.sampled_from(
    ["true", "0", "-1", "auto", "1,2", "a/b:Q4", "~root/x", "\0", "{}", "1e999"]
)


@settings(max_examples=300)
@given(st.sampled_from(ARGS), texts)
def test_no_value_of_any_option_is_more_than_a_problem(arg, text):
    for layer in (ini(**{arg.lstrip("-"): text}), args(arg, text)):
        for message in (*layer.problems, *layer.warnings):
            assert message.startswith("f:1: ")


@settings(max_examples=100)
@given(st.lists(st.sampled_from(ARGS) | texts, max_size=8))
def test_no_command_line_is_more_than_a_problem(tokens):
    for message in args(*tokens).problems:
        assert message.startswith("f:1: ")
