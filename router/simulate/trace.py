"""A trace: requests of clients that wait for their answers, as values and as JSONL.

One line per request, with the fields of the Mooncake traces (`timestamp` and `delay` in ms, `input_length`,
`output_length`, `session_id`) plus ours (`model`, `client`, `kind`, `id`, `after`, `cancel`, `patience`). A
line with `after` is sent `delay` ms after the request of that id ended: that is how closed loops are
written; its `timestamp` is what it would be on an idle machine. Lines with `device` or `gib` describe the
machine. Lines with `event` are a router's journal, as `llama-router journal --export` writes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import msgspec

from router.errors import StartupError
from router.scheduler.types import ModelName
from router.simulate.machine import GIB, MACHINES, Machine, Spec, card
from router.text_file import NotText, read_text_file

DEFAULT_MACHINE: Final = "home"
JOURNAL_INPUT_TOKENS: Final = 600
JOURNAL_OUTPUT_TOKENS: Final = 250
#: The codes with which a router refuses what it could not load on an empty machine either.
_NEVER_LOADED: Final = frozenset(("model_not_found", "model_unusable", "model_too_large", "invalid_request"))


@dataclass(frozen=True, slots=True)
class Request:
    """One request; seconds and tokens. `id` is its place in the trace.

    Sent at `timestamp`, or `delay` seconds after request `after` ended, however it ended. `patience`: the
    client gives up if it has no first token by then. `cancel`: it hangs up that long after sending in any
    case (an editor whose user typed on). `session`: requests of one session share a growing prefix, which
    an instance that served the last one need not read again.
    """

    id: int
    client: str
    model: ModelName
    timestamp: float
    input_length: int
    output_length: int
    kind: str = ""
    after: int | None = None
    delay: float = 0.0
    patience: float | None = None
    cancel: float | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests on a machine; none is sent after `seconds`. Request n stands at place n and follows only
    earlier ones."""

    name: str
    machine: Machine
    requests: tuple[Request, ...]
    seconds: float

    def popularity(self) -> Mapping[ModelName, float]:
        """Share of the requests that each model of the machine gets."""
        counts = Counter(request.model for request in self.requests)
        return {s.name: counts[s.name] / max(1, len(self.requests)) for s in self.machine.specs}


class RequestLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A request on the wire; milliseconds. `hash_ids` of foreign traces is accepted and not used."""

    timestamp: float | None = None
    input_length: int = JOURNAL_INPUT_TOKENS
    output_length: int = JOURNAL_OUTPUT_TOKENS
    model: str = ""
    client: str = ""
    kind: str = ""
    id: int | None = None
    after: int | None = None
    delay: float | None = None
    patience: float | None = None
    cancel: float | None = None
    session_id: str | None = None
    hash_ids: list[int] | None = None


Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class DeviceLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: str
    gib: Positive
    margin_gib: NotNegative = 0.5


class ModelLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    gib: Positive
    slots: Annotated[int, msgspec.Meta(ge=1)] = 4
    prefill_rate: Positive | None = None
    decode_rate: Positive | None = None
    load_seconds: NotNegative | None = None


class JournalLine(msgspec.Struct, frozen=True):
    """What is read of a journal line; `now` in seconds of the router's clock. All other fields are
    passed over."""

    event: str
    now: float
    model: str = ""
    lease: str = ""
    size: float | None = None
    code: str | None = None


@dataclass(slots=True)
class _Journaled:
    """One request of a journal: when it was asked, granted and over, and why it was refused, as far as the
    journal says."""

    line: JournalLine
    granted: float | None = None
    released: float | None = None
    refused: str | None = None


def write_trace(trace: Trace, path: Path) -> None:
    """Write the machine's devices and models, then the requests, one JSON object per line."""
    lines: list[DeviceLine | ModelLine | RequestLine] = [
        DeviceLine(d.id.partition("/")[2], d.total / GIB, d.margin / GIB) for d in trace.machine.devices
    ]
    lines += [
        ModelLine(s.name, s.size_bytes / GIB, s.slots, s.prefill_rate, s.decode_rate, s.load_seconds)
        for s in trace.machine.specs
    ]
    lines += [_to_line(request) for request in trace.requests]
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_trace(path: Path, minutes: float | None = None) -> Trace:
    """Read a trace or a journal. What lies beyond `minutes` is left out; without it the trace ends with its
    last request.

    A file without devices runs on the machine "home". Models that the machine does not know play the part
    of its models in the order of popularity: most requested as first. Raises StartupError naming the line
    that cannot be read.
    """
    devices: list[DeviceLine] = []
    models: list[ModelLine] = []
    requests: list[Request] = []
    journal: dict[str, _Journaled] = {}
    for number, line in _read_lines(path):
        match line:
            case DeviceLine():
                devices.append(line)
            case ModelLine():
                models.append(line)
            case RequestLine():
                requests.append(_from_line(line, requests, f"{path}:{number}"))
            case JournalLine():
                _note(line, journal)
    journaled = [one for one in journal.values() if one.refused not in _NEVER_LOADED]
    if not requests and not journaled:
        raise StartupError(f"{path}: no requests: neither trace lines nor Acquire events of a journal")
    machine = _machine(devices, models, path)
    requests += _from_journal(journaled, machine, len(requests))
    start = min(request.timestamp for request in requests)
    shifted = [replace(request, timestamp=request.timestamp - start) for request in requests]
    seconds = max(request.timestamp for request in shifted) + 1.0
    named = _adopt_names(shifted, machine)
    return Trace(path.name, machine, tuple(named), seconds if minutes is None else minutes * 60.0)


