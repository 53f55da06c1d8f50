"""Traces as files: written and read back, foreign rows and journals understood, mistakes named."""

from __future__ import annotations

import json

import pytest

from router.errors import StartupError
from router.observability.journal import Journal, entry_lines
from router.scheduler.types import Acquire, Grant, Unload
from router.simulate.clients import generate
from router.simulate.trace import read_trace, write_trace
from tests.simulate.build import ask, machine, trace


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_trace_survives_the_way_through_a_file(tmp_path):
    was = generate("home", 3, 20)
    write_trace(was, tmp_path / "home.jsonl")
    now = read_trace(tmp_path / "home.jsonl", minutes=20)
    assert len(now.requests) == len(was.requests) > 50
    for one, other in zip(was.requests, now.requests, strict=True):
        assert one.timestamp - was.requests[0].timestamp == pytest.approx(
            other.timestamp - now.requests[0].timestamp
        )
        assert (one.delay, one.patience, one.cancel) == pytest.approx(
            (other.delay, other.patience, other.cancel)
        )
        for name in (
            "id",
            "client",
            "model",
            "input_length",
            "output_length",
            "kind",
            "after",
            "session",
        ):
            assert getattr(one, name) == getattr(other, name)
    assert [(d.id, d.total, d.margin) for d in now.machine.devices] == [
        (d.id, d.total, d.margin) for d in was.machine.devices
    ]
    assert now.machine.specs == was.machine.specs


def test_the_file_has_the_field_names_and_milliseconds_of_mooncake(tmp_path):
    on = machine(a=6)
    write_trace(trace(on, ask(0, "a", 1.5, session="s"), ask(1, "a", 13, after=0, delay=2)), tmp_path / "t")
    first, second = [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()][-2:]
    assert first == {
        "timestamp": 1500.0, "input_length": 1000, "output_length": 100, "model": "a", "client": "c0",
        "id": 0, "session_id": "s",
    }  # fmt: skip
    assert (second["after"], second["delay"]) == (0, 2000.0)


def test_mooncake_rows_are_read_and_a_session_follows_itself(tmp_path):
    path = write(
        tmp_path / "mooncake.jsonl",
        {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]},
        {"session_id": "s", "timestamp": 30000, "input_length": 10, "output_length": 5, "model": "chat-8b"},
        {"session_id": "s", "delay": 500, "input_length": 30, "output_length": 5, "model": "chat-8b"},
    )
    first, second, third = read_trace(path).requests
    assert (first.timestamp, first.input_length, first.output_length) == (0.0, 6955, 52)
    assert second.timestamp == pytest.approx(2.518)
    assert first.after is second.after is None
    assert (third.after, third.delay, third.client) == (1, 0.5, "s")


def test_an_answer_of_a_journal_lasts_as_long_in_the_replay(tmp_path):
    path = write(
        tmp_path / "journal.jsonl",
        {"device": "cuda:0", "gib": 24, "margin_gib": 1},
        {"model": "qwen", "gib": 6, "slots": 2, "load_seconds": 0.7},
        {"now": 0.0, "event": "Acquire", "model": "qwen", "lease": "long"},
        {"now": 1.0, "event": "Grant", "lease": "long", "instance": "qwen#1"},
        {"now": 2.0, "event": "Acquire", "model": "qwen", "lease": "short"},
        {"now": 2.0, "event": "Grant", "lease": "short", "instance": "qwen#1"},
        {"now": 2.02, "event": "Release", "lease": "short"},
        {"now": 13.0, "event": "Release", "lease": "long"},
    )
    read = read_trace(path)
    spec = read.machine.spec("qwen")
    assert (spec.slots, read.machine.load_seconds(spec)) == (2, 0.7)
    for request, seconds in zip(read.requests, (12.0, 0.02), strict=True):
        took = spec.prefill_seconds(request.input_length) + spec.decode_seconds(request.output_length)
        assert took == pytest.approx(seconds, abs=1.1 / spec.decode_rate)


def test_a_client_of_a_journal_that_gave_up_is_as_patient_in_the_replay(tmp_path):
    path = write(
        tmp_path / "journal.jsonl",
        {"now": 1.0, "event": "Acquire", "model": "qwen", "lease": "l1"},
        {"now": 6.0, "event": "Release", "lease": "l1"},
    )
    (request,) = read_trace(path).requests
    assert request.patience == 5.0


def test_what_a_router_could_never_load_is_not_replayed(tmp_path):
    path = write(
        tmp_path / "journal.jsonl",
        {"now": 1.0, "event": "Acquire", "model": "huge", "lease": "l1"},
        {"now": 1.0, "event": "Refuse", "lease": "l1", "code": "model_too_large"},
        {"now": 2.0, "event": "Acquire", "model": "qwen", "lease": "l2"},
        {"now": 2.0, "event": "Refuse", "lease": "l2", "code": "no_room"},
    )
    assert [request.client for request in read_trace(path).requests] == ["l2"]


