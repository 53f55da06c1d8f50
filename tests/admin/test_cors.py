"""Which web pages may talk to the router."""

from __future__ import annotations

import pytest

from router.admin.cors import is_foreign
from tests.admin.conftest import Api

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


# --- what a browser says of a request ---

SIMPLE = b'{"model":"tiny"}'
TEXT = {"Content-Type": "text/plain"}
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "Cross-Site"},
    {"Sec-Fetch-Site": "something new"},
    {"Origin": "chrome-extension://abc", "Sec-Fetch-Site": "none"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {
        "Origin": "null",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    },
    {"Origin": "\udcff\udcfe"},
    {"Origin": ""},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_foreign_page_can_neither_infer_nor_change_nor_read_anything(
    api: Api, headers: dict[str, str]
):
    await api.start()
    for path in ("/v1/completions", "/models/load", "/models/unload", "/restart", "/models", "/nothing"):
        answer = await api.post(path, data=SIMPLE, headers=TEXT | headers)
        assert (answer.status, answer.error["code"]) == (403, "forbidden"), path
        assert "server.cors_origins" in answer.error["message"]
        assert "Access-Control-Allow-Origin" not in answer.headers
    for path in ("/props?model=tiny&autoload=1", "/v1/models?reload=1", "/models/sse", "/requests", "/slots"):
        assert (await api.get(path, headers=headers)).status == 403, path
        assert (await api.call("HEAD", path, headers=headers)).status == 403, path
    assert (await api.call("DELETE", "/models?model=tiny", headers=headers)).status == 403
    assert not api.pool.acquired and not api.pool.unloads and not api.reloads


async def test_a_ready_model_is_no_more_open_to_foreign_pages(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    before = len(api.pool.acquired)
    for headers in FOREIGN:
        answer = await api.post("/v1/chat/completions", data=SIMPLE, headers=TEXT | headers)
        assert answer.status == 403, headers
    assert len(api.pool.acquired) == before


async def test_two_origins_or_sites_are_no_browsers_and_foreign(api: Api):
    await api.start()
    for name, own in (("Origin", api.url), ("Sec-Fetch-Site", "same-origin")):
        both = [(name, own), (name, "https://evil.example")]
        assert (await api.post("/v1/completions", data=SIMPLE, headers=both)).status == 403


async def test_a_program_that_is_no_browser_needs_no_header(api: Api):
    await api.start()
    for headers in (
        {},
        {"Sec-Fetch-Mode": "cors"},
        {"User-Agent": "curl/8"},
    ):  # Node's fetch sends the mode alone
        assert (await api.post("/v1/completions", data=SIMPLE, headers=headers)).status == 200
        assert (await api.get("/props?model=tiny&autoload=1", headers=headers)).status == 200


async def test_the_page_works_behind_a_proxy_that_changes_the_host(api: Api):
    await api.start()
    proxied = {"Origin": "https://llm.example", "Sec-Fetch-Site": "same-origin"}
    assert (await api.post("/models/load?wait=1", json={"model": "tiny"}, headers=proxied)).status == 200
    assert (await api.get("/status", headers={"Sec-Fetch-Site": "same-origin"})).status != 403


async def test_the_page_works_behind_a_proxy_that_passes_the_host(api: Api):
    await api.start(allowed_hosts=("llm.example",))
    for host in ("llm.example", "llm.example:443", "LLM.example."):
        proxied = {"Origin": "https://llm.example", "Host": host}  # without encryption no Sec-Fetch-Site
        answer = await api.post("/models/load?wait=1", json={"model": "tiny"}, headers=proxied)
        assert answer.status == 200, host
    other = {"Origin": "https://llm.example:8443", "Host": "llm.example"}
    assert (await api.post("/models/load", json={"model": "tiny"}, headers=other)).status == 403


NAVIGATION = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


async def test_a_link_opens_the_page_and_nothing_else(api: Api):
    await api.start()
    assert (await api.get("/", headers=NAVIGATION)).status == 200
    assert (await api.get("/?from=wiki", headers=NAVIGATION)).status == 200
    for path in ("/props?model=tiny&autoload=1", "/v1/models", "/page/page.js", "/metrics"):
        assert (await api.get(path, headers=NAVIGATION)).status == 403, path
    for dest in ("iframe", "image", "script"):
        assert (await api.get("/", headers=NAVIGATION | {"Sec-Fetch-Dest": dest})).status == 403
    assert (await api.get("/", headers={"Sec-Fetch-Site": "cross-site"})).status == 403
    assert (await api.call("POST", "/", headers=NAVIGATION)).status == 403


async def test_what_a_person_types_is_answered(api: Api):
    await api.start()
    typed = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "User-Agent": "Mozilla/5.0"}
    assert (await api.get("/v1/models?reload=1", headers=typed)).status == 200


BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)"}


