"""What the router itself takes: under 64 MB, whatever passes through it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.proxy import main

pytestmark = pytest.mark.e2e

#: 57 to 58 MiB were measured with 256 streams. 2 MiB of them are the certificates of the machine, without
#: which TLS in this process would trust no server.
MOST_MIB = 64e6 / 2**20


@pytest.mark.parametrize(
    ("row", "key"),
    [
        pytest.param("chunks", "rss_streams", id="256 streams"),
        pytest.param("memory", "rss_big", id="8 answers of 26 MiB, read late"),
    ],
)
def test_the_router_stays_under_64_mb(row: str, key: str, tmp_path: Path):
    arguments = ["--seconds", "0.5", "--rounds", "2", "--only", row, "--contestants", "direct,ours"]
    assert main([*arguments, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["failed"] == {}
    peaks = next(one["values"]["ours"] for one in figures["rows"] if one["key"] == key)
    assert max(peaks) < MOST_MIB, "what is imported? python -X importtime -m router serve"
