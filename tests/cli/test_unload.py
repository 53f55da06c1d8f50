"""`unload`"""

from __future__ import annotations

from tests.cli.conftest import Terminal


async def test_it_returns_when_the_model_is_gone(terminal: Terminal):
    await terminal.run("load", "tiny")
    assert (await terminal.run("unload", "small")).output == "tiny: unloaded\n"
    assert terminal.api.pool.unloads == [("tiny", False, None)]


async def test_force_and_deadline_are_handed_on(terminal: Terminal):
    await terminal.run("load", "tiny")
    await terminal.run("unload", "tiny", "--force", "--deadline", "2.5")
    assert terminal.api.pool.unloads == [("tiny", True, 2.5)]


async def test_what_is_not_loaded_cannot_be_unloaded(terminal: Terminal):
    assert "tiny is not loaded" in (await terminal.run("unload", "tiny", status=1)).output


async def test_all_are_unloaded_by_one_word(terminal: Terminal):
    assert (await terminal.run("unload", "--all")).output == "Nothing is loaded.\n"
    await terminal.run("load", "tiny")
    await terminal.run("load", "other")
    assert (await terminal.run("unload", "--all", "--force")).output == "tiny: unloaded\nother: unloaded\n"
    assert terminal.api.pool.unloads == [("tiny", True, None), ("other", True, None)]


async def test_a_model_or_all_must_be_said_and_not_both(terminal: Terminal):
    for args in ((), ("tiny", "--all")):
        assert "name a model, or say --all" in (await terminal.run("unload", *args, status=2)).output
