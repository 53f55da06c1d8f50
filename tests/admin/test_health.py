"""Whether the router lives."""

from __future__ import annotations

from tests.admin.conftest import Api


async def test_health_needs_no_key(api: Api):
    await api.start(api_keys=("secret",))
    for path in ("/health", "/v1/health"):
        answer = await api.get(path)
        assert (answer.status, answer.json()) == (200, {"status": "ok"})


async def test_health_answers_head(api: Api):
    await api.start()
    answer = await api.call("HEAD", "/health")
    assert (answer.status, answer.body) == (200, b"")
