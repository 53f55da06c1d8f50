"""The fields of a form, found while it arrives in whatever pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admin.form import HEAD_LIMIT, VALUE_LIMIT, FormFields
from router.errors import InvalidRequest

BOUNDARY = "----boundary7"


def part(name: str, value: bytes, more: str = "", end: bytes = b"\r\n") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + end


END = f"--{BOUNDARY}--\r\n".encode()
FILE = part("file", bytes(range(256)) * 40, '; filename="a.wav"\r\nContent-Type: audio/wav')


def found(body: bytes, *cuts: int) -> dict[str, str]:
    fields = FormFields(BOUNDARY, ("model", "stream"))
    last = 0
    for cut in (*sorted(cuts), len(body)):
        fields.feed(body[last:cut])
        last = cut
    assert fields.is_over
    return fields.found


@pytest.mark.parametrize(
    "body",
    [
        part("model", b"tiny") + FILE + END,
        FILE + part("model", b"tiny") + END,
        b"preamble\r\n" + part("model", b"tiny") + END,
    ],
    ids=["before the file", "behind the file", "after a preamble"],
)
def test_a_field_is_found_wherever_it_stands(body: bytes):
    assert found(body) == {"model": "tiny"}


@given(st.lists(st.integers(0, 12_000), max_size=12), st.booleans())
def test_it_is_found_in_whatever_pieces_the_form_comes(cuts: list[int], first: bool):
    model = part("model", b"org/tiny:Q4")
    body = (model + FILE if first else FILE + model) + part("stream", b"true") + END
    assert found(body, *cuts) == {"model": "org/tiny:Q4", "stream": "true"}


def test_a_file_that_looks_like_a_field_is_none():
    inside = f'\r\nContent-Disposition: form-data; name="model"\r\n\r\nwrong\r\n--{BOUNDARY}x\r\n'.encode()
    body = part("file", inside, '; filename="form.txt"') + part("model", b"tiny") + END
    assert found(body) == {"model": "tiny"}
    assert found(part("model", b"wrong", '; filename="model"') + part("model", b"tiny") + END) == {
        "model": "tiny"
    }


def test_of_two_the_first_counts_and_an_empty_one_is_empty():
    assert found(part("model", b"one") + part("model", b"two") + END) == {"model": "one"}
    assert found(part("model", b"") + END) == {"model": ""}


def test_a_quoted_boundary_and_a_name_in_other_case_are_understood():
    fields = FormFields.of(f'multipart/form-data; boundary="{BOUNDARY}"', ("model",))
    fields.feed(part("model", b"tiny").replace(b"Content-Disposition", b"content-disposition") + END)
    assert fields.found == {"model": "tiny"}


@pytest.mark.parametrize("boundary", ["", "x" * 71, "a\tb"])
def test_a_form_without_a_usable_boundary_is_refused(boundary: str):
    with pytest.raises(InvalidRequest, match="boundary"):
        FormFields.of(f'multipart/form-data; boundary="{boundary}"', ("model",))


@pytest.mark.parametrize(
    "body",
    [
        part("model", b"x" * (VALUE_LIMIT + 100)),
        part("model", b"\xff\xfe") + END,
        f"--{BOUNDARY}\r\nX: ".encode() + b"y" * (HEAD_LIMIT + 1),
        f"--{BOUNDARY}".encode() + b" " * (HEAD_LIMIT + 1),
    ],
    ids=["a name without end", "not UTF-8", "headers without end", "a delimiter without end"],
)
def test_what_holds_memory_or_has_no_text_is_refused(body: bytes):
    with pytest.raises(InvalidRequest):
        FormFields(BOUNDARY, ("model",)).feed(body)


def test_of_a_file_nothing_is_held():
    fields = FormFields(BOUNDARY, ("model",))
    fields.feed(part("file", b"", '; filename="a.wav"', end=b""))
    for _ in range(100):
        fields.feed(b"\r\n--" + b"x" * (1 << 16))
        assert len(fields._held) < 100


@pytest.mark.parametrize(
    "disposition",
    [
        "Content-Disposition: form-data; name=model",
        "Content-Disposition: form-data;name=model",
        "CONTENT-DISPOSITION: FORM-DATA; NAME=model",
        'content-disposition:form-data ; name = "model" ',
        'Content-Disposition : form-data; name="model"',
        'Content-Disposition: form-data; x=1; name="model"; y=2',
        'Content-Disposition: form-data; x="; name=file; "; name=model',
        'Content-Disposition: form-data; name="mo\\del"',
        "Content-Disposition: form-data;; name=model;",
        "Content-Disposition: form-data;\r\n\tname=model",
        "Content-Disposition: form-data; name*=UTF-8''mod%65l",
        "Content-Disposition: form-data; name*=utf-8'en'model; x*=UTF-8''y",
        "Content-Type: text/plain\r\nContent-Disposition: form-data; name=model\r\nX-More: name=other",
    ],
)
def test_a_name_is_found_however_it_is_written(disposition: str):
    body = f"--{BOUNDARY}\r\n{disposition}\r\n\r\ntiny\r\n".encode() + END
    assert found(body) == {"model": "tiny"}


@pytest.mark.parametrize(
    "disposition",
    [
        "Content-Disposition: form-data; name=model; filename=a.wav",
        "Content-Disposition: form-data; filename=a.wav; name=model",
        "Content-Disposition: form-data; FileName*=UTF-8''a.wav; name=model",
        'Content-Disposition: form-data; x="; name=model"',
        'Content-Disposition: form-data; xname="model"',
        'Content-Disposition: form-data; x="\\"; name=model"',
        "Content-Disposition: attachment; name=model",
        "Content-Disposition: form-data-x; name=model",
        "X-Content-Disposition: form-data; name=model",
        "Content-Disposition: form-data name=model",
    ],
)
def test_a_file_and_what_only_looks_like_a_name_are_no_field(disposition: str):
    body = f"--{BOUNDARY}\r\n{disposition}\r\n\r\nwrong\r\n".encode() + part("model", b"tiny") + END
    assert found(body) == {"model": "tiny"}


@given(st.binary(max_size=120))
def test_any_head_of_a_part_is_passed_over_in_time(head: bytes):
    fields = FormFields(BOUNDARY, ("model",))
    for data in (head, head * 130):
        fields.feed(f"--{BOUNDARY}\r\nContent-Disposition: form-data; ".encode() + data + b"\r\n\r\nx\r\n")
    fields.feed(part("model", b"tiny") + END)