def _read_lines(path: Path) -> Iterator[tuple[int, DeviceLine | ModelLine | RequestLine | JournalLine]]:
    try:
        text = read_text_file(path)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from error
    except NotText as error:
        raise StartupError(f"{path}: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, _decode(line)
            except (msgspec.DecodeError, TypeError) as error:
                raise StartupError(f"{path}:{number}: {error}") from error
            except RecursionError as error:
                raise StartupError(f"{path}:{number}: JSON is nested too deeply") from error


def _decode(line: str) -> DeviceLine | ModelLine | RequestLine | JournalLine:
    fields = msgspec.json.decode(line)
    if not isinstance(fields, dict):
        raise TypeError("expected a JSON object")
    if "event" in fields:
        return msgspec.convert(fields, JournalLine)
    if "device" in fields:
        return msgspec.convert(fields, DeviceLine)
    if "gib" in fields:
        return msgspec.convert(fields, ModelLine)
    return msgspec.convert(fields, RequestLine)


def _to_line(request: Request) -> RequestLine:
    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * 1000.0

    return RequestLine(
        timestamp=ms(request.timestamp),
        input_length=request.input_length,
        output_length=request.output_length,
        model=request.model,
        client=request.client,
        kind=request.kind,
        id=request.id,
        after=request.after,
        delay=ms(request.delay) if request.after is not None else None,
        patience=ms(request.patience),
        cancel=ms(request.cancel),
        session_id=request.session,
    )


def _from_line(line: RequestLine, before: list[Request], where: str) -> Request:
    """A line with `delay` and `session_id` but no `after` follows the last request of its session, as in
    foreign traces."""

    def seconds(ms: float | None) -> float | None:
        return None if ms is None else ms / 1000.0

    if line.id is not None and line.id != len(before):
        raise StartupError(f"{where}: id {line.id}, but this is request {len(before)}")
    after = line.after
    if after is None and line.delay is not None and line.session_id is not None:
        after = next((r.id for r in reversed(before) if r.session == line.session_id), None)
    if after is not None and not 0 <= after < len(before):
        raise StartupError(f"{where}: follows request {after}, which does not stand before it")
    delay = (line.delay or 0.0) / 1000.0
    if line.timestamp is not None:
        timestamp = line.timestamp / 1000.0
    else:
        timestamp = before[after].timestamp + delay if after is not None else 0.0
    return Request(
        id=len(before),
        client=line.client or line.session_id or "",
        model=line.model,
        timestamp=timestamp,
        input_length=line.input_length,
        output_length=line.output_length,
        kind=line.kind,
        after=after,
        delay=delay,
        patience=seconds(line.patience),
        cancel=seconds(line.cancel),
        session=line.session_id,
    )


def _note(line: JournalLine, journal: dict[str, _Journaled]) -> None:
    known = journal.get(line.lease)
    match line.event:
        case "Acquire":
            journal[line.lease] = _Journaled(line)
        case "Grant" if known is not None:
            known.granted = line.now
        case "Refuse" if known is not None:
            known.refused = line.code
        case "Release" if known is not None:
            known.released = line.now


def _from_journal(journal: Iterable[_Journaled], machine: Machine, first_id: int) -> Iterator[Request]:
    """A journal knows which model was asked for and when, and how long each answer took; it replays as an
    open loop.

    1 answered: as many tokens as take that long, 2 its client gave up before it was granted: it is as patient
    again, 3 still running or refused: as long as `size` says, or as usual.
    """
    specs = machine.by_name()
    for number, one in enumerate(journal, first_id):
        line = one.line
        made = Request(number, line.lease, line.model, line.now, JOURNAL_INPUT_TOKENS, JOURNAL_OUTPUT_TOKENS,
                       kind="journal")  # fmt: skip
        if one.granted is not None and one.released is not None:
            # A stranger plays a part of this machine: its time is taken at the speed of the first one.
            spec = specs.get(line.model, machine.specs[0])
            yield _lasting(made, one.released - one.granted, spec)  # 1
        elif one.released is not None and one.refused is None:
            yield replace(made, patience=one.released - line.now)  # 2
        else:
            yield replace(made, output_length=max(1, round(line.size))) if line.size else made  # 3


def _lasting(request: Request, seconds: float, spec: Spec) -> Request:
    """With lengths that take so long: most of the time is decoding, unless it is too short for the prompt."""
    prompt = min(JOURNAL_INPUT_TOKENS, max(1, int(seconds * spec.prefill_rate)))
    rest = max(0.0, seconds - spec.prefill_seconds(prompt))
    return replace(request, input_length=prompt, output_length=max(1, round(rest * spec.decode_rate)))


def _machine(devices: Iterable[DeviceLine], models: Iterable[ModelLine], path: Path) -> Machine:
    machine = MACHINES[DEFAULT_MACHINE]
    cards = tuple(card(d.device, d.gib, d.margin_gib) for d in devices)
    specs = tuple(_spec(line) for line in models)
    if cards:
        machine = replace(machine, devices=cards)
    if specs:
        machine = replace(machine, specs=specs)
    try:
        machine.models()
    except ValueError as error:
        raise StartupError(f"{path}: {error}") from error
    return machine


def _spec(line: ModelLine) -> Spec:
    spec = Spec.of_size(line.model, line.gib, line.slots)
    return replace(
        spec,
        prefill_rate=line.prefill_rate or spec.prefill_rate,
        decode_rate=line.decode_rate or spec.decode_rate,
        load_seconds=line.load_seconds,
    )


def _adopt_names(requests: list[Request], machine: Machine) -> list[Request]:
    known = {spec.name for spec in machine.specs}
    asked = Counter(request.model for request in requests)
    strangers = [name for name, _ in asked.most_common() if name not in known]
    free = [spec.name for spec in machine.specs if spec.name not in asked] or [s.name for s in machine.specs]
    plays = {name: free[place % len(free)] for place, name in enumerate(strangers)}
    return [replace(r, model=plays.get(r.model, r.model)) for r in requests]
