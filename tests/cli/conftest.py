"""Commands against a router on a real port."""

from __future__ import annotations

import asyncio

import pytest
from click.testing import CliRunner, Result

from router.cli import cli
from tests.admin.conftest import Api, api, known, models_dir

__all__ = ["Terminal", "api", "known", "models_dir", "terminal"]


class Terminal:
    """Runs a command beside the router, which lives in the test's own loop."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def run(self, *args: str, status: int = 0) -> Result:
        result = await asyncio.to_thread(CliRunner().invoke, cli, [*args, "--url", self.api.url])
        assert result.exit_code == status, result.output
        return result


@pytest.fixture
async def terminal(api: Api) -> Terminal:
    await api.start()
    return Terminal(api)
