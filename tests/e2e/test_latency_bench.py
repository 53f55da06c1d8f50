"""While three models load and two hundred streams run, what the router knows is told: how soon is for
bench/latency to say, on a machine that is quiet."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.latency", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_models_and_memory_are_told_while_models_load_and_streams_run() -> None:
    done = bench(
        "--streams", "200", "--loading", "3", "--catalog", "10", "--requests", "5", "--limit-ms", "60000"
    )
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^(/\S+) +(\d+) ", done.stdout, re.MULTILINE))
    assert rows.keys() == {"/v1/models", "/vram", "/health"}
    assert int(rows["/v1/models"]) > 14 * 500, "every model, with its command line"


def test_a_path_above_the_limit_is_a_failure() -> None:
    done = bench("--streams", "1", "--loading", "1", "--catalog", "1", "--requests", "2", "--limit-ms", "0")
    assert done.returncode == 1, done.stderr
    assert "p99" in done.stdout