def test_a_model_that_fits_no_machine_of_the_file_is_named(tmp_path):
    path = write(
        tmp_path / "t", {"device": "d", "gib": 4}, {"model": "m", "gib": 8}, {"timestamp": 0, "model": "m"}
    )
    with pytest.raises(StartupError, match=r"m \(8.0 GiB\) fits no placement"):
        read_trace(path)


def test_requests_that_a_journal_has_no_end_of_are_as_long_as_their_size_says(tmp_path):
    path = write(
        tmp_path / "journal.jsonl",
        {"now": 1000.0, "event": "Acquire", "model": "qwen", "lease": "l1", "size": 64, "priority": "high"},
        {"now": 1000.1, "event": "Grant", "lease": "l1", "instance": "qwen#1"},
        {"now": 1002.5, "event": "Acquire", "model": "qwen", "lease": "l2", "size": None},
        {"now": 1004.0, "event": "Acquire", "model": "gemma", "lease": "l3"},
    )
    requests = read_trace(path).requests
    assert [(r.timestamp, r.client, r.output_length) for r in requests] == [
        (0.0, "l1", 64),
        (2.5, "l2", 250),
        (4.0, "l3", 250),
    ]


def test_what_the_router_journals_is_what_is_read(tmp_path):
    journal = Journal()
    journal.record(5.0, Acquire("l1", "qwen", size=64.0), [Grant("l1", "qwen#1")])
    journal.record(6.0, Unload("qwen"), [])
    rows = [line for entry in journal.complete() for line in entry_lines(entry)]
    (request,) = read_trace(write(tmp_path / "journal.jsonl", *rows)).requests
    assert (request.client, request.output_length, request.kind) == ("l1", 64, "journal")


def test_unknown_models_play_the_parts_of_the_machine_by_popularity(tmp_path):
    rows = [{"now": n, "event": "Acquire", "model": m, "lease": str(n)} for n, m in enumerate("xyyxyz")]
    read = read_trace(write(tmp_path / "j", *rows))
    parts = [spec.name for spec in read.machine.specs]
    assert [r.model for r in read.requests] == [parts[{"y": 0, "x": 1, "z": 2}[m]] for m in "xyyxyz"]


def test_known_models_keep_their_names_and_their_place(tmp_path):
    path = write(
        tmp_path / "t",
        {"timestamp": 0, "model": "chat-8b"},
        {"timestamp": 1, "model": "mine"},
    )
    assert [r.model for r in read_trace(path).requests] == ["chat-8b", "coder-14b"]


def test_a_file_may_bring_its_own_machine(tmp_path):
    path = write(
        tmp_path / "t",
        {"device": "big", "gib": 48},
        {"model": "mine", "gib": 30, "slots": 2},
        {"timestamp": 0, "model": "mine"},
    )
    read = read_trace(path)
    assert [d.id for d in read.machine.devices] == ["sim/big"]
    assert (read.machine.spec("mine").slots, read.requests[0].model) == (2, "mine")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no requests"),
        ('{"timestamp": 0}\nnot json\n', r":2: JSON is malformed"),
        ("[1, 2]\n", r":1: expected a JSON object"),
        ('{"timestamp": 0, "colour": "red"}\n', r":1: Object contains unknown field `colour`"),
        ('{"timestamp": 0, "after": 0}\n', r":1: follows request 0, which does not stand before it"),
        ('{"timestamp": 0, "id": 4}\n', r":1: id 4, but this is request 0"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_why(tmp_path, text, complaint):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(StartupError, match=complaint):
        read_trace(tmp_path / "bad.jsonl")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(StartupError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none")


def test_minutes_bound_what_is_sent_of_a_file(tmp_path):
    path = write(tmp_path / "t", {"timestamp": 0}, {"timestamp": 90_000})
    assert read_trace(path, minutes=1).seconds == 60
    assert read_trace(path).seconds == pytest.approx(91)


def test_what_an_editor_made_of_a_file_is_read_or_told(tmp_path):
    text = '{"timestamp": 0, "model": "a\u2028b"}\n{"timestamp": 1}\n'
    path = tmp_path / "t"
    path.write_bytes("\ufeff".encode() + text.replace("\n", "\r\n").encode() + b"\0")
    assert len(read_trace(path).requests) == 2
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(StartupError, match=r"t: is UTF-16 text; save it as UTF-8"):
        read_trace(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"device": "d", "gib": 1e308}',
        '{"device": "d", "gib": -4}',
        '{"device": "d", "gib": 8, "margin_gib": -1}',
        '{"model": "a", "gib": 0}',
        '{"model": "a", "gib": 1, "slots": 0}',
        '{"model": "a", "gib": 1, "decode_rate": 0}',
        '{"model": "a", "gib": 1, "load_seconds": -3}',
        "[" * 100_000,
    ],
)
def test_a_machine_that_cannot_be_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "t"
    path.write_text(f'{line}\n{{"timestamp": 0, "model": "a"}}\n')
    with pytest.raises(StartupError, match="t:1: "):
        read_trace(path)
