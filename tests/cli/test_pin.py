"""`pin` and `unpin`"""

from __future__ import annotations

from tests.cli.conftest import Terminal


async def test_a_pin_is_set_and_taken_away(terminal: Terminal):
    assert (await terminal.run("pin", "small")).output == "tiny: pinned, unloaded\n"
    assert (await terminal.run("unpin", "tiny")).output == "tiny: unpinned, unloaded\n"
    assert terminal.api.pool.pins == [("tiny", True), ("tiny", False)]


async def test_what_is_not_there_cannot_be_pinned(terminal: Terminal):
    assert "there are: " in (await terminal.run("pin", "nobody", status=1)).output
