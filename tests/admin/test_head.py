"""What the router reads of a request, and what it says when it cannot."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from router.admin.head import Head, keep_alive_seconds, read_head
from router.errors import InvalidRequest
from router.scheduler.types import Priority


def head(body: object, path: str = "/v1/chat/completions", **headers: str) -> Head:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return read_head(make_mocked_request("POST", path, headers=named), raw)


def test_only_the_head_is_read_and_the_rest_is_not_judged():
    body = {"model": "qwen", "stream": True, "max_tokens": 64, "messages": [{"nested": [None] * 9}], "n": "?"}
    assert head(body) == Head("qwen", stream=True, size=64.0)


def test_without_limits_nothing_is_assumed():
    assert head({"model": "qwen"}) == Head("qwen")
    assert head({"model": "qwen", "max_tokens": None, "n_predict": -1}).size is None


def test_the_limit_of_the_answer_is_known_by_its_three_names():
    assert head({"model": "m", "max_tokens": 7}).size == 7
    assert head({"model": "m", "n_predict": 8}).size == 8
    assert head({"model": "m", "max_completion_tokens": 9, "max_tokens": 7}).size == 9


def test_a_wrong_type_in_what_only_predicts_is_left_to_the_child():
    assert head({"model": "m", "max_tokens": "many", "stream": "yes"}) == Head("m")


def test_priority_and_keep_alive_come_by_header_too():
    read = head({"model": "m"}, X_Router_Priority="High", X_Router_Keep_Alive="5m")
    assert (read.priority, read.keep_alive) == (Priority.HIGH, 300.0)


def test_the_body_has_precedence_over_the_header():
    assert head({"model": "m", "keep_alive": 0}, X_Router_Keep_Alive="5m").keep_alive == 0.0


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": None}])
def test_a_request_may_name_no_model(body):
    assert head(body).model is None
    assert head(body, "/v1/embeddings?model=").model is None


def test_the_model_may_stand_in_the_query():
    assert head({"input": "x"}, "/v1/embeddings?model=bge").model == "bge"
    assert head([{"id": 0}], "/lora-adapters?model=bge").model == "bge"
    assert head({"model": "body"}, "/v1/embeddings?model=query").model == "body"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (300, 300.0),
        (0, 0.0),
        (-1, -1.0),
        (1.5, 1.5),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h0m30s", 3630.0),
        ("90s", 90.0),
        ("1.5h", 5400.0),
        (" 10M ", 600.0),
        ("-1", -1.0),
        ("-1m", -60.0),
        ("0", 0.0),
        ("42", 42.0),
    ],
)
def test_keep_alive_is_understood_in_all_its_forms(value: object, seconds: float):
    assert keep_alive_seconds(value) == seconds


@pytest.mark.parametrize(
    "value", ["soon", "", "5 minutes", "5m3h", "nan", "inf", "1e999", True, [5], {"m": 5}]
)
def test_a_wrong_keep_alive_is_answered_with_what_is_accepted(value: object):
    with pytest.raises(InvalidRequest, match="keep_alive takes seconds") as refused:
        keep_alive_seconds(value)
    assert json.dumps(value) in refused.value.message.replace('":', '": ')


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty"),
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"model":"\xff"}', "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        ({"model": 7}, "model is a string, not 7"),
        ({"model": ["a"]}, 'model is a string, not ["a"]'),
    ],
)
def test_a_wrong_body_is_answered_with_what_is_wrong(body: object, says: str):
    with pytest.raises(InvalidRequest, match=re.escape(says)):
        head(body)


def test_a_form_is_told_what_to_send_instead():
    with pytest.raises(
        InvalidRequest, match="send a JSON object as application/json, not multipart/form-data"
    ):
        head(b"--x\r\n", Content_Type="multipart/form-data; boundary=x")


def test_json_is_accepted_under_a_wrong_name_as_llama_server_does():
    assert head({"model": "m"}, Content_Type="application/x-www-form-urlencoded").model == "m"


@pytest.mark.parametrize(
    "value",
    [10**9 + 1, -(10**9) - 1, 1e9 + 0.5, 1e308, 10**320, -(10**400), 10**4299, "9" * 320, "9" * 320 + "h",
     "-" + "9" * 320 + "m", "1" + "0" * 10 + "s", "1e10", "-1e10", "300000h", "1_000", "\u0663", "infinity",
     "--5m", "+-5m", "-+5", "-"],
)  # fmt: skip
def test_a_keep_alive_out_of_bounds_is_refused_with_the_bound(value: object):
    with pytest.raises(InvalidRequest, match=r"at most 1000000000 s \(31 years\)") as refused:
        keep_alive_seconds(value)
    assert len(refused.value.message) < 300, "and not all of the number is said again"


@pytest.mark.parametrize("value", [10**9, -(10**9), "1e9", "277777h", ".5", "+5", "1.", "1E2"])
def test_a_keep_alive_within_the_bound_is_finite(value: object):
    assert abs(keep_alive_seconds(value)) <= 1e9


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize("value", [2**64, -(2**64), 1e20, -1e308, 10**400, -(10**400), 10**4299])
def test_a_number_of_tokens_beyond_64_bits_is_refused_with_the_bound(name: str, value: object):
    for body in ({"model": "m", name: value}, {"model": "m", "max_tokens": 1} | {name: value}):
        with pytest.raises(InvalidRequest, match=f"{name} is at most 18446744073709551615"):
            head(body)


def test_the_largest_number_of_tokens_is_one_that_clients_send_for_no_limit():
    assert head({"model": "m", "max_tokens": 2**63 - 1}).size == 2.0**63
    assert head({"model": "m", "n_predict": 2**64 - 1}).size == 2.0**64
    assert head({"model": "m", "n_predict": -(2**63)}).size is None


@pytest.mark.parametrize("name", ["keep_alive", "max_tokens", "n_predict"])
@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" + "0" * 5000])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings?model=bge"])
def test_a_number_that_no_float_holds_is_refused_wherever_the_model_stands(name: str, number: str, path: str):
    body = b'{"model":"m","%b":%b}' % (name.encode(), number.encode())
    with pytest.raises(InvalidRequest, match="keep_alive is at most 1000000000 s"):
        head(body, path)


def test_what_is_shown_of_a_wrong_value_is_short_whatever_it_is():
    deep: object = 1
    for _ in range(900):
        deep = [deep]
    for value in (deep, "x" * 9999, {"a": ["b"] * 999}, "\udcff"):
        for body in ({"model": "m", "keep_alive": value}, {"model": [value]}):
            with pytest.raises(InvalidRequest) as refused:
                read_head(make_mocked_request("POST", "/v1/embeddings"), msgspec.json.encode(body)) if (
                    value != "\udcff"
                ) else keep_alive_seconds(value)
            assert len(refused.value.message.encode()) < 300


def test_a_wrong_priority_names_the_right_ones():
    with pytest.raises(InvalidRequest, match="one of high, normal, low, not 'urgent'"):
        head({"model": "m"}, X_Router_Priority="urgent")
