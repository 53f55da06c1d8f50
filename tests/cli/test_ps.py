"""`ps`"""

from __future__ import annotations

import json

from router.core.views import QueueView
from tests.api.fake_pool import Instance
from tests.cli.conftest import Terminal


async def test_without_models_it_says_so(terminal: Terminal):
    assert (await terminal.run("ps")).output == "No model is loaded.\n"


async def test_it_shows_who_runs_where_and_who_waits(terminal: Terminal):
    terminal.api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "", leases=["r1", "r2"])
    terminal.api.pool.queues = (QueueView("other", 3, 90.0, 1, "its turn", None),)
    heads, tiny, other = (await terminal.run("ps")).output.splitlines()
    assert heads.split()[:3] == ["INSTANCE", "STATE", "MEMORY"]
    assert tiny.split() == [
        "tiny#1",
        "ready",
        "6.0",
        "GiB",
        "5.0",
        "GiB",
        "cuda:GPU-5f3c",
        "2",
        "-",
        "-",
        "-",
    ]
    assert other.split()[:2] == ["other", "queued"]
    assert other.split()[-3] == "3"


async def test_as_json_it_is_one_object_per_instance(terminal: Terminal):
    terminal.api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    (one,) = json.loads((await terminal.run("ps", "--json")).output)
    assert (one["model"], one["id"], one["state"]) == ("tiny", "tiny#1", "ready")
