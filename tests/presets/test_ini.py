"""llama.cpp's INI presets are read as they are, without the traps of llama.cpp's own reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.presets.ini import parse_ini


def entries(text: str) -> dict[str, dict[str, str]]:
    parsed = parse_ini(text)
    assert not parsed.problems
    assert not any(section.problems for section in parsed.sections.values())
    return {
        name: {entry.key: entry.value for entry in section.entries}
        for name, section in parsed.sections.items()
    }


def test_a_file_of_llama_cpp_is_read():
    assert entries(
        "version = 1\n\n; all models\n[*]\nctx-size = 4096\n\n"
        "# one\n[ggml-org/gemma:Q4_0]\nmodel=/a b.gguf\nngl =\n"
    ) == {"*": {"ctx-size": "4096"}, "ggml-org/gemma:Q4_0": {"model": "/a b.gguf", "ngl": ""}}


def test_a_comment_begins_only_after_a_blank():
    assert entries("[a]\nx = /m/c#1.gguf\ny = a;b ; c\nz = 1\t# d\nw = # e\n") == {
        "a": {"x": "/m/c#1.gguf", "y": "a;b", "z": "1", "w": ""}
    }


def test_json_is_kept_whole_and_may_be_followed_by_a_comment():
    assert entries(
        '[a]\nx = {"k": "a # b ; c", "n": {"m": [1]}}\ny = {"k": "# v"} # why\n'
        'z = ["a ;b"];c\nw = {broken # c\n'
    ) == {
        "a": {
            "x": '{"k": "a # b ; c", "n": {"m": [1]}}',
            "y": '{"k": "# v"}',
            "z": '["a ;b"]',
            "w": "{broken",
        }
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"/x/a.gguf"', "/x/a.gguf"),
        ("'/x/a b.gguf'", "/x/a b.gguf"),
        ('"1024"', "1024"),
        ('"1024" ; tokens', "1024"),
        ("'1024'\t# tokens", "1024"),
        ('"a ; b # c"', "a ; b # c"),
        ("'a ; b # c' ; d", "a ; b # c"),
        ('"a" ; see "b"', "a"),
        ('"it\'s"', "it's"),
        ("'say \"hi\" ; now'", 'say "hi" ; now'),
        ("'it's ; mine' ; yes, it's", "it's ; mine"),
        ('""', ""),
        ("''", ""),
        ('""twice""', '""twice""'),
        ("\"'one pair'\"", "'one pair'"),
        (r'"blk\.\d+\.ffn=CPU"', r"blk\.\d+\.ffn=CPU"),
        (r'"{\"thinking\": \"a ; b\"}"', '{"thinking": "a ; b"}'),
        ('"{"thinking": "a ; b"}"', '{"thinking": "a ; b"}'),
        ("'{\"thinking\": false}'", '{"thinking": false}'),
        ('"a ; x","b # y" ; both', '"a ; x","b # y"'),
        ('say "a ; b" ; c', 'say "a ; b"'),
        ("Bob's model ; it's his", "Bob's model"),
        ('a 27" screen ; "wide"', 'a 27" screen'),
        ('"never closed ; c', '"never closed'),
        ("'never closed # c", "'never closed"),
        ('"', '"'),
        ('"ends in a blank "', "ends in a blank "),
        ('"[not json" ; c', "[not json"),
    ],
)
def test_one_pair_of_quotes_is_no_part_of_a_value_and_no_comment_begins_inside_of_any(text, value):
    assert entries(f"[a]\nx = {text}\ny=1\n") == {"a": {"x": value, "y": "1"}}


def test_a_long_line_of_quotes_is_read_in_no_time():
    for text in ("'x" * 50_000, '"' * 50_000, '"\\' * 50_000, "' " * 50_000 + ";"):
        assert "a" in entries(f"[a]\nx = {text}\n")


def test_a_section_that_comes_again_continues():
    parsed = parse_ini("[a]\nx = 1\ny = 2\n[b]\n[a]\nx = 3\n")
    assert list(parsed.sections) == ["a", "b"]
    assert [(e.key, e.value, e.line) for e in parsed.sections["a"].entries] == [
        ("x", "1", 2), ("y", "2", 3), ("x", "3", 6),
    ]  # fmt: skip
    assert parsed.sections["a"].line == 1


def test_names_are_trimmed_and_keep_their_case():
    assert entries("[ qwen:thinking ]\n[  My Model ] ; mine\n") == {"qwen:thinking": {}, "My Model": {}}


def test_every_kind_of_line_end_is_one_line():
    parsed = parse_ini("\ufeff[a]\r\nx = 1\ry = 2\n\nz = 3")
    assert [(e.key, e.line) for e in parsed.sections["a"].entries] == [("x", 2), ("y", 3), ("z", 5)]


def test_keys_may_be_indented():
    assert entries("[a]\n    x = 1\n\ty=2\n") == {"a": {"x": "1", "y": "2"}}


def test_a_key_before_any_section_is_a_problem_and_not_a_model():
    parsed = parse_ini("version = 1\nctx-size = 1\n[a]\n")
    assert list(parsed.sections) == ["a"]
    assert list(parsed.problems) == [2]
    assert "[*]" in parsed.problems[2]


def test_a_line_that_cannot_be_understood_spoils_its_own_section_alone():
    parsed = parse_ini("[a]\nwhat\n[b]\nx = 1\n[c\ny = 2\n= 3\n[]\n")
    assert list(parsed.sections["a"].problems) == [2]
    assert list(parsed.sections["b"].problems) == [5, 7, 8]
    assert not parsed.problems


def test_very_deep_json_is_only_a_text():
    deep = "[" * 100_000
    assert entries(f"[a]\nx = {deep}\n") == {"a": {"x": deep}}


blank = st.text(" \t", max_size=2)
names = st.text(
    st.characters(exclude_characters="[]=;#\r\n", exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"]),
    min_size=1,
)
values = st.text(
    st.characters(exclude_characters="\"';#\r\n{[", exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"]),
    max_size=9,
)


@given(st.dictionaries(names, st.dictionaries(names, values)), blank, st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_is_written_is_read_again(sections, space, end):
    text = ""
    for name, settings in sections.items():
        text += f"{space}[{space}{name}{space}]{space}; c{end}{end}"
        text += "".join(f"{key}{space}={space}{value}{space} # c{end}" for key, value in settings.items())
    assert entries(text) == sections


@given(st.text(st.sampled_from('[]=;#{}"\\ \t\r\nab*:\x00\ufeff') | st.characters(), max_size=60))
def test_no_text_is_too_odd_and_every_problem_has_a_line(text):
    parsed = parse_ini(text)
    last = len(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    for problems in (parsed.problems, *(section.problems for section in parsed.sections.values())):
        assert all(1 <= line <= last for line in problems)
    for section in parsed.sections.values():
        assert section.name == section.name.strip() != ""
