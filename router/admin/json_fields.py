"""The few fields that are read of a large JSON body, found while it comes in: nothing of it is copied, and
none of the rest is decoded.

Small bodies are left to the parser. So is whatever is no JSON object on the outside: the parser says best
what is wrong with it. What is wrong further inside is for the child to say."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Final

from router.proxy import Body

#: Up to here the parser is faster than it matters: about 0.1 ms.
SMALL_BYTES: Final = 64 << 10
#: A longer name is none of ours, and a longer value none that any of them may have.
LONGEST_NAME_BYTES: Final = 256
LONGEST_VALUE_BYTES: Final = 64 << 10
#: No request is as deep.
DEEPEST: Final = 500

#: What of a text comes before its end, or before the end of the piece. The next two are matched again and
#: again until nothing more comes of it: possessive groups would say it in one, but before Python 3.11.5 they
#: also take what only begins like them (CPython's gh-106052), and others remember each turn.
_TEXT: Final = re.compile(rb'(?:[^"\\]++|\\.){0,256}', re.DOTALL)
#: Within a value, all up to a bracket or a text that is not whole in this piece: the innermost lists and
#: objects are taken in one step, as there may be millions.
_FLAT: Final = rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")'
_INSIDE: Final = re.compile(rb"(?:%b|\[%b{0,256}\]|\{%b{0,256}\}){0,256}" % (_FLAT, _FLAT, _FLAT), re.DOTALL)
_BLANK: Final = re.compile(rb"[ \t\r\n]*+")
_PLAIN: Final = re.compile(rb'[^ \t\r\n,:"{}\[\]]++')


class _At(Enum):
    """What comes next in the outermost object."""

    START = auto()
    NAME_OR_END = auto()
    NAME = auto()
    COLON = auto()
    VALUE = auto()
    PLAIN = auto()  # within a number, true, false or null
    NEXT = auto()
    END = auto()
    LOST = auto()  # no JSON object


class JsonFields:
    """`feed` each piece of a body, then ask for its `text`."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_large = False
        self._at = _At.START
        self._depth = 0  # of brackets within a value
        self._in_text = False
        self._is_escaped = False  # the piece before ended with the backslash of a text
        self._name = bytearray()
        self._is_name = False  # the text is a name
        self._wanted: str | None = None
        self._value = bytearray()
        self._found: dict[str, bytes] = {}

    def feed(self, piece: bytes) -> None:
        if self._is_large:
            self._scan(piece)
            return
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes > SMALL_BYTES:
            self._is_large = True
            for held in self._held:
                self._scan(held)
            self._held.clear()

    def text(self, body: Body) -> bytes:
        """A JSON object with these fields as they stand in `body`: itself, or a short one. Of a name that
        occurs twice the last counts, as for every parser of ours and of llama-server's.
        """
        if not self._is_large or self._at is not _At.END:
            return body.joined()
        return b"{" + b",".join(b'"%b":%b' % (n.encode(), v) for n, v in self._found.items()) + b"}"

    # --- one piece ---

    def _scan(self, data: bytes) -> None:
        at, size = 0, len(data)
        while at < size:
            if self._in_text:
                at = self._through_text(data, at)
            elif self._depth:
                at = self._through_value(data, at)
            elif self._at is _At.LOST:
                return
            else:
                at = self._outside(data, at)

    def _through_text(self, data: bytes, at: int) -> int:
        begun = at
        if self._is_escaped:
            self._is_escaped = False
            at += 1
        end = _end_of_text(data, at)
        if end == len(data):
            self._keep(data, begun, end)
            return end
        if data[end] == 0x5C:  # the backslash is the last byte of the piece
            self._is_escaped = True
            self._keep(data, begun, end + 1)
            return end + 1
        self._in_text = False
        if self._is_name:
            self._keep(data, begun, end)
            self._end_name()
        else:
            self._keep(data, begun, end + 1)
            if not self._depth:
                self._end_value()
        return end + 1

    def _through_value(self, data: bytes, at: int) -> int:
        end = _through(_INSIDE, data, at)
        if end == len(data):
            self._keep(data, at, end)
            return end
        self._keep(data, at, end + 1)
        match data[end : end + 1]:
            case b'"':
                self._in_text, self._is_name = True, False
            case b"{" | b"[":
                self._depth += 1
                if self._depth > DEEPEST:
                    self._at, self._depth = _At.LOST, 0
            case _:
                self._depth -= 1
                if not self._depth:
                    self._end_value()
        return end + 1

    def _outside(self, data: bytes, at: int) -> int:
        """One step in the outermost object."""
        if self._at is _At.PLAIN:
            return self._through_plain(data, at)
        blank = _BLANK.match(data, at)
        at = blank.end() if blank is not None else at
        if at == len(data):
            return at
        match self._at, data[at : at + 1]:
            case _At.START, b"{":
                self._at = _At.NAME_OR_END
            case ((_At.NAME_OR_END | _At.NAME), b'"'):
                self._in_text = self._is_name = True
                self._name.clear()
            case ((_At.NAME_OR_END | _At.NEXT), b"}"):
                self._at = _At.END
            case _At.NEXT, b",":
                self._at = _At.NAME
            case _At.COLON, b":":
                self._at = _At.VALUE
            case _At.VALUE, b'"':
                self._in_text, self._is_name = True, False
                self._keep(data, at, at + 1)
            case _At.VALUE, (b"{" | b"["):
                self._depth = 1
                self._keep(data, at, at + 1)
            case _At.VALUE, byte if byte not in b",:}]":
                self._at = _At.PLAIN
                return at
            case _:
                self._at = _At.LOST
        return at + 1

    def _through_plain(self, data: bytes, at: int) -> int:
        found = _PLAIN.match(data, at)
        end = found.end() if found is not None else at
        self._keep(data, at, end)
        if end < len(data):
            self._end_value()
        return end

    def _keep(self, data: bytes, start: int, end: int) -> None:
        if self._is_name:
            self._keep_name(data[start : min(end, start + LONGEST_NAME_BYTES)])
        elif self._wanted is not None:
            self._value += data[start : min(end, start + LONGEST_VALUE_BYTES)]
            if len(self._value) > LONGEST_VALUE_BYTES:
                self._at, self._wanted = _At.LOST, None

    def _keep_name(self, part: bytes) -> None:
        if len(self._name) <= LONGEST_NAME_BYTES:
            self._name += part

    def _end_name(self) -> None:
        self._is_name, self._at = False, _At.COLON
        self._wanted = None
        self._value.clear()
        try:
            name = json.loads(b'"%b"' % bytes(self._name)) if len(self._name) <= LONGEST_NAME_BYTES else ""
        except ValueError:
            self._at = _At.LOST
            return
        if name in self._names:
            self._wanted = name

    def _end_value(self) -> None:
        if self._wanted is not None:
            self._found[self._wanted] = bytes(self._value)
        if self._at is not _At.LOST:
            self._at = _At.NEXT


def _end_of_text(data: bytes, at: int) -> int:
    """Where its quotation mark stands, or the backslash that is the last byte, or the end of the piece."""
    end = data.find(b'"', at)
    end = len(data) if end < 0 else end
    if data.find(b"\\", at, end) < 0:
        return end  # an image: many times as fast as by the expression
    return _through(_TEXT, data, at)


def _through(pattern: re.Pattern[bytes], data: bytes, at: int) -> int:
    """Where what it matches ends, however often it does."""
    while True:
        found = pattern.match(data, at)
        assert found is not None, "it matches nothing at all, too"
        if found.end() == at:
            return at
        at = found.end()
