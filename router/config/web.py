"""What `server.cors_origins` and `server.allowed_hosts` may name, and how a browser's Origin and Host are
compared with them.

An origin is scheme, host and port (RFC 6454); its host may be a program's own (app://obsidian.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Self, TypeAlias

IpAddress: TypeAlias = IPv4Address | IPv6Address

_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._~*-]*)(?::([0-9]{1,5}|\*))?")
_HOST: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)(?:%[0-9A-Za-z._~%-]+)?\]|([A-Za-z0-9._-]+))(?::[0-9]{0,5})?"
)
_HOST_PATTERN: Final = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a web page comes from. `port` "" is the scheme's own."""

    scheme: str
    host: str
    port: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError for what is no origin; "null" is none."""
        found = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
        if found is None:
            raise ValueError(f"{text[:80]!a} is no origin")
        scheme, host, port = found[1], found[2], found[3] or ""
        if not host and scheme != "file":
            raise ValueError(f"{text[:80]!a} names no host")
        if host.startswith("["):  # in the one form that browsers send
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        if port.isdigit():
            if int(port) > 65535:
                raise ValueError(f"{text[:80]!a} has a port above 65535")
            port = str(int(port))
        return cls(scheme, host, "" if port == _DEFAULT_PORTS.get(scheme) else port)


@dataclass(frozen=True, slots=True)
class OriginPattern:
    """One entry of `server.cors_origins`: "*", an origin, or one with a * for its host, for the subdomains of
    its host, or for its port. `is_wide`: it names no page, but all of them, or all of a scheme."""

    origin: Origin | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, with what would be an origin, for what no page could match."""
        if text == "*":
            return cls(None)
        if text.lower() == "null":
            raise ValueError('any page can make its origin "null"; "*" allows all pages')
        scheme, separator, rest = text.partition("://")
        if not separator:
            raise ValueError(f'{text!r} has no scheme; an origin is written "http://{text or "localhost"}"')
        if "/" in rest or "?" in rest or "#" in rest:
            bare = f"{scheme}://{re.split('[/?#]', rest)[0]}"
            raise ValueError(f'{text!r} has a path; browsers send only "{bare}"')
        if not text.isascii():
            raise ValueError(f"{text!r}: browsers send the host in ASCII (xn--...)")
        try:
            origin = Origin.parse(text)
        except ValueError as error:
            raise ValueError(f'{text!r} is no origin like "https://chat.example:3000"') from error
        if origin.host == "*":
            return cls(origin if origin.port else Origin(origin.scheme, "*", "*"))
        if "*" in origin.host.removeprefix("*.") or origin.host == "*.":
            raise ValueError(
                f"{text!r}: a * stands for a host (app://*), the subdomains of a host "
                "(https://*.example.com) or the port (http://localhost:*)"
            )
        return cls(origin)

    @property
    def is_wide(self) -> bool:
        return self.origin is None or self.origin.host == "*"

    def matches(self, origin: Origin) -> bool:
        own = self.origin
        if own is None:
            return True
        is_host = own.host in ("*", origin.host)
        if own.host.startswith("*."):
            is_host = origin.host.endswith(own.host[1:])
        return own.scheme == origin.scheme and is_host and own.port in ("*", origin.port)


def host_of(value: str) -> str:
    """The host that a Host header or the authority of a URL names: in lower case, without port and final dot;
    an IP address in its usual form, without brackets and zone. Raises ValueError."""
    found = _HOST.fullmatch(value)
    if found is None:
        raise ValueError(f"{value[:80]!a} is no host with or without a port")
    if found[1] is not None:
        return str(unmapped(IPv6Address(found[1])))
    name = found[2].lower().removesuffix(".")
    if not all(name.split(".")):
        raise ValueError(f"{value[:80]!a} is no host with or without a port")
    return name


def ip_of(name: str) -> IpAddress | None:
    """`name` as an IP address; None: it is a name."""
    try:
        return unmapped(ip_address(name))
    except ValueError:
        return None


def unmapped(address: IpAddress) -> IpAddress:
    """::ffff:127.0.0.1 is how a socket for both families shows 127.0.0.1."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped if mapped is not None else address


def host_pattern(text: str) -> str:
    """An entry of `server.allowed_hosts` as it is compared: a name, an IP address, "*.example.com" for the
    names below one, or "*". Raises ValueError."""
    lower = text.lower() if text == "*." else text.lower().removesuffix(".")
    address = ip_of(lower.removeprefix("[").removesuffix("]"))
    if address is not None:
        return str(address)
    if "://" in lower or "/" in lower:
        raise ValueError(f"{text!r} is an address of a page; write the name of the host alone")
    name, colon, port = lower.rpartition(":")
    if colon and port.isdigit():
        raise ValueError(f'{text!r} has a port, which is not compared; write "{name}"')
    if lower.startswith("."):
        raise ValueError(f'{text!r}: names below a host are written "*{lower}"')
    if not _HOST_PATTERN.fullmatch(lower):
        raise ValueError(f'{text!r} is no name of a host, like "llm.example" or "*.llm.example"')
    return lower


def is_socket_path(host: str) -> bool:
    """Whether this entry of `server.host` is the path of a Unix socket."""
    return host.endswith(".sock")


def listen_address(text: str) -> str:
    """An entry of `server.host`, without the brackets of an IPv6 address. Raises ValueError."""
    if not text:
        raise ValueError('an address is empty; "0.0.0.0" and "::" are all of this machine')
    if "://" in text:
        raise ValueError(f"{text!r} is an address of a page; write the host alone")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    address = ip_of(bare)
    if address is not None and "%" not in text:
        return str(address)
    if is_socket_path(bare):
        return bare
    if "/" in bare:
        raise ValueError(f"{text!r}: the path of a Unix socket ends in .sock")
    if bare.count(":") > 1 and not bare.startswith("[") and not bare.endswith("]"):
        return bare
    if text.startswith("[") != ("]" in text):
        raise ValueError(f'{text!r} has one bracket of two; IPv6 is written "::1" or "[::1]"')
    if ":" in bare:
        raise ValueError(f"{text!r} has a port; the port is a key of its own (server.port, --port)")
    return bare


def listen_addresses(host: str | Iterable[str]) -> tuple[str, ...]:
    """Each address of `server.host` once: a text, where commas separate several, or a list of such. Raises
    ValueError."""
    given = (host,) if isinstance(host, str) else tuple(host)
    parts = [part.strip() for text in given for part in text.split(",")]
    if not parts:
        raise ValueError('a list without an address; "127.0.0.1" is this machine alone')
    return tuple(dict.fromkeys(map(listen_address, parts)))
