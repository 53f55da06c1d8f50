"""`load`"""

from __future__ import annotations

import asyncio
import json

from router.errors import LoadFailed
from tests.cli.conftest import Terminal


async def test_it_returns_when_the_model_is_ready(terminal: Terminal):
    assert (await terminal.run("load", "small")).output == "tiny: loaded\n"
    assert (await terminal.run("load", "tiny", "--json")).exit_code == 0
    assert json.loads((await terminal.run("load", "tiny", "--json")).output)["success"] is True


async def test_it_need_not_wait(terminal: Terminal):
    terminal.api.pool.load_gate = asyncio.Event()
    assert (await terminal.run("load", "tiny", "--no-wait")).output == "tiny: unloaded\n"
    terminal.api.pool.load_gate.set()


async def test_a_failure_is_told_in_the_routers_words(terminal: Terminal):
    terminal.api.pool.refusals = [LoadFailed("tiny failed to load: out of memory")]
    assert "tiny failed to load: out of memory" in (await terminal.run("load", "tiny", status=1)).output
    assert "there are: " in (await terminal.run("load", "nobody", status=1)).output
