"""Under which names the router is spoken to: a page whose name leads here (DNS rebinding) gets nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from router.admin.allowed_hosts import AllowedHosts
from router.config import ServerConfig
from tests.admin.conftest import Api
from tests.proxy.wire import Message, read_answer

BODY = b'{"model":"tiny"}'
EVIL = "attacker.example"


async def ask(api: Api, line: str, *headers: str, body: bytes = b"") -> Message:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    length = [f"Content-Length: {len(body)}"] if body else []
    writer.write("\r\n".join([line, *headers, *length, "", ""]).encode("utf-8", "surrogateescape") + body)
    try:
        async with asyncio.timeout(5):
            return await read_answer(reader, to_head=False)
    finally:
        writer.close()


def code(answer: Message) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["error"]["code"]


EVERYTHING = [
    ("POST", "/v1/chat/completions", BODY), ("POST", "/models/load", BODY), ("POST", "/models/unload", BODY),
    ("POST", "/restart", b""), ("POST", "/models", BODY), ("DELETE", "/models?model=tiny", b""),
    ("GET", "/models/log?model=tiny", b""), ("GET", "/requests", b""), ("GET", "/props", b""),
    ("GET", "/", b""), ("GET", "/v1/models", b""), ("GET", "/models/sse", b""), ("GET", "/health", b""),
    ("GET", "/nothing", b""), ("PATCH", "/v1/models", b""), ("OPTIONS", "/models/load", b""),
    ("POST", "/upstream/tiny/x", BODY),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), EVERYTHING)
async def test_under_another_name_no_path_answers(api: Api, method: str, path: str, body: bytes):
    await api.start()
    answer = await ask(api, f"{method} {path} HTTP/1.1", f"Host: {EVIL}:8080", body=body)
    assert code(answer) == (403, "host_not_allowed")
    message = json.loads(answer.body)["error"]["message"]
    assert f'server.allowed_hosts = ["{EVIL}"]' in message
    assert not api.pool.acquired and not api.pool.unloads


async def test_what_a_browser_says_of_a_rebound_page_does_not_help_it(api: Api):
    await api.start()
    own = (f"Host: {EVIL}", f"Origin: http://{EVIL}", "Sec-Fetch-Site: same-origin")
    answer = await ask(api, "POST /models/load HTTP/1.1", *own, body=BODY)
    assert code(answer) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:1", "localhost.", "app.localhost", "127.0.0.1", "127.8.9.10:80", "[::1]:8080",
        "[::ffff:127.0.0.1]",
    ],
)  # fmt: skip
async def test_loopback_is_served_by_any_of_its_names_on_both_ways(api: Api, host: str):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    for more in ((), ("X-Router-Priority: high",)):
        line = "POST /v1/chat/completions HTTP/1.1"
        assert (await ask(api, line, f"Host: {host}", *more, body=BODY)).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost.attacker.example", "127.0.0.1.nip.io", "attacker", "xlocalhost", "10.0.0.1", "0.0.0.0",
        "[fe80::1]", "2130706433", "0x7f.0.0.1", "localhost.localdomain",
    ],
)  # fmt: skip
async def test_what_only_looks_like_loopback_is_not(api: Api, host: str):
    await api.start()
    answer = await ask(api, "GET /v1/models HTTP/1.1", f"Host: {host}")
    assert code(answer) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    "hosts",
    [
        (), ("Host:",), ("Host: localhost", "Host: attacker.example"), ("Host: localhost", "Host: localhost"),
        ("Host: localhost, attacker.example",), ("Host: attacker@localhost",), ("Host: localhost:80:80",),
        ("Host: %6cocalhost",), ("Host: \udcff",), ("Host: localhost/",),
    ],
)  # fmt: skip
async def test_a_host_that_is_missing_repeated_or_none_is_a_bad_request(api: Api, hosts: tuple[str, ...]):
    await api.start()
    for line, body in (("GET /v1/models HTTP/1.1", b""), ("POST /v1/chat/completions HTTP/1.1", BODY)):
        assert (await ask(api, line, *hosts, body=body)).status == 400


async def test_http_1_0_knows_no_host(api: Api):
    await api.start()
    assert (await ask(api, "GET /health HTTP/1.0")).status == 200
    assert code(await ask(api, "GET /health HTTP/1.0", f"Host: {EVIL}")) == (403, "host_not_allowed")


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
async def test_a_target_with_a_name_of_its_own_counts_like_the_host(api: Api, scheme: str):
    await api.start()
    line = f"POST {scheme}://{EVIL}:80/models/load HTTP/1.1"
    assert code(await ask(api, line, "Host: localhost", body=BODY)) == (403, "host_not_allowed")
    good = await ask(api, "GET http://localhost/health HTTP/1.1", "Host: localhost")
    assert good.status == 200
    bad = await ask(api, "GET http://localhost/health HTTP/1.1", f"Host: {EVIL}")
    assert code(bad) == (403, "host_not_allowed")


async def test_names_that_are_configured_are_served(api: Api):
    await api.start(host=["127.0.0.1", "gpu.lan"], allowed_hosts=("llm.example", "*.internal.example"))
    for host in ("gpu.lan", "LLM.example.:443", "a.b.internal.example"):
        assert (await ask(api, "GET /v1/models HTTP/1.1", f"Host: {host}")).status == 200, host
    for host in ("internal.example", "xinternal.example", "sub.llm.example"):
        assert (await ask(api, "GET /v1/models HTTP/1.1", f"Host: {host}")).status == 403, host


async def test_with_api_keys_a_name_says_nothing_unless_names_are_configured(api: Api):
    await api.start(api_keys=("secret",))
    key = "Authorization: Bearer secret"
    assert (await ask(api, "GET /v1/models HTTP/1.1", f"Host: {EVIL}", key)).status == 200
    assert (await ask(api, "GET /v1/models HTTP/1.1", f"Host: {EVIL}")).status == 401


@pytest.mark.parametrize(
    ("server", "host", "is_allowed"),
    [
        ({"api_keys": ("k",), "allowed_hosts": ("llm.example",)}, EVIL, False),
        ({"api_keys": ("k",), "allowed_hosts": ("llm.example",)}, "llm.example", True),
        ({"admin_keys": ("k",)}, EVIL, False),  # inference is open to all
        ({"allowed_hosts": ("*",)}, EVIL, True),
        ({"host": "GPU-Box.lan."}, "gpu-box.lan:8080", True),
        ({"host": "/run/x.sock"}, "/run/x.sock", None),
    ],
)
def test_which_names_are_allowed_is_the_configurations(
    server: dict[str, Any], host: str, is_allowed: bool | None
):
    hosts = AllowedHosts(ServerConfig(**server))
    if is_allowed is None:
        with pytest.raises(ValueError, match="no host"):
            hosts.allows(host)
    else:
        assert hosts.allows(host) is is_allowed


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "fe80::1%eth0"])
def test_beyond_loopback_every_address_and_the_machines_own_names_are_served(address: str):
    hosts = AllowedHosts(ServerConfig(), "Box.Home.example")
    names = ("box.home.example", "box", "box.local", "host.docker.internal", "10.1.2.3", "[2001:db8::1]:8080")
    assert not any(map(hosts.allows, names))
    hosts.listen_on(["127.0.0.1", address])
    assert all(map(hosts.allows, names))
    assert not any(map(hosts.allows, (EVIL, "evil.local", "box.evil.example", "10.1.2.3.nip.io")))


def test_on_loopback_alone_they_are_not():
    hosts = AllowedHosts(ServerConfig(), "box")
    hosts.listen_on(["127.0.0.1", "::1"])
    assert not any(map(hosts.allows, ("box", "10.1.2.3", "[2001:db8::1]")))


async def test_what_comes_over_a_unix_socket_may_have_any_host(api: Api, tmp_path):
    await api.start()
    path = tmp_path / "s"
    await api.listen_on_path(path)
    for hosts in (f"Host: {EVIL}\r\n", "Host: \r\n"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(f"GET /v1/models HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 200 "), hosts
        writer.close()