@pytest.mark.parametrize(
    "path", ["/props?model=tiny&autoload=1", "/props?model=tiny&%61utoload=1", "/models?reload=1"]
)
async def test_a_browser_that_does_not_say_whose_page_asks_changes_nothing_by_a_get(api: Api, path: str):
    """<img src> to an address of the network without encryption: no Origin, no Sec-Fetch-Site."""
    await api.start()
    for method in ("GET", "HEAD"):
        assert (await api.call(method, path, headers=BROWSER)).status == 403
    assert not api.pool.acquired and not api.reloads
    assert (await api.get("/v1/models", headers=BROWSER)).status == 200
    assert (await api.get("/v1/models?reload=0", headers=BROWSER)).status == 200
    by_key = BROWSER | {"Authorization": "Bearer any"}  # which no page can send without asking first
    assert (await api.get(path, headers=by_key)).status == 200


# --- which pages are named ---


@pytest.mark.parametrize(
    ("pattern", "origin"),
    [
        ("app://obsidian.md", "app://obsidian.md"),
        ("file://", "file://"),
        ("vscode-webview://*", "vscode-webview://0a1b2c"),
        ("chrome-extension://*", "chrome-extension://abcdef"),
        ("moz-extension://*", "moz-extension://4b0f1c-55"),
        ("tauri://localhost", "tauri://localhost"),
        ("http://localhost:*", "http://localhost:5173"),
    ],
)
async def test_programs_with_a_browser_inside_work_where_they_are_named(api: Api, pattern: str, origin: str):
    await api.start(cors_origins=(pattern,))
    for site in ("cross-site", "same-site", "none", None):
        headers = {"Origin": origin} | ({"Sec-Fetch-Site": site} if site else {})
        answer = await api.post("/v1/completions", data=SIMPLE, headers=headers)
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == origin
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Sec-Fetch-Site": "cross-site"}
    preflight = await api.call("OPTIONS", "/v1/completions", headers=asked)
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    other = await api.post("/v1/completions", data=SIMPLE, headers={"Origin": f"{origin}.evil"})
    assert (other.status == 200) is pattern.endswith("://*")


async def test_a_pattern_for_any_host_opens_inference_alone(api: Api):
    await api.start(cors_origins=("moz-extension://*", "http://localhost:*"))
    load = {"json": {"model": "tiny"}}
    wide = {"Origin": "moz-extension://1"}
    assert (await api.post("/models/load", **load, headers=wide)).status == 403
    assert (await api.get("/v1/models?reload=1", headers=wide)).status == 403
    assert (
        await api.post("/models/load?wait=1", **load, headers={"Origin": "http://localhost:1"})
    ).status == 200
    asked = wide | {"Access-Control-Request-Method": "POST"}
    assert (
        "Access-Control-Allow-Methods"
        not in (await api.call("OPTIONS", "/models/load", headers=asked)).headers
    )


async def test_a_star_opens_inference_to_requests_that_do_not_say_whose_they_are(api: Api):
    await api.start(cors_origins=("*",))
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert (await api.post("/v1/completions", data=SIMPLE, headers=headers)).status == 200
        assert (await api.post("/models/load", data=SIMPLE, headers=headers)).status == 403
        assert (await api.get("/v1/models?reload=1", headers=headers)).status == 403
    garbage = {"Origin": "\udcff"}
    assert (await api.post("/v1/completions", data=SIMPLE, headers=garbage)).status == 403


@pytest.mark.parametrize(
    ("origin", "site", "host", "foreign"),
    [
        (None, None, "localhost", False),
        ("http://localhost:8080", None, "localhost:8080", False),
        ("http://LOCALHOST:8080", "none", "localhost.:8080", False),
        ("http://localhost", None, "localhost:80", False),
        ("https://localhost", None, "localhost", False),
        ("https://localhost", None, "localhost:80", True),
        ("http://[::1]:8080", None, "[0:0::1]:8080", False),
        ("http://localhost:8080", "cross-site", "localhost:8080", True),
        ("http://localhost:8080", None, "localhost:8081", True),
        ("http://localhost:8080", None, "", True),
        ("http://localhost:8080", None, "evil@localhost:8080", True),
        ("null", "none", "null", True),
        ("app://localhost", None, "localhost", True),
    ],
)
def test_an_origin_is_our_own_where_host_and_port_are(origin: str, site: str, host: str, foreign: bool):
    assert is_foreign(origin, site, host) is foreign
