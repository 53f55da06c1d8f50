"""What the real llama-server writes of a request into its log: as much as it does by default."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.router_process import RouterProcess

pytestmark = pytest.mark.e2e

MARK = "xylophone-4711"


async def test_the_log_of_a_child_holds_no_prompt(router: Callable[..., RouterProcess]):
    async with router("tiny") as up:
        said = [{"role": "user", "content": MARK}]
        assert (await up.chat("tiny", messages=said))[0] == 200
        assert (await up.events("tiny", messages=said, max_tokens=8))[-1] == "[DONE]"
        async with up.client.post(
            "/completion", json={"model": "tiny", "prompt": MARK, "n_predict": 4}
        ) as one:
            assert one.status == 200
        assert await up.stop() == 0
        written = [path for path in up.state.rglob("*") if path.is_file()]
        logs = [path for path in written if path.suffix == ".log"]
        assert all("slot" in path.read_text(errors="replace") for path in logs)
        assert logs
        assert not [path for path in written if MARK.encode() in path.read_bytes()]
        assert MARK not in up.output
