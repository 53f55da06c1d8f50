"""`explain`"""

from __future__ import annotations

import json

from tests.cli.conftest import Terminal


async def test_it_tells_the_reason_in_words(terminal: Terminal):
    assert (await terminal.run("explain", "small")).output == "tiny is not loaded.\n"


async def test_as_json_it_tells_the_data(terminal: Terminal):
    assert json.loads((await terminal.run("explain", "tiny", "--json")).output)["state"] == "unloaded"
