"""`ps`"""

from __future__ import annotations

import json

from router.scheduler.types import Adopted, Placement
from router.scheduler.views import QueueView
from tests.admin.conftest import Api
from tests.admin.fake_pool import Instance
from tests.cli.conftest import Terminal


async def test_without_models_it_says_so(terminal: Terminal):
    assert (await terminal.run("ps")).output == "No model is loaded.\n"


async def test_it_shows_who_runs_where_and_who_waits(terminal: Terminal):
    terminal.api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "", leases=["r1", "r2"])
    terminal.api.pool.queues = (QueueView("other", 3, 90.0, 1, "its turn", None),)
    heads, tiny, other = (await terminal.run("ps")).output.splitlines()
    assert heads.split()[:5] == ["INSTANCE", "STATE", "DEVICE", "PREDICTED", "MEASURED"]
    where = "cuda:GPU-5f3c"
    assert tiny.split() == ["tiny#1", "ready", where, "6.0", "GiB", "5.0", "GiB", "2", "-", "-", "-", "-"]
    assert other.split()[:2] == ["other", "queued"]
    assert other.endswith("waits for its turn")


async def test_it_shows_the_last_decision_about_a_model(terminal: Terminal):
    pool = terminal.api.pool
    pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    pool.journal.record(1.0, Adopted("tiny#1", "tiny", Placement("local", {})), [])
    assert "tiny lives on from an earlier router" in (await terminal.run("ps")).output


async def test_whoever_may_not_see_decisions_sees_the_rest(api: Api):
    await api.start(api_keys=("user",), admin_keys=("boss",))
    api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    result = await Terminal(api).run("ps", "--api-key", "user")
    assert "tiny#1" in result.output


async def test_as_json_it_is_one_object_per_instance(terminal: Terminal):
    terminal.api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    (one,) = json.loads((await terminal.run("ps", "--json")).output)
    assert (one["model"], one["id"], one["state"]) == ("tiny", "tiny#1", "ready")
    assert one["predicted"] == 6 << 30
