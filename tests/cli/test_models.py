"""`models`"""

from __future__ import annotations

import json

from tests.cli.conftest import Terminal


async def test_it_lists_every_model_and_why_one_cannot_be_used(terminal: Terminal):
    lines = (await terminal.run("models")).output.splitlines()
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["tiny"].split()[1] == "unloaded"
    assert "also" in by_name["tiny"]
    assert "small" in by_name["tiny"]
    assert by_name["broken"].split()[1] == "failed"
    assert "broken.gguf" in by_name["broken"]


async def test_it_can_ask_to_look_again(terminal: Terminal):
    await terminal.run("models", "--reload")
    assert terminal.api.reloads == 1


async def test_as_json_it_is_the_list(terminal: Terminal):
    listed = json.loads((await terminal.run("models", "--json")).output)
    assert "tiny" in {model["id"] for model in listed}


async def test_it_lists_files_that_are_no_models_where_it_is_asked_for_all(terminal: Terminal):
    assert "mmproj" not in (await terminal.run("models")).output
    lines = (await terminal.run("models", "--all")).output.splitlines()
    (row,) = (line for line in lines if line.startswith("seeing/mmproj-seeing"))
    assert "is no model but a projector" in row
