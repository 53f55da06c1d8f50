"""The real llama-server in a long prompt, and stuck: the one is left in peace, the other is not."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from tests.make_gguf import make_llama
from tests.router_process import RouterProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., RouterProcess]
BOUND_SECONDS = 1.0
CONFIG = f"[child]\nserving_stall_seconds = {BOUND_SECONDS}\nctx_size = 2048\n"


async def test_a_prompt_longer_than_the_bound_is_answered_by_the_child_that_began_it(router: Start):
    up = router(config=CONFIG)
    make_llama(up.models / "slow.gguf", name="slow", approx_mib=120)
    async with up:
        assert (await up.chat("slow", max_tokens=1))[0] == 200
        (child,) = up.children()
        before = child.cpu_times()
        long = [{"role": "user", "content": "hello there " * 160}]
        status, answer = await up.chat("slow", messages=long, max_tokens=1)
        assert status == 200, answer
        after = child.cpu_times()
        worked_seconds = after.user + after.system - before.user - before.system
        assert worked_seconds > BOUND_SECONDS, "it was a long prompt"
        assert [one.pid for one in up.children()] == [child.pid]


async def test_one_that_was_stopped_in_the_middle_is_replaced(router: Start):
    async with router("tiny", config=CONFIG) as up:
        assert (await up.chat("tiny"))[0] == 200
        (child,) = up.children()
        child.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(30):
            status, answer = await up.chat("tiny")
        assert status == 502
        assert "stuck" in answer["error"]["message"]
        assert (await up.chat("tiny"))[0] == 200
        assert child.pid not in [one.pid for one in up.children()]
