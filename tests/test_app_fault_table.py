"""The table of faults speaks of tests that there are, one at least for every fault."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [
    line for line in (TESTS / "FAULTS.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
][1:]


def test_every_fault_has_a_test_that_exists():
    assert len(ROWS) >= 28
    for row in ROWS:
        fault, seen, lost, tests = (cell.strip() for cell in row.strip("|").split("|"))
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
        assert fault, row
        assert seen, row
        assert lost, row
        assert named, f"{fault}: no test is named"
        for file, test in named:
            source = (TESTS / file).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), f"{fault}: no {file}::{test}"
