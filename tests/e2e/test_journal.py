"""What a router has done, exported by its command line and replayed in virtual time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Start
from tests.router_process import REPOSITORY

SECRET = "a-word-of-the-user"
KEY = "sk-not-for-others"
CONFIG = f"""
[server]
api_keys = ["{KEY}"]
[scheduler]
models_max = 1
"""


def command(*args: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "router", *args], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def test_the_journal_of_a_router_is_exported_and_replayed(router: Start, folder: Path):
    asked = ["one", "two", "one", "one", "two"]
    async with router("one", "two", config=CONFIG) as up:
        up.client.headers["Authorization"] = f"Bearer {KEY}"
        for model in asked:
            status, answer = await up.chat(model, messages=[{"role": "user", "content": SECRET}])
            assert status == 200, answer
        assert (await up.chat("no-such-model"))[0] == 404
        access = ("--url", up.url, "--api-key", KEY)
        exported = await asyncio.to_thread(command, "journal", "--export", *access)
        shown = await asyncio.to_thread(command, "journal", *access)
    for private in (SECRET, KEY, str(folder)):
        assert private not in exported and private not in shown
    assert "model=one" in shown and "cause=evicted" in shown
    lines = [json.loads(line) for line in exported.splitlines()]
    assert [line["model"] for line in lines if line.get("event") == "Acquire"] == asked
    (one, two) = (line for line in lines if "slots" in line)
    assert (one["model"], two["model"]) == ("one", "two")
    assert all(0 < line["load_seconds"] < 60 and line["gib"] > 0 for line in (one, two)), "as measured"

    file = folder / "journal.jsonl"
    file.write_text(exported)
    replay = ("simulate", "--trace", str(file), "--policy", "lru", "--no-best", "--json")
    figures = json.loads(await asyncio.to_thread(command, *replay, "--set", "models_max=1"))
    row = figures["mean"]["llama-router lru"]
    assert (row["sent"], row["answered"]) == (len(asked), len(asked))
    assert row["swaps_per_100"] >= 100 * 2 / len(asked), "there is room for one of them"
