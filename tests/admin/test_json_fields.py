"""What is found of a large body while it comes in, against a parser that has all of it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.admin import json_fields
from router.admin.head import HEAD_FIELDS, _Body
from router.admin.json_fields import DEEPEST, LONGEST_VALUE_BYTES, SMALL_BYTES, JsonFields
from router.proxy import Body

decoder = msgspec.json.Decoder(_Body)

NAMES = [*sorted(HEAD_FIELDS), "messages", "", "mode", "models", 'mo"del', "x\\"]


class Pairs(list[Any]):
    """An object in which a name may stand twice."""


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(['"model":"no"', "\\", '\\"', "{[", "]}", "ü\u2028😀"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(st.sampled_from(NAMES), inner), max_size=3).map(Pairs)
    ),
    max_leaves=12,
)


def write(value: Any, draw: Any) -> str:
    """As JSON, with blanks and escapes where there may be some."""
    blank = draw(st.sampled_from(["", "", "", " ", "\n\t"]))
    match value:
        case Pairs():
            inner = ",".join(f"{blank}{text(k, draw)}{blank}:{write(v, draw)}" for k, v in value)
            return blank + "{" + inner + blank + "}" + blank
        case list():
            return blank + "[" + ",".join(write(v, draw) for v in value) + blank + "]" + blank
        case str():
            return blank + text(value, draw) + blank
        case _:
            return blank + json.dumps(value) + blank


def text(value: str, draw: Any) -> str:
    match draw(st.integers(0, 3)):
        case 0:
            units = value.encode("utf-16-be", "surrogatepass")
            escaped = (f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
            return '"' + "".join(escaped) + '"'
        case 1:
            return json.dumps(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


@st.composite
def bodies(draw: Any) -> bytes:
    pairs = draw(st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=7))
    return write(Pairs(pairs), draw).encode()


def found_in(pieces: list[bytes]) -> bytes:
    fields, body = JsonFields(HEAD_FIELDS), Body()
    for piece in pieces:
        body.add(piece)
        fields.feed(piece)
    return fields.text(body)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(json_fields, "SMALL_BYTES", -1)


@settings(max_examples=300, deadline=None)
@given(bodies(), st.lists(st.integers(0, 1 << 16), max_size=6))
def test_the_same_is_found_as_by_a_parser_wherever_the_pieces_end(data: bytes, places: list[int]):
    assert decoder.decode(found_in(cut(data, places))) == decoder.decode(data)


@settings(max_examples=100, deadline=None)
@given(bodies())
def test_nor_does_it_matter_that_every_byte_comes_alone(data: bytes):
    assert decoder.decode(found_in([bytes([byte]) for byte in data])) == decoder.decode(data)


@settings(max_examples=200, deadline=None)
@given(bodies(), st.data())
def test_a_body_with_an_error_is_found_the_same_or_left_to_who_parses_it(data: bytes, draw: st.DataObject):
    at = draw.draw(st.integers(0, len(data) - 1))
    broken = (
        data[:at]
        + draw.draw(st.sampled_from([b"", b'"', b"}", b"]", b"{", b",", b":", b"\\", b"x"]))
        + data[at + 1 :]
    )
    found = found_in(cut(broken, [at, at + 1]))
    try:
        whole = decoder.decode(broken)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # what is wrong inside a value is for the child to say
    assert decoder.decode(found) == whole


@pytest.mark.parametrize(
    "data",
    [b"", b"[1,2]", b'"model"', b'{"model":"m"', b'{"model":"m"} x', b'{"model" "m"}', b'{"a":1,}', b"{,}",
     b'{"a":12"b"}'],
)  # fmt: skip
def test_what_is_no_object_on_the_outside_is_left_to_the_parser(data: bytes):
    assert found_in([data]) == data


def test_an_image_is_neither_kept_nor_copied(monkeypatch):
    image = b"A" * (8 << 20)
    data = b'{"messages":[{"content":[{"image_url":{"url":"data:' + image + b'"}}]}],"model":"m"}'
    pieces = [data[i : i + 65_536] for i in range(0, len(data), 65_536)]
    assert found_in(pieces) == b'{"model":"m"}'


def test_a_small_body_is_given_back_as_it_is(monkeypatch):
    monkeypatch.setattr(json_fields, "SMALL_BYTES", SMALL_BYTES)
    data = b'{"messages":[],"model":"m"}'
    assert found_in([data[:9], data[9:]]) == data


def test_a_body_without_end_inwards_is_left_to_the_parser():
    data = b'{"messages":' + b"[" * (DEEPEST + 2) + b"]" * (DEEPEST + 2) + b',"model":"m"}'
    assert found_in([data]) == data


def test_a_value_longer_than_any_sane_one_is_left_to_the_parser():
    data = b'{"model":"' + b"m" * (LONGEST_VALUE_BYTES + 1) + b'"}'
    assert found_in([data]) == data
