"""Names and origins as browsers send them, and the patterns that name them."""

from __future__ import annotations

import pytest

from router.config.web import Origin, OriginPattern, host_of, host_pattern, listen_addresses


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("https://chat.example", ["https://chat.example"], ["http://chat.example", "https://x.chat.example"]),
        ("HTTPS://Chat.Example:443", ["https://chat.example"], ["https://chat.example:8443"]),
        ("http://localhost:*", ["http://localhost", "http://localhost:3000"], ["http://localhost.evil:3000"]),
        ("https://*.example.com", ["https://a.example.com", "https://a.b.example.com"],
         ["https://example.com", "https://evilexample.com", "https://a.example.com:8443"]),
        ("http://[0:0::1]:3000", ["http://[::1]:3000"], ["http://[::2]:3000"]),
        ("moz-extension://*", ["moz-extension://4b0f-11"], ["chrome-extension://abc", "https://moz"]),
        ("app://obsidian.md", ["app://obsidian.md"], ["app://obsidian", "app://evil.obsidian.md"]),
        ("vscode-webview://*", ["vscode-webview://1mrq"], ["vscode-webview-x://1mrq"]),
        ("file://", ["file://"], ["file://host"]),
        ("tauri://localhost", ["tauri://localhost"], ["http://localhost"]),
        ("https://*:8443", ["https://any.example:8443"], ["https://any.example"]),
        ("*", ["https://any.example:1", "app://x"], []),
    ],
)  # fmt: skip
def test_a_pattern_matches_what_it_names_and_nothing_else(pattern: str, matching: list, other: list):
    parsed = OriginPattern.parse(pattern)
    assert all(parsed.matches(Origin.parse(one)) for one in matching)
    assert not any(parsed.matches(Origin.parse(one)) for one in other)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("https://chat.example/", 'browsers send only "https://chat.example"'),
        ("https://chat.example/app?x#y", 'browsers send only "https://chat.example"'),
        ("localhost:3000", 'an origin is written "http://localhost:3000"'),
        ("", "has no scheme"),
        ("null", '"\\*" allows all pages'),
        ("https://chat.*", "a \\* stands for a host"),
        ("https://*.*.example", "a \\* stands for a host"),
        ("https://*.", "a \\* stands for a host"),
        ("*://chat.example", "is no origin"),
        ("https://", "is no origin"),
        ("https://user@chat.example", "is no origin"),
        ("https://chat.example:99999", "is no origin"),
        ("http://[::1", "is no origin"),
        ("https://bücher.example", "xn--"),
        ("https://a, https://b", "has a path"),
    ],
)
def test_a_pattern_that_no_page_could_match_is_refused_with_what_would_be_one(pattern: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        OriginPattern.parse(pattern)


def test_all_pages_and_all_of_a_scheme_are_no_named_page():
    wide = ["*", "moz-extension://*", "https://*", "https://*:8443"]
    named = ["http://localhost:*", "https://*.example.com", "file://"]
    assert [OriginPattern.parse(one).is_wide for one in wide + named] == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("localhost:8080", "localhost"),
        ("LOCALHOST.", "localhost"),
        ("127.0.0.1:", "127.0.0.1"),
        ("[::1]:8080", "::1"),
        ("[0:0:0:0:0:0:0:1]", "::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("my_service.lan", "my_service.lan"),
    ],
)
def test_a_host_is_read_without_port_brackets_zone_and_final_dot(value: str, host: str):
    assert host_of(value) == host


@pytest.mark.parametrize(
    "value",
    [
        "", ".", "a..b", "localhost..", "::1", "[::1", "[127.0.0.1]", "a@localhost", "localhost, evil",
        "localhost:80:80", "localhost:x", "localhost/", "%6cocalhost", "loc\u00e4lhost", "local host",
        "[localhost]",
    ],
)  # fmt: skip
def test_what_names_no_host_is_refused(value: str):
    with pytest.raises(ValueError, match=r".+"):
        host_of(value)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("LLM.example.", "llm.example"),
        ("*.lan", "*.lan"),
        ("*", "*"),
        ("[::1]", "::1"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_an_allowed_host_is_a_name_an_address_or_the_names_below_one(text: str, pattern: str):
    assert host_pattern(text) == pattern


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("llm.example:8080", 'write "llm.example"'),
        ("http://llm.example", "the name of the host alone"),
        (".example", '"\\*.example"'),
        ("llm.*", "is no name"),
        ("*llm", "is no name"),
        ("*.", "is no name"),
        ("", "is no name"),
    ],
)
def test_an_allowed_host_that_no_request_could_have_is_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        host_pattern(text)


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", ("127.0.0.1",)),
        ("[::]", ("::",)),
        ("[::1]", ("::1",)),
        ("0:0:0:0:0:0:0:1", ("::1",)),
        ("::ffff:127.0.0.1", ("127.0.0.1",)),
        ("fe80::1%eth0", ("fe80::1%eth0",)),
        ("127.0.0.1, ::1", ("127.0.0.1", "::1")),
        (["127.0.0.1", "[::1]", "127.0.0.1"], ("127.0.0.1", "::1")),
        (["localhost,10.0.0.1", "/run/a.sock"], ("localhost", "10.0.0.1", "/run/a.sock")),
    ],
)
def test_addresses_to_listen_on_are_one_or_several_each_once(host, addresses: tuple[str, ...]):
    assert listen_addresses(host) == addresses


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("", "is empty"),
        ("127.0.0.1,", "is empty"),
        ([], "without an address"),
        (["127.0.0.1", ""], "is empty"),
        ("127.0.0.1:8080", "server.port"),
        ("[::1]:8080", "server.port"),
        ("localhost:80", "server.port"),
        ("http://localhost", "the host alone"),
        ("/run/router", "ends in .sock"),
        ("[::1", "bracket"),
        ("::1]", "bracket"),
        ("127.0.0.1]", "bracket"),
    ],
)
def test_an_address_to_listen_on_that_is_none_is_refused(host, reason: str):
    with pytest.raises(ValueError, match=reason):
        listen_addresses(host)
