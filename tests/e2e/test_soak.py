"""The soak of bench/soak, for twenty seconds: no request is lost or answered wrong, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak import render, soak

pytestmark = pytest.mark.e2e


async def test_twenty_seconds_of_faults_lose_no_request_and_leave_nothing(llama_server: Path):
    report = await soak(20.0, seed=7, clients=4, real=llama_server)
    assert (report.wrong, report.leaked_processes, report.leaked_sockets) == ([], 0, 0), render(report)
    assert (report.exit_status, report.tracebacks) == (0, []), render(report)
    assert (report.leaked_descriptors, report.leaked_tasks) == ([], []), render(report)
    assert report.fates["answered right"] > 0
    assert report.fates["streamed right"] > 0
    assert sum(report.faults.values()) > 2
    assert report.grown_bytes < 8 << 20, render(report)
