"""Which connections are one client's, and which come from this machine."""

from __future__ import annotations

from typing import Any, cast

import pytest
from aiohttp import web

from router.admin.client_address import UNIX, client_of, is_local, shown_address
from tests.admin.test_stream_limit import Request


@pytest.mark.parametrize(
    ("peername", "client"),
    [
        (("10.0.0.1", 5), "10.0.0.1"),
        (("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1"),  # as a socket for both families shows it
        (("2001:db8:1:2::5", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::9", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 3), "fe80::/64"),
        (("::1", 5, 0, 0), "::1"),
        ("", UNIX),
        (None, UNIX),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(peername: Any, client: str):
    assert client_of(peername) == client


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:7f00:1", "127.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8::5", "2001:db8::5"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", ""),
        (None, None),
    ],
)
def test_an_ipv4_client_of_a_socket_for_both_families_is_shown_as_one(address: str | None, shown: str | None):
    assert shown_address(address) == shown


class With(Request):
    def __init__(self, peername: Any, **headers: str) -> None:
        super().__init__(peername)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (With(("127.0.0.1", 5)), True),
        (With(("::ffff:127.0.0.1", 5, 0, 0)), True),
        (With(("::1", 5, 0, 0)), True),
        (With(""), True),
        (With(("10.0.0.1", 5)), False),
        (With(("127.0.0.1", 5), X_Forwarded_For="10.0.0.1"), False),
        (With(("127.0.0.1", 5), Forwarded="for=10.0.0.1"), False),
    ],
)
def test_what_a_proxy_asks_for_others_is_not_local(request_: Any, expected: bool):
    assert is_local(cast(web.Request, request_)) is expected
