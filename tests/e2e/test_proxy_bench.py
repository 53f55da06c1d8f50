"""`bench/proxy` for moments, with tiny numbers: that each row is measured and shown, never how fast."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import proxy_bounds, proxy_rows
from bench.proxy import main
from bench.proxy_bounds import Failed
from bench.proxy_contestants import Contestant, Direct, Naive, Setting
from bench.proxy_rows import METRICS, ROWS, Metric, Options, Step, Values
from bench.proxy_table import Results, render

pytestmark = pytest.mark.e2e


def test_every_row_is_measured_of_ours_beside_no_proxy_and_a_naive_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_rows, "BIG_BYTES", 1 << 20)
    wanted = ["rate", "chunks", "first", "memory", "slow"]
    arguments = ["--seconds", "0.2", "--rounds", "1", "--only", ",".join(wanted), "--slow-readers", "20"]
    arguments += ["--contestants", "direct,ours,aiohttp", "--json", str(tmp_path / "figures.json")]
    assert main(arguments) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["failed"] == {}
    by_key = {row["key"]: row["values"] for row in figures["rows"]}
    assert set(by_key) == {metric.key for metric in METRICS}
    everybody = dict.fromkeys(("direct", "ours", "aiohttp"), 1)
    for key, values in by_key.items():
        assert {name: len(own) for name, own in values.items()} == everybody, key
    assert all(value > 0 for name in ("direct", "ours", "aiohttp") for value in by_key["rate_16"][name])
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["direct", "ours", "aiohttp"]
    assert any(line.startswith("requests per second, 64 connections") for line in table)
    assert any(line.strip().startswith("x ours") for line in table)


def test_a_swap_is_measured_with_the_real_llama_server(tmp_path: Path) -> None:
    arguments = [
        "--rounds",
        "1",
        "--only",
        "swap",
        "--contestants",
        "ours",
        "--json",
        str(tmp_path / "f.json"),
    ]
    assert main(arguments) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["failed"] == {}
    cold, swap, seen = (
        next(row["values"]["ours"][0] for row in figures["rows"] if row["key"] == key)
        for key in ("cold", "swap", "seen")
    )
    assert cold > 0
    assert swap > 0
    assert abs(seen) < cold


def test_what_is_added_is_over_the_same_round_without_a_proxy() -> None:
    added = Metric("late", "added", "us", is_added=True)
    results = Results(["direct", "nginx", "ours"], [added], {})
    rounds = ((10.0, 30.0, 50.0), (100.0, 120.0, 180.0), (10.0, 25.0, 50.0))
    for number, (direct, nginx, ours) in enumerate(rounds):
        for name, value in (("direct", direct), ("nginx", nginx), ("ours", ours)):
            results.note(name, {"late": value}, number)
    assert results.values("nginx", added) == [20.0, 20.0, 15.0]
    assert results.values("ours", added) == [40.0, 80.0, 40.0]
    first, of_nginx, of_ours, *_ = (line.split() for line in render(results).splitlines()[1:])
    assert first == ["added", "(us)", "(10.0", "±45.0)", "20.0", "±2.5", "40.0", "±20.0"]
    assert of_nginx == ["x", "nginx", "2.00"]
    assert of_ours == ["x", "ours", "0.50"]


def test_who_is_absent_or_fails_is_named_below_the_table() -> None:
    results = Results(["ours"], [], {}, {"nginx": "apt-get install nginx-light"})
    results.fail("ours", "slow", "no stream")
    assert "absent: nginx: apt-get install nginx-light" in render(results)
    assert "failed: ours, slow: no stream" in render(results)


def test_a_round_that_failed_is_left_out_of_what_is_added_and_of_nothing_else() -> None:
    added = Metric("late", "added", "us", is_added=True)
    results = Results(["direct", "nginx"], [added], {})
    for number, direct in enumerate((10.0, 100.0, 1000.0)):
        results.note("direct", {"late": direct}, number)
    results.note("nginx", {"late": 15.0}, 0)
    results.fail("nginx", "late, round 2", "only 3/4 began", ["late"], "3/4 began")
    results.note("nginx", {"late": 1007.0}, 2)
    assert results.values("nginx", added) == [5.0, 7.0]
    assert "6.0 ±1.0" in render(results)
    assert "failed: nginx, late, round 2: only 3/4 began" in render(results)


def test_who_has_no_figure_has_a_cell_that_says_why_and_one_round_has_no_spread() -> None:
    metric = Metric("rate", "requests", "")
    results = Results(["nginx", "ours"], [metric], {}, logging=["ours"])
    results.fail("nginx", "rate, round 1", "only 3/4 began", ["rate"], "3/4 began")
    assert render(results).splitlines()[1].split() == ["requests", "no:", "3/4", "began", "-"]
    results.note("ours", {"rate": 7.0}, 0)
    assert render(results).splitlines()[1].split() == ["requests", "no:", "3/4", "began", "7.0"]
    assert "a line is logged for each request by ours, by no others" in render(results)


class Silent(Contestant):
    """It takes every connection, as the kernel does for it, and answers none."""

    name = "silent"

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.socket = socket.create_server(("127.0.0.1", self.port), backlog=64)

    def stop(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.socket.close()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Silent]:
    contestant = Silent(Setting(folder=tmp_path, server=tmp_path, models=()))
    with contestant.running():
        yield contestant


def test_streams_of_which_none_begins_are_given_up_soon(silent: Silent) -> None:
    begun = time.monotonic()
    with pytest.raises(Failed, match="0/64 began") as caught:
        ROWS["chunks"][0].measure(silent, Options(seconds=0.1, stall_seconds=0.2))
    assert time.monotonic() - begun < Options().stall_seconds
    assert (caught.value.short, caught.value.is_final) == ("0/64 began", False)


def test_slow_readers_of_whom_none_gets_anything_are_given_up_soon(silent: Silent) -> None:
    with pytest.raises(Failed, match="only 0/8 began in time"):
        ROWS["slow"][0].measure(silent, Options(seconds=0.1, slow_readers=8, stall_seconds=0.2))


@pytest.mark.parametrize("name", ["chunks", "slow"])
def test_who_lets_nobody_in_any_more_is_given_up_soon(silent: Silent, name: str) -> None:
    options = Options(seconds=0.1, slow_readers=70, stall_seconds=0.2)
    with pytest.raises(Failed, match="0/64 began"):
        ROWS["chunks"][0].measure(silent, options)
    with pytest.raises(Failed, match="only [0-9]+ connected in time"):
        ROWS[name][-1].measure(silent, options)


def test_a_big_answer_that_does_not_come_is_given_up(silent: Silent) -> None:
    with pytest.raises(Failed, match="0 MiB came"):
        ROWS["memory"][0].measure(silent, Options(seconds=0.1, deadline_seconds=0.5))


@pytest.mark.parametrize("name", ["rate", "first"])
def test_who_answers_nothing_says_so(silent: Silent, name: str) -> None:
    with pytest.raises(Failed) as caught:
        ROWS[name][0].measure(silent, Options(seconds=0.2))
    assert caught.value.short == "no answer"


def test_who_has_died_is_not_waited_for(silent: Silent) -> None:
    assert silent.process is not None
    silent.process.kill()
    silent.process.wait()
    begun = time.monotonic()
    with pytest.raises(Failed) as caught:
        ROWS["chunks"][0].measure(silent, Options(seconds=0.1))
    assert caught.value.short == "has died"
    assert time.monotonic() - begun < Options().stall_seconds


def test_who_takes_too_much_memory_is_stopped_and_not_asked_again_but_for_another_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proxy_bounds, "MEMORY_LIMIT_MIB", 1024)
    pids: dict[str, set[int]] = {"direct": set(), "aiohttp": set()}
    asked = []

    def first(contestant: Contestant, _: Options) -> Values:
        pids[contestant.name] |= set(contestant.pids())
        return {"first_p50": 1.0}

    def memory(contestant: Contestant, options: Options) -> Values:
        asked.append(contestant.name)
        with monkeypatch.context() as patch, contextlib.suppress(KeyError):
            patch.setattr(proxy_bounds, "MEMORY_LIMIT_MIB", {"aiohttp": 1}[contestant.name])
            proxy_bounds.check(contestant)
        return {"rss_big": 1.0}

    monkeypatch.setitem(ROWS, "memory", (Step("memory", ("rss_big",), memory),))
    monkeypatch.setitem(ROWS, "first", (Step("first", ("first_p50",), first),))
    arguments = ["--rounds", "3", "--only", "memory,first", "--contestants", "direct,aiohttp"]
    assert main([*arguments, "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert [row["values"] for row in figures["rows"] if row["key"] in ("rss_big", "first_p50")] == [
        {"direct": [1.0] * 3, "aiohttp": [0.0] * 3},
        {"direct": [1.0] * 3},
    ]
    assert sorted(asked) == ["aiohttp", "direct", "direct", "direct"]
    assert (len(pids["direct"]), len(pids["aiohttp"])) == (1, 2)
    said = capsys.readouterr()
    assert "no: over 0 GiB" in said.out
    assert "aiohttp, memory, round 1: it had taken" in said.err


def test_an_interrupted_run_prints_what_it_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def first(contestant: Contestant, _: Options) -> Values:
        if contestant.name == Naive.name:
            raise KeyboardInterrupt
        return {"first_p50": 4711.0}

    monkeypatch.setitem(ROWS, "first", (Step("first", ("first_p50",), first),))
    arguments = ["--only", "first", "--contestants", f"{Direct.name},{Naive.name}"]
    assert main(arguments) == 130
    said = capsys.readouterr()
    assert "(4,711)" in said.out
    assert "interrupted in round 1 of 3, first" in said.out
    assert "round 1 of 3, first" in said.err


def test_without_the_right_to_it_real_time_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert main(["--real-time"]) == 2
    assert "no right to it" in capsys.readouterr().err
