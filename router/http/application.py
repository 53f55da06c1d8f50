"""Requests that are not proxied, passed to the aiohttp application: to aiohttp's own protocol, as if it had
the connection for itself. Only what asyncio defines lies between the two (`asyncio.Protocol`,
`asyncio.Transport`).

The protocol is given the bytes of one request at a time. That its answer is complete is learnt from its
access logger (`AnswerNotifier`), which aiohttp calls behind the last byte of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from router.errors import RouterError
from router.http.head import RequestHead

if TYPE_CHECKING:
    from router.http.connection import ClientConnection


class ApplicationTransport(asyncio.Transport):
    """What aiohttp's protocol takes for its connection; and the current request of the real one while the
    application answers (router.http.connection.CurrentRequest)."""

    takes_framing = True

    def __init__(self, connection: ClientConnection, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._connection = connection
        self._protocol = protocol
        #: Whether anything of the current answer was written.
        self._has_written = False
        self._is_closing = False
        protocol.connection_made(self)

    # --- from the connection ---

    def begin(self, head: RequestHead, length: int | None, body: bytes | None) -> None:
        """Hand a request over. `body` None: it follows by `body_received`."""
        self._has_written = False
        length_line = b"" if length is None else b"Content-Length: %d\r\n" % length
        self._protocol.data_received(b"%b%b\r\n%b" % (head.lines, length_line, body or b""))

    def body_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def body_ended(self) -> None:
        """aiohttp finds the end itself."""

    def body_failed(self, error: RouterError) -> bool:
        if self._has_written:
            return False
        self._is_closing = True  # what the application still answers goes nowhere
        self._connection.refuse(error)
        return True

    def client_lost(self) -> None:
        """aiohttp's protocol learns it by `connection_lost`."""

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closing = True
        self._protocol.connection_lost(error)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # --- from aiohttp (asyncio.Transport) ---

    def answered(self, *, keeps_alive: bool) -> None:
        """The answer is written; without `keeps_alive` aiohttp closes this transport next."""
        if keeps_alive and not self._is_closing:
            self._connection.answered(keeps_alive=True)

    def write(self, data: Any) -> None:
        self._has_written = True
        if not self._is_closing and (transport := self._open()) is not None:
            transport.write(data)

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self._has_written = True
        if not self._is_closing and (transport := self._open()) is not None:
            transport.writelines(list_of_data)

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._connection.close()

    def abort(self) -> None:
        self._is_closing = True
        self._connection.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._open() is None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        transport = self._connection.transport
        return default if transport is None else transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._connection.pause_reading("application")

    def resume_reading(self) -> None:
        self._connection.resume_reading("application")

    def is_reading(self) -> bool:
        transport = self._connection.transport
        return transport is not None and transport.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The connection's own stay."""

    def get_write_buffer_size(self) -> int:
        transport = self._connection.transport
        return 0 if transport is None else transport.get_write_buffer_size()

    def can_write_eof(self) -> bool:
        return False

    def _open(self) -> asyncio.Transport | None:
        transport = self._connection.transport
        return transport if transport is not None and not transport.is_closing() else None


class AnswerNotifier(AbstractAccessLogger):
    """Tells the transport of a request that its answer is complete. The log itself is written by the
    application's own middleware, which also sees clients that disconnect."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        if isinstance(request.transport, ApplicationTransport):
            request.transport.answered(keeps_alive=bool(response.keep_alive))
