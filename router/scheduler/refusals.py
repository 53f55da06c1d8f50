"""The scheduler's refusals in words and numbers, so that whoever reads one knows what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from router.errors import (
    LoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoRoom,
    QueueFull,
    RouterError,
    SettingsConflict,
    ShuttingDown,
    Unloaded,
    WaitTimeout,
)
from router.scheduler.state import Record, SchedulerState, Waiter
from router.scheduler.types import DeviceId, Footprint, Placement

#: Retry-After when nothing better is known, in seconds.
RETRY_SECONDS = 10.0
#: Names listed in a refusal at most.
NAMES_SHOWN = 20


def closed() -> ShuttingDown:
    return ShuttingDown("the router is shutting down", retry_after_seconds=5.0)


def gib(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.1f} GiB" if bytes_ >= 2**30 // 10 else f"{bytes_ / 2**20:.0f} MiB"


def unknown(name: str, known: Iterable[str]) -> ModelNotFound:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return ModelNotFound(f"model {name!r} not found.{hint} Models: {shown or 'none'}")


def too_large(state: SchedulerState, record: Record) -> RouterError:
    ways = (
        "; or ".join(_need_words(state, place) for place in record.wanted.placements)
        or "no device can run it"
    )
    return ModelTooLarge(
        f"{record.model.name} does not fit this machine: {ways}. "
        "Use a smaller quantisation or context (ctx_size), or allow more devices."
    )


def full(state: SchedulerState, record: Record, place: Placement) -> RouterError:
    residents = [one for one in state.instances.values() if not one.is_leaving]
    names = ", ".join(
        sorted({one.model.name + (" (pinned)" if state.is_pinned(one) else "") for one in residents})
    )
    limit = state.settings.models_max
    count = f" {len(residents)} of at most {limit} models are loaded." if limit else ""
    return NoRoom(
        f"no room for {record.model.name}: {_need_words(state, place)}.{count} Nothing may leave for it "
        f"under the policy {state.policy.name!r}; resident: {names or 'none'}. Unload one, or retry later.",
        retry_after_seconds=RETRY_SECONDS,
    )


def held_by_others(state: SchedulerState, place: Placement) -> RouterError:
    return NoRoom(
        f"no room: {_need_words(state, place)}. Other programs hold the memory; retry once they freed it.",
        retry_after_seconds=RETRY_SECONDS,
    )


def queue_full(limit: int) -> RouterError:
    return QueueFull(
        f"{limit} requests are waiting already (scheduler.queue_limit); retry later.",
        retry_after_seconds=RETRY_SECONDS,
    )


def timed_out(waiter: Waiter, now: float, waited_for: str) -> RouterError:
    return WaitTimeout(
        f"{waiter.model} was not available within {now - waiter.since:.0f} s: {waited_for}",
        retry_after_seconds=RETRY_SECONDS,
    )


def load_failed(name: str, error: RouterError | None, retry_after: float) -> RouterError:
    cause = error.message if error is not None else "its llama-server ended before it was ready"
    return LoadFailed(
        f"{name} failed to load: {cause}",
        retry_after_seconds=retry_after,
        details=error.details if error is not None else None,
    )


def backing_off(record: Record, now: float) -> RouterError:
    retry_after = max(0.0, (record.retry_at or now) - now)
    cause = record.last_error.message if record.last_error is not None else "its llama-server ended"
    times = "once" if record.failures == 1 else f"{record.failures} times in a row"
    return LoadFailed(
        f"{record.model.name} failed {times}; the next try is in {retry_after:.0f} s. Last: {cause}",
        retry_after_seconds=retry_after,
        details=record.last_error.details if record.last_error is not None else None,
    )


def settings_conflict(name: str) -> RouterError:
    return SettingsConflict(
        f"{name} is loaded, or about to be, with other settings; unload it first: "
        f'POST /models/unload {{"model": "{name}"}}'
    )


def unloaded(name: str) -> RouterError:
    return Unloaded(f"{name} was unloaded by an operator while the request waited", retry_after_seconds=1.0)


def _need_words(state: SchedulerState, place: Placement) -> str:
    devices = " and ".join(_device_words(state, device, place.footprint) for device in place.footprint)
    return f"needs {gib(sum(place.footprint.values()))}; {devices}"


def _device_words(state: SchedulerState, device: DeviceId, footprint: Footprint) -> str:
    known = state.ledger.devices.get(device)
    if known is None:
        return f"{device} is not there"
    name = known.label or device
    if device in state.ledger.free and state.ledger.free[device] is None:
        return f"{name} is not healthy"
    others = state.ledger.others(device) or 0
    share = f" (of which {gib(footprint[device])} on {name})" if len(footprint) > 1 else ""
    margin = gib(known.margin)
    return f"{name} has {gib(known.total)}, {margin} margin, {gib(others)} used by other programs{share}"
