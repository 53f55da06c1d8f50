"""Which web pages may talk to the router."""

from __future__ import annotations

from tests.api.conftest import Api

PAGE = "https://chat.example"


async def test_by_default_no_page_may_read_an_answer(api: Api):
    await api.start()
    answer = await api.get("/v1/models", headers={"Origin": PAGE})
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_named_page_may_read_answers_errors_and_streams(api: Api):
    await api.start(cors_origins=(PAGE,))
    headers = {"Origin": PAGE}
    for answer in (
        await api.get("/v1/models", headers=headers),
        await api.get("/v1/models/nobody", headers=headers),
        await api.post("/v1/completions", json={"model": "tiny"}, headers=headers),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Origin" in answer.headers["Vary"]
        assert "X-Router-Action" in answer.headers["Access-Control-Expose-Headers"]
    other = await api.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


async def test_a_preflight_needs_no_key_and_tells_what_is_allowed(api: Api):
    await api.start(cors_origins=(PAGE,), api_keys=("secret",))
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    answer = await api.call(
        "OPTIONS",
        "/v1/chat/completions",
        headers=asked | {"Access-Control-Request-Headers": "authorization, x-stainless-os"},
    )
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization, x-stainless-os"


async def test_options_on_a_path_that_is_not_there_is_404(api: Api):
    await api.start(cors_origins=("*",))
    assert (await api.call("OPTIONS", "/nothing")).status == 404


async def test_a_foreign_page_cannot_unload_a_model_even_by_a_simple_post(api: Api):
    await api.start(cors_origins=("*",))
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    evil = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    answer = await api.post("/models/unload", data=b'{"model":"tiny"}', headers=evil)
    assert (answer.status, answer.error["type"]) == (403, "permission_error")
    assert not api.pool.unloads


async def test_a_page_of_the_router_itself_and_a_named_one_may(api: Api):
    await api.start(cors_origins=(PAGE,))
    for origin in (api.url, PAGE):
        answer = await api.post("/models/load?wait=1", json={"model": "tiny"}, headers={"Origin": origin})
        assert answer.status == 200


async def test_a_star_lets_every_page_infer(api: Api):
    await api.start(cors_origins=("*",))
    answer = await api.post("/v1/completions", json={"model": "tiny"}, headers={"Origin": PAGE})
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE


async def test_a_path_with_a_name_in_it_is_kept_from_foreign_pages_like_any_other(api: Api):
    await api.start(cors_origins=("*",))
    answer = await api.call("DELETE", "/requests/1", headers={"Origin": PAGE})
    assert (answer.status, answer.error["code"]) == (403, "forbidden")
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "DELETE"}
    preflight = await api.call("OPTIONS", "/requests/1", headers=asked)
    assert (preflight.status, preflight.headers["Allow"]) == (204, "DELETE, OPTIONS")
    assert "Access-Control-Allow-Methods" not in preflight.headers
