"""The sockets of the router."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from router.app.listening import bind, url_of
from router.config import ServerConfig
from router.errors import StartupError


def test_a_free_port_is_drawn_and_told():
    (bound,) = bind(ServerConfig(port=0))
    with closing(bound):
        host, port = bound.getsockname()
        assert (host, url_of(bound)) == ("127.0.0.1", f"http://127.0.0.1:{port}")


def test_what_is_bound_does_not_listen_yet():
    (bound,) = bind(ServerConfig(port=0))
    with closing(bound), pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_refused_with_a_way_out(host: str):
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{port}: another program does already.*--port"):
            bind(ServerConfig(port=port))


def test_a_port_that_was_just_left_can_be_taken_at_once():
    with socket.create_server(("127.0.0.1", 0)) as former:
        port = former.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = former.accept()
        served.close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()
    (bound,) = bind(ServerConfig(port=port))
    bound.close()


def test_a_host_that_is_not_there_is_refused_by_name():
    with pytest.raises(StartupError, match=r"cannot listen on 'no\.such\.host\.invalid'"):
        bind(ServerConfig(host="no.such.host.invalid"))
    with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1:0"):
        bind(ServerConfig(host="192.0.2.1", port=0))


def test_all_addresses_of_a_name_get_the_same_port(monkeypatch):
    two = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
    first, second = bind(ServerConfig(host="both", port=0))
    with closing(first), closing(second):
        assert first.getsockname()[1] == second.getsockname()[1]


def test_an_ipv6_address_is_bracketed():
    class Bound:
        def getsockname(self) -> tuple[str, int, int, int]:
            return ("::1", 8080, 0, 0)

    assert url_of(Bound()) == "http://[::1]:8080"  # type: ignore[arg-type]
