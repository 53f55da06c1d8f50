"""The line of a key is found whatever stands around it."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from router.config import toml_lines

TRICKY = '''# a comment = with [things]
top = 1
[table]   # [not.this]
a = """
[not.a.table]
b = 2
"""
'quoted key' = ['x', # comment ]
  "[no]",
  { y = "}" } ]
c.d."e.f" = { g = 1, h = [ 1 ] }
lit = \'\'\'
x = 1 \'\'
\'\'\'
esc = "\\" # not a comment"

[[array]]
k = 1
[ spaced . "in \\u0041" ]
z = 2026-01-01T00:00:00Z
'''


def test_headers_keys_and_dotted_keys_have_the_line_they_begin_on():
    assert toml_lines(TRICKY) == {
        ("top",): 2,
        ("table",): 3,
        ("table", "a"): 4,
        ("table", "quoted key"): 8,
        ("table", "c"): 11,
        ("table", "c", "d"): 11,
        ("table", "c", "d", "e.f"): 11,
        ("table", "lit"): 12,
        ("table", "esc"): 15,
        ("array",): 17,
        ("array", "k"): 18,
        ("spaced", "in A"): 19,
        ("spaced", "in A", "z"): 20,
    }


def test_windows_line_ends_count_once():
    assert toml_lines("a = 1\r\n\r\nb = 2\r\n") == {("a",): 1, ("b",): 3}


def test_text_that_is_not_toml_has_no_lines():
    assert toml_lines("a = ") == {}


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(each):08x}" for each in text) + '"'


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.one_of(
    texts.map(quoted),
    st.integers(-5, 5).map(str),
    st.sampled_from(["'#'", "'''\n#'\n'''", '"""\n[x]\n"""', "[1, # x\n 2]", "{a = 1, b = '['}", "true"]),
)


@given(st.dictionaries(texts, st.dictionaries(texts, values, max_size=4), max_size=4))
def test_every_key_of_any_document_is_found_on_its_own_line(document):
    lines: list[str] = []
    expected: dict[tuple[str, ...], int] = {}
    for table, entries in document.items():
        lines.append(f"[{quoted(table)}]")
        expected[(table,)] = len("\n".join(lines).split("\n"))
        for key, value in entries.items():
            expected[(table, key)] = len("\n".join(lines).split("\n")) + 1
            lines.append(f"{quoted(key)} = {value}")
    text = "\n".join(lines)
    tomllib.loads(text)
    assert toml_lines(text) == expected
