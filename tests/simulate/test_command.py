"""`llama-router simulate` from the outside."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from router.cli.simulate import simulate
from router.simulate.clients import generate
from router.simulate.trace import write_trace


def call(*args):
    return CliRunner().invoke(simulate, args)


def test_it_prints_a_table_with_every_policy_and_every_baseline():
    result = call("--minutes", "5")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("trace home, seed 1, 5 minutes, SLO 30 s to the first token\n")
    for name in (
        "llama-router lru ",
        "llama-router cost",
        "drain-on-miss",
        "swap-when-idle (llama-swap)",
        "fifo-no-gate",
    ):
        assert name in result.output


def test_json_has_each_seed_and_the_mean():
    result = call(
        "--minutes", "5", "--seeds", "1,2", "--policy", "fifo", "--policy", "lru", "--json", "--no-best"
    )
    document = json.loads(result.output)
    assert list(document["seeds"]) == ["1", "2"]
    assert list(document["mean"]) == ["fifo (llama.cpp)", "llama-router lru"]
    sent = [rows["llama-router lru"]["sent"] for rows in document["seeds"].values()]
    assert document["mean"]["llama-router lru"]["sent"] == round(sum(sent) / 2)


def test_a_saved_trace_gives_the_same_figures_as_the_named_one(tmp_path):
    args = ("--policy", "fifo", "--json", "--no-best", "--minutes", "5")
    named = json.loads(call(*args, "--save", str(tmp_path / "t.jsonl")).output)
    saved = json.loads(call(*args, "--trace", str(tmp_path / "t.jsonl")).output)
    one, other = named["mean"]["fifo (llama.cpp)"], saved["mean"]["fifo (llama.cpp)"]
    assert one["mean_ttft"] == pytest.approx(other["mean_ttft"], rel=1e-3)
    assert (one["answered"], one["gave_up"]) == (other["answered"], other["gave_up"])


def test_a_number_of_the_scheduler_can_be_changed():
    args = ("--policy", "lru", "--json", "--no-best", "--trace", "agents", "--minutes", "20")
    usual = json.loads(call(*args).output)["mean"]
    hasty = json.loads(call(*args, "--set", "quantum=0.1", "--set", "linger=0").output)["mean"]
    assert hasty["llama-router lru"]["swaps_per_100"] > usual["llama-router lru"]["swaps_per_100"]


def test_a_journal_can_be_replayed(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(
        json.dumps({"now": 100.0 + n, "event": "Acquire", "model": "ab"[n % 2], "lease": str(n)}) + "\n"
        for n in range(6)
    ))  # fmt: skip
    document = json.loads(call("--trace", str(path), "--policy", "fifo", "--json", "--no-best").output)
    assert document["mean"]["fifo (llama.cpp)"]["answered"] == 6


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--trace", "hom"), "there is no trace 'hom'; there are home, lab, agents, bursts"),
        (("--policy", "lfu"), "Invalid value for '--policy'"),
        (("--seeds", "1;2"), "expected numbers with commas between"),
        (("--set", "quantums=1"), "'quantums' is none of models_max"),
        (("--set", "quantum=much"), "'quantum=much': not a float"),
        (("--slo", "0"), "Invalid value for '--slo'"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_what_is_possible(args, complaint):
    result = call(*args)
    assert result.exit_code == 2
    assert complaint in result.output


def test_seeds_are_not_for_files(tmp_path):
    write_trace(generate("home", 1, 5), tmp_path / "t.jsonl")
    result = call("--trace", str(tmp_path / "t.jsonl"), "--seeds", "1,2")
    assert result.exit_code == 2
    assert "--seeds is for named traces" in result.output
