"""The sockets of the router."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

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


def test_a_path_is_a_socket_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "router.sock"
    (bound,) = bind(ServerConfig(host=str(path)))
    with closing(bound):
        assert url_of(bound) == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_socket_whose_router_is_gone_is_taken_over_and_one_that_is_served_is_not(tmp_path: Path):
    path = tmp_path / "router.sock"
    for _ in range(2):  # the second time it was left by the first
        (bound,) = bind(ServerConfig(host=str(path)))
        with closing(bound):
            bound.listen()
            with pytest.raises(StartupError, match="another program does already"):
                bind(ServerConfig(host=str(path)))


def test_a_path_that_is_something_else_is_left_alone(tmp_path: Path):
    path = tmp_path / "router.sock"
    path.write_text("mine")
    with pytest.raises(StartupError, match="cannot listen on"):
        bind(ServerConfig(host=str(path)))
    assert path.read_text() == "mine"
    with pytest.raises(StartupError, match="No such file"):
        bind(ServerConfig(host=str(tmp_path / "nowhere" / "router.sock")))
