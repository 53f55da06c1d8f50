"""One answer on its way from an instance to a client: read as far as its framing, passed on as it comes, and
held back while the client does not read it."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

import msgspec

from router.engines.llama_server import RESTATED_BYTES, RESTATED_STATUS, restated
from router.proxy.client import ClientResponse
from router.proxy.framing import Chunked, Counted, Framing, Malformed, Spans, UntilClosed
from router.proxy.heads import END_OF_HEAD, HEAD_LIMIT, Head, changed, read_head
from router.proxy.info import RequestStats
from router.proxy.upstream import ClosedEarly, Upstream
from router.proxy.usage import HeadTailBuffer
from router.supervisor.stall import InstanceTraffic

#: Of the body's last bytes these many show whether an event was whole; with the line end that ends a chunk.
_LAST_BYTES: Final = 4
_ENDS_OF_EVENTS: Final = (b"\n\n", b"\r\n\r\n", b"\n\n\r\n")
#: What llama-server sends in a stream before it generates: pings, and what `return_progress` asks for.
_PINGS: Final = (b":\n\n", b":\n\n\r\n")
_PROGRESS: Final = b'"prompt_progress"'
#: The most that is kept of a refusal that is to become an event.
REJECTION_BYTES: Final = 64 << 10


#: Until something of a body has passed.
_NOTHING: Final = HeadTailBuffer()


def _ignore() -> None:
    """Stands for a callback that is not wanted any more."""


class Answer(msgspec.Struct, eq=False):
    """Listens to its `upstream`, and calls `begun` once the head has come, `over` once nothing more will
    come; `error` is set then, unless the answer is complete. `asked_at` is monotonic time.
    """

    _upstream: Upstream
    _client: ClientResponse
    _account: RequestStats
    _flow: InstanceTraffic
    _over: Callable[[], object]
    _asked_at: float
    _begun: Callable[[], object] = _ignore
    head: Head | None = None
    rejection: bytearray | None = None
    error: Exception | None = None
    can_reuse: bool = False
    has_data: bool = False
    _unread: bytes = b""
    _framing: Framing | None = None
    _chunks: Chunked | None = None  # the framing, where chunks can pass as they are
    _ends: HeadTailBuffer = _NOTHING
    _last: bytes = b""
    _failure: bytearray | None = None  # the body of an answer that may have to be restated, and its head
    _is_held: bool = False
    _is_settled: bool = False

    @property
    def ends_an_event(self) -> bool:
        """Whether what passed last is whole: else more of ours would become a part of it."""
        return not self._last or self._last.endswith(_ENDS_OF_EVENTS)

    @property
    def has_generated(self) -> bool:
        """Whether what passed last is more than a sign that the prompt is being processed."""
        latest = self._ends.latest
        return bool(latest) and not latest.endswith(_PINGS) and _PROGRESS not in latest

    def has_last(self, event: bytes) -> bool:
        """Whether what passed last is this short event, of at most as many bytes as are kept."""
        return self._last.endswith(event)

    def end(self) -> None:
        """Pass nothing more on, and call nothing back."""
        self._is_settled = True
        self._over = self._begun = _ignore  # the request holds this answer, and is not to be held by it
        if self._is_held:
            self._note_drained()
            self._client.on_drain(None)

    # --- from the upstream ---

    def received(self, data: bytes, out: bytes = b"") -> None:
        """`out` goes to the client before it."""
        # The usual case of a stream, as short as it can be: one event after another passes here.
        if self._chunks is not None and (size := self._chunks.whole_chunk(data)) > _LAST_BYTES:
            self._flow.moved_bytes += size
            self._account.sent_bytes += size
            self._ends.passed(data)
            self._last = data
            if self._client.write(out + data):
                self._hold()
            return
        self.has_data = True
        if self._framing is not None:
            self._take(out, data, self._framing)
            return
        try:
            found = self._find_head(data)
        except Malformed as error:
            self._fail(error)
        else:
            if found is not None:
                self.begin(*found)

    def begin(self, head: Head, data: bytes) -> None:
        """All of the `head` has come, and `data` behind it."""
        self.has_data = True
        self._begun()
        out = self._take_head(head)
        self._frame(head)
        self.received(data, out)

    def lost(self, error: Exception | None) -> None:
        framing = self._framing
        if framing is not None and framing.ends_with_connection and error is None:
            framing.is_over = True
            if self._client.takes_chunks and self.rejection is None:
                self._client.end()
            self._finish()
        else:
            self._fail(error or ClosedEarly("it closed the connection"))

    # --- step by step ---

    def _take(self, out: bytes, data: bytes, framing: Framing) -> None:
        """`out` goes before what `data` has of the body."""
        self._flow.moved_bytes += len(data)
        if not data and not framing.is_over:
            if out:
                self._client.write(out)
            return
        try:
            spans, taken = framing.feed(data) if data else ([], 0)
        except Malformed as error:
            if out:  # what is told of it comes behind the head
                self._client.write(out)
            self._fail(error)
            return
        self._pass_on(out, data, spans, framing)
        if framing.is_over:
            self.can_reuse = isinstance(framing, Counted) and taken == len(data)
            self._finish()
        elif self._client.is_full and self.rejection is None:
            self._hold()

    def _pass_on(self, out: bytes, data: bytes, spans: Spans, framing: Framing) -> None:
        self._ends.passed(data)
        for start, end in spans:
            self._account.sent_bytes += end - start
        if spans:
            start, end = spans[-1]
            passed = data[max(start, end - _LAST_BYTES) : end]
            self._last = passed if len(passed) == _LAST_BYTES else self._last[-_LAST_BYTES:] + passed
        if self.rejection is not None:
            for start, end in spans:
                self.rejection += data[start : min(end, start + REJECTION_BYTES - len(self.rejection))]
            return
        if self._failure is not None:
            self._failure += b"".join([data[start:end] for start, end in spans])
            if framing.is_over:
                self._restate(self._failure)
            return
        client = self._client
        is_fit = framing.is_verbatim and client.takes_chunks
        body = data if is_fit else client.framed(data, spans, framing)
        said = out + body if out else body
        if not said:
            return
        if framing.is_over:
            client.write_last(said)
        else:
            client.write(said)

    def _find_head(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head, and what came behind it."""
        while True:
            unread = self._unread + data if self._unread else data
            end = unread.find(END_OF_HEAD)
            if end < 0:
                if len(unread) > HEAD_LIMIT:
                    raise Malformed("its head never ends")
                self._unread = unread
                return None
            self._unread = b""
            end += len(END_OF_HEAD)
            head, data = read_head(unread[:end]), unread[end:]
            if head.status >= 200:
                return head, data
            self._client.interim(head)

    def _take_head(self, head: Head) -> bytes:
        """What goes to the client of it."""
        self.head = head
        self._account.first_byte_seconds = monotonic() - self._asked_at
        if not self._client.is_early:
            if head.status == RESTATED_STATUS and 0 < (head.counted_bytes or 0) <= RESTATED_BYTES:
                self._failure = bytearray()
                return b""
            return self._client.head(head)
        if head.status != 200 or not head.is_event_stream or head.is_encoded:
            self.rejection = bytearray()
        return b""

    def _restate(self, body: bytearray) -> None:
        assert self.head is not None, "its body has been read"
        status, said = restated(self.head.status, bytes(body))
        head = self.head if status == self.head.status else changed(self.head, status, len(said))
        self._failure = None
        self._client.write_last(self._client.head(head) + said)

    def _frame(self, head: Head) -> None:
        framing: Framing
        if self._client.is_head_request or head.status in (204, 304):
            framing = Counted(0)
        elif head.is_chunked:
            framing = Chunked()
            self._chunks = framing if self._client.takes_chunks and self.rejection is None else None
        elif head.length is not None:
            framing = Counted(head.length)
        else:
            framing = UntilClosed()
        self._framing, self._ends = framing, HeadTailBuffer()

    def _finish(self) -> None:
        has_sent_all = self._upstream.end()
        self.can_reuse = self.can_reuse and has_sent_all
        self._ends.note(self._account)
        self._settle()

    def _fail(self, error: Exception) -> None:
        self.error = error
        if self._failure is not None and self.head is not None:
            self._client.write(self._client.head(self.head) + bytes(self._failure))
            self._failure = None
        self._upstream.close()
        self._settle()

    def _settle(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            over, self._over = self._over, _ignore
            over()

    # --- a client that reads slowly ---

    def _hold(self) -> None:
        if not self._is_held:
            self._is_held = True
            self._flow.held += 1
            self._upstream.pause()
            self._client.on_drain(self._on_drain)

    def _on_drain(self) -> None:
        self._note_drained()
        if not self._is_settled:
            self._upstream.resume()

    def _note_drained(self) -> None:
        self._is_held = False
        self._flow.held -= 1
