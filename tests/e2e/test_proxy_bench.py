"""`bench/proxy` for moments, with tiny numbers: that each row is measured and shown, never how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import proxy_rows
from bench.proxy import main
from bench.proxy_rows import METRICS, Metric
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
    for direct, nginx, ours in ((10.0, 30.0, 50.0), (100.0, 120.0, 180.0), (10.0, 25.0, 50.0)):
        for name, value in (("direct", direct), ("nginx", nginx), ("ours", ours)):
            results.note(name, {"late": value})
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
