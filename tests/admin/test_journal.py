"""The newest decisions as JSON lines."""

from __future__ import annotations

import json

from router.errors import LoadFailed
from router.scheduler.types import Acquire, Exited, Grant, Release
from tests.admin.conftest import Api


async def test_the_machine_the_models_and_the_events_are_told_one_json_object_a_line(api: Api):
    await api.start()
    api.pool.journal.record(5.0, Acquire("r1", "tiny"), [Grant("r1", "tiny#1")])
    api.pool.journal.record(6.0, Release("r1"), [])
    answer = await api.get("/journal")
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [line["event"] for line in lines if "event" in line] == ["Acquire", "Grant", "Release"]
    (told,) = (line for line in lines if "gib" in line and "model" in line)
    assert (told["model"], told["slots"] >= 1, told["gib"] > 0) == ("tiny", True, True)
    assert set(told) == {"model", "gib", "slots", "load_seconds"}
    assert all(line["gib"] > 0 for line in lines if "device" in line)


async def test_an_unknown_model_has_no_line_and_no_error_is_quoted(api: Api):
    await api.start()
    api.pool.journal.record(5.0, Acquire("r1", "nobody"), [])
    api.pool.journal.record(6.0, Exited("tiny#1", LoadFailed("the prompt was: my secret")), [])
    body = (await api.get("/journal")).body
    assert b"secret" not in body and b'"model":"nobody"' in body
    assert not [line for line in body.splitlines() if b'"gib"' in line and b"nobody" in line]


async def test_it_is_for_operators(api: Api):
    await api.start(admin_keys=("admin",), api_keys=("user",))
    assert (await api.get("/journal", headers={"Authorization": "Bearer user"})).status == 403
    assert (await api.get("/journal", headers={"Authorization": "Bearer admin"})).status == 200
