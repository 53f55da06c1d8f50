"""The sockets of the router."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from router.app.listening import bind, is_on_loopback, url_of
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


# --- several addresses, and both families ---

needs_ipv6 = pytest.mark.skipif(
    not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6"
)


def reached(bound: Iterable[socket.socket], *hosts: str) -> list[bool]:
    """Whether a connection to each host is accepted."""
    sockets = list(bound)
    port = next(one.getsockname()[1] for one in sockets if one.family != socket.AF_UNIX)
    for one in sockets:
        one.listen()
    found = []
    for host in hosts:
        try:
            socket.create_connection((host, port), timeout=5).close()
            found.append(True)
        except OSError:
            found.append(False)
    return found


@contextmanager
def bound_to(host: str | tuple[str, ...]) -> Iterator[tuple[socket.socket, ...]]:
    with ExitStack() as stack:
        bound = bind(ServerConfig(host=host, port=0))
        for one in bound:
            stack.enter_context(closing(one))
        yield bound


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "[::]", ("::", "127.0.0.1"), ("127.0.0.1", "::", "::1")])
def test_all_ipv6_addresses_are_all_of_ipv4_too(host):
    with bound_to(host) as bound:
        assert len(bound) == 1
        assert reached(bound, "127.0.0.1", "127.0.0.2", "::1") == [True, True, True]


@needs_ipv6
@pytest.mark.parametrize("host", [("0.0.0.0", "::"), "::,0.0.0.0", ("::", "0.0.0.0", "127.0.0.1", "::1")])
def test_both_wildcards_share_a_port(host):
    with bound_to(host) as bound:
        assert {one.getsockname()[0] for one in bound} == {"0.0.0.0", "::"}
        assert reached(bound, "127.0.0.1", "::1") == [True, True]


@needs_ipv6
@pytest.mark.parametrize("host", [("127.0.0.1", "::1"), "127.0.0.1, [::1]", ["[::1]", "127.0.0.1", "[::1]"]])
def test_each_address_of_a_list_is_listened_on_and_no_other(host):
    with bound_to(host) as bound:
        assert len(bound) == 2
        assert reached(bound, "127.0.0.1", "::1", "127.0.0.2") == [True, True, False]
        assert all(map(is_on_loopback, bound))


def test_what_a_wildcard_takes_is_not_bound_again():
    with bound_to(("127.0.0.1", "0.0.0.0")) as bound:
        assert [one.getsockname()[0] for one in bound] == ["0.0.0.0"]
        assert not is_on_loopback(bound[0])


def test_a_path_and_an_address_go_together(tmp_path: Path):
    path = tmp_path / "router.sock"
    with bound_to((str(path), "127.0.0.1")) as bound:
        assert url_of(bound[0]) == f"unix:{path}"
        assert is_on_loopback(bound[0])
        assert reached(bound, "127.0.0.1") == [True]


def test_the_one_of_several_that_is_taken_is_named_and_none_is_kept():
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=rf"127\.0\.0\.2:{port}: another program does already"):
            bind(ServerConfig(host=("127.0.0.1", "127.0.0.2"), port=port))
        socket.create_server(("127.0.0.1", port)).close()


@needs_ipv6
def test_an_ipv6_address_that_is_taken_is_named_in_brackets():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=rf"\[::1\]:{port}: another program does already"):
            bind(ServerConfig(host=("127.0.0.1", "::1"), port=port))


def two_families(monkeypatch: pytest.MonkeyPatch, ipv6: str = "2001:db8::1") -> None:
    """A name that stands for an IPv6 address that this machine has not, and for 127.0.0.1."""
    infos = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ipv6, 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)


def test_a_name_is_served_on_those_of_its_addresses_that_there_are(monkeypatch: pytest.MonkeyPatch):
    two_families(monkeypatch)
    with bound_to("box") as bound:
        assert [one.getsockname()[0] for one in bound] == ["127.0.0.1"]


def test_an_address_that_is_not_there_is_named():
    with pytest.raises(StartupError, match=r"\[2001:db8::1\]:8080: this machine has no"):
        bind(ServerConfig(host=("127.0.0.1", "2001:db8::1")))
