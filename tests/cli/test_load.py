"""`load`"""

from __future__ import annotations

import asyncio
import json

from router.errors import LoadFailed
from router.presets import Overrides
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


async def test_settings_for_this_load_are_handed_on(terminal: Terminal):
    settings = ("--ctx-size", "4096", "--gpu-layers", "all", "--device", "cuda:0", "--cache-type-k", "q8_0")
    await terminal.run("load", "tiny", *settings, "--ttl", "60")
    wanted = Overrides(ctx_size=4096, n_gpu_layers="all", devices=("cuda:0",), cache_type_k="q8_0")
    assert terminal.api.varied == [("tiny", wanted)]
    assert terminal.api.pool.acquired[0].keep_alive == 60
    refused = await terminal.run("load", "tiny", "--arg", "--threads", "--arg", "2", status=1)
    assert "server.load_args" in refused.output
