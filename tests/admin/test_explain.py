"""Why a model is where it is."""

from __future__ import annotations

from router.hosts import Measurement
from tests.admin.conftest import Api


async def test_it_is_told_as_data_with_the_words_in_it(api: Api):
    await api.start()
    answer = (await api.get("/explain?model=small")).json()
    assert (answer["model"], answer["state"]) == ("tiny", "unloaded")
    assert answer["text"] == "tiny is not loaded."
    assert answer["last_evicted_seconds_ago"] is None


async def test_it_is_told_in_words_alone_on_request(api: Api):
    await api.start()
    for options in ({"params": {"format": "text"}}, {"headers": {"Accept": "text/plain"}}):
        answer = await api.get("/explain?model=tiny", **options)
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.body == b"tiny is not loaded.\n"


async def test_a_fall_to_the_cpu_is_told_with_it(api: Api):
    await api.start()
    assert (await api.get("/explain?model=tiny")).json()["warnings"] == []
    api.pool.measurements["local"] = Measurement(0.0, {}, warnings=("models run on the CPU: a reason",))
    assert (await api.get("/explain?model=tiny")).json()["warnings"] == ["models run on the CPU: a reason"]
    told = await api.get("/explain?model=tiny", params={"format": "text"})
    assert told.body == b"tiny is not loaded.\nmodels run on the CPU: a reason\n"


async def test_it_needs_a_model_that_exists(api: Api):
    await api.start()
    assert "?model=NAME" in (await api.get("/explain")).error["message"]
    assert (await api.get("/explain?model=nobody")).status == 404
