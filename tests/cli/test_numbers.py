"""Numbers that no router could take are refused before one is asked."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from router.cli import cli

#: Where no router listens: only a refusal of the command line itself ends with 2.
NOWHERE = ("--url", "http://127.0.0.1:9")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e400", "1000000001", "-2e9", "5m", ""])
def test_an_idle_time_out_of_bounds_is_refused(value: str):
    ended = CliRunner().invoke(cli, ["load", "tiny", f"--ttl={value}", *NOWHERE])
    assert ended.exit_code == 2
    assert "--ttl" in ended.output


@pytest.mark.parametrize("value", ["inf", "nan", "-1", "1e400", "1000000001"])
def test_a_deadline_out_of_bounds_is_refused(value: str):
    for what in ("tiny", "--all"):
        ended = CliRunner().invoke(cli, ["unload", what, f"--deadline={value}", *NOWHERE])
        assert ended.exit_code == 2
        assert "--deadline" in ended.output


@pytest.mark.parametrize("value", ["-1", "1e5", "9" * 30, "9" * 5000, "inf", "x", "", "\u0663", "1.5"])
@pytest.mark.parametrize(("option", "words"), [("--ctx-size", "auto"), ("--gpu-layers", "all or auto")])
def test_a_count_that_is_none_is_refused_with_what_is_accepted(option: str, words: str, value: str):
    ended = CliRunner().invoke(cli, ["load", "tiny", f"{option}={value}", *NOWHERE])
    assert ended.exit_code == 2
    assert f"from 0 to 1099511627776 nor {words}" in " ".join(ended.output.split())


@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "--minutes=nan"), ("simulate", "--minutes=inf"), ("simulate", "--slo=nan"),
        ("top", "--interval=nan"), ("run", "tiny", "x", "--temperature=nan"),
    ],
)  # fmt: skip
def test_no_number_of_a_command_is_nan_or_infinite(words: tuple[str, ...]):
    ended = CliRunner().invoke(cli, [*words])
    assert ended.exit_code == 2
    assert "no finite number" in ended.output
