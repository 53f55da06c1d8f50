"""While a model serves the last of its requests, the disk already works for the one that waits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.proxy_swaps import forget
from tests.e2e.running import running
from tests.hosts.test_read_ahead import resident_share
from tests.make_gguf import make_llama

pytestmark = pytest.mark.e2e

ONE_AT_A_TIME = """
[scheduler]
models_max = 1
[memory]
margin_mib = 64
use_llama_fit_params = false
[child]
args = ["--threads", "1", "--no-warmup"]
"""


async def test_the_file_of_a_model_that_waits_is_read_while_another_still_serves(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    waited_for = make_llama(tmp_path / "models/b.gguf", name="b", approx_mib=24)
    forget(waited_for)
    if resident_share(waited_for) > 0.01:
        pytest.skip("this file system keeps its files in memory")
    async with running(tmp_path, ["a", "b"], ONE_AT_A_TIME) as router:
        await router.chat("a")
        forget(waited_for)  # its header was read at the start
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(router.stream("a", tokens=1500))
            await router.until(lambda: router.pool.snapshot().of_model("a")[0].leases)
            waiting = tasks.create_task(router.chat("b"))
            await router.until(lambda: resident_share(waited_for) == 1.0)
            assert not serving.done()
            assert router.starts() == ["a"]
        assert (serving.result().ended, waiting.result().status) == (True, 200)
        assert router.starts() == ["a", "b"]
