"""What is predicted, held against what the real llama-server (a CPU build) reports to have allocated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.memory.estimate.cases import CASES, HOST, REPACKED_CASES, Case
from tests.memory.estimate.reported import MIB, Reported, find_llama_server, run_and_read

SERVER = find_llama_server()
ROUNDING = 0.01 * MIB
PAGE_CACHE_OF_PROGRAM = 24 * MIB
"""Pages of the program and its libraries, which RssFile counts with the model's."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        SERVER is None, reason="no llama-server: set LLAMA_SERVER or run bin/build-llama-server"
    ),
]


def run(case: Case, folder: Path) -> tuple[dict[str, int], Reported, int]:
    assert SERVER is not None
    predicted, model, argv = case.predict(folder)
    reported = run_and_read(SERVER, model, argv, folder)
    kinds = {
        kind: predicted.bytes_of(kind) + draft_bytes(predicted.terms, kind)
        for kind in ("weights", "repacked", "kv", "state", "compute", "output")
    }
    return kinds, reported, predicted.footprint[HOST.id]


def draft_bytes(terms, kind: str) -> int:
    return sum(t.bytes for t in terms if t.kind == "draft" and t.explanation.startswith(f"{kind} of"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_prediction_matches_what_the_server_allocates(case: Case, tmp_path: Path) -> None:
    predicted, reported, footprint = run(case, tmp_path)
    n_lines = 6  # each line of the report is rounded by itself
    for kind in ("weights", "kv", "state"):
        actual = getattr(reported, kind)
        assert predicted[kind] == pytest.approx(actual, rel=0.01, abs=n_lines * ROUNDING), kind
    assert predicted["compute"] >= reported.compute - ROUNDING, (
        "a compute buffer is never larger than predicted"
    )
    allocated = sum(
        (reported.weights, reported.kv, reported.state, reported.compute, reported.output, reported.encoder)
    )
    assert footprint >= allocated, "the sum is never under"
    assert reported.encoder == 0 if case.make_mmproj is None else reported.encoder > 0
    resident = reported.anonymous + reported.file_backed - PAGE_CACHE_OF_PROGRAM
    assert footprint >= resident, "nor is it under what is resident"


@pytest.mark.parametrize("case", REPACKED_CASES, ids=lambda case: case.name)
def test_repacked_weights_are_anonymous_copies(case: Case, tmp_path: Path) -> None:
    predicted, reported, footprint = run(case, tmp_path)
    assert predicted["repacked"] == pytest.approx(reported.repacked, rel=0.01, abs=2 * ROUNDING)
    assert footprint >= reported.anonymous, "copies, caches and buffers are all anonymous memory"
