"""The router of these tests, which leaves no lease behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.proxy.bench import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.start()
    yield made
    made.proxy.close()
    await made.close()
    assert made.pool.open_leases == 0, "every lease must be released"
    assert len(set(made.pool.released)) == len(made.pool.released), "and only once"
