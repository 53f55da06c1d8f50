"""Faults seeded into the core by hand, each with the tests that must catch it: `python -m
tests.scheduler.mutations [NAME...]`.

A fault is a replacement of exact text in one file of router/scheduler. It is put into a copy of the sources,
never into the checkout, and the tests named beside it are run there. A fault whose text is no longer found
is itself a failure: the list would otherwise rot in silence.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Fault:
    """`old` becomes `new` in router/scheduler/`file`; `tests` (files of tests/scheduler, with `-k` words)
    must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


ROOM, RULES, SWITCHING = "test_scenarios_room.py", "test_scenarios_rules.py", "test_scenarios_switching.py"
VARIED = "test_scenarios_varied.py"
LEDGER, VICTIMS, FORECAST = "test_ledger.py", "test_victims.py", "test_forecast.py"

FAULTS = (
    Fault(
        "load in a slower way whatever else there is",
        "ledger.py",
        "return [place for place in found if not place.is_fallback] or found",
        "return found",
        (ROOM,),
    ),
    Fault(
        "never load in a slower way",
        "ledger.py",
        "return [place for place in found if not place.is_fallback] or found",
        "return [place for place in found if not place.is_fallback]",
        (ROOM,),
    ),
    Fault(
        "admit one byte too much",
        "ledger.py",
        "if need > 0 and (room is None or need > room):",
        "if need > 0 and (room is None or need > room + 1):",
        (LEDGER,),
    ),
    Fault(
        "forget all devices but the first",
        "ledger.py",
        "        for device, need in footprint.items():\n            room = self.room(device, before=before)",
        "        for device, need in list(footprint.items())[:1]:\n"
        "            room = self.room(device, before=before)",
        (LEDGER,),
    ),
    Fault(
        "forget what is promised and not taken",
        "ledger.py",
        "            by_measure -= max(0, reserved - held.used.get(device, 0))",
        "            by_measure -= 0",
        (LEDGER,),
    ),
    Fault(
        "believe any measurement",
        "ledger.py",
        "        return min(by_measure, by_books)",
        "        return by_measure",
        (LEDGER,),
    ),
    Fault(
        "count the memory of the dead as free",
        "ledger.py",
        "            if expected:\n",
        "            if True:\n",
        (LEDGER,),
    ),
    Fault(
        "take an old measurement for a new one",
        "ledger.py",
        "if d in self.devices and at >= self._measured_at.get(d, at)",
        "if d in self.devices",
        (LEDGER,),
    ),
    Fault(
        "let a look from before an exit prove it",
        "ledger.py",
        "            if at < gone.exited_at:",
        "            if False:",
        (LEDGER,),
    ),
    Fault(
        "never give up lost memory",
        "ledger.py",
        "if gone.used and gone.deadline <= now]",
        "if False]",
        (LEDGER,),
    ),
    Fault(
        "credit returned bytes to everyone",
        "ledger.py",
        "other.free_then[device] = then + bytes_",
        "pass",
        (LEDGER,),
    ),
    Fault(
        "let anyone pass an older claim",
        "ledger.py",
        "if name not in leaving and (before is None or held.claim < before):",
        "if False:",
        (LEDGER,),
    ),
    Fault(
        "reserve less than is used",
        "ledger.py",
        "            if device in self.devices and bytes_ > held.reserved.get(device, 0):",
        "            if False:",
        (LEDGER,),
    ),
    Fault(
        "take victims by size",
        "victims.py",
        "        key=lambda one: (one.group, one.rank, one.id),\n    )\n    chosen",
        "        key=lambda one: (one.group, -sum(one.frees.values()), one.id),\n    )\n    chosen",
        (VICTIMS,),
    ),
    Fault(
        "spare nobody who is not needed",
        "victims.py",
        "        if need.met_by(rest):",
        "        if False:",
        (VICTIMS,),
    ),
    Fault(
        "drain the busy before the idle",
        "victims.py",
        "key=lambda one: (one.group, one.rank, one.id),\n    )\n    chosen",
        "key=lambda one: (-one.group, one.rank, one.id),\n    )\n    chosen",
        (VICTIMS,),
    ),
    Fault(
        "release a booking with the order to stop",
        "scheduler.py",
        "        one.move(State.STOPPING)\n",
        "        one.move(State.STOPPING)\n        self._state.ledger.settle(one.id, {})\n",
        (ROOM, SWITCHING),
    ),
    Fault(
        "revive a draining model by a request",
        "state.py",
        "            if one.state is READY and (best is None",
        "            if one.state in (READY, State.DRAINING) and (best is None",
        (SWITCHING, RULES),
    ),
    Fault(
        "keep draining for a plan that was given up",
        "scheduler.py",
        "        self._reopen(plan.victims)\n",
        "",
        (SWITCHING,),
    ),
    Fault(
        "keep a deadline for ever",
        "scheduler.py",
        "        while self._deadlines and self._deadlines[0][0] <= now:\n            _,",
        "        while False:\n            _,",
        (RULES, SWITCHING),
    ),
    Fault(
        "evict the pinned",
        "state.py",
        "        if self.is_pinned(instance):\n            return None\n        forecast",
        "        forecast",
        (RULES,),
    ),
    Fault(
        "forget exclusive groups",
        "state.py",
        "        if not model.exclusive:\n            return\n",
        "        return\n",
        (RULES,),
    ),
    Fault(
        "load a failing model again at once",
        "scheduler.py",
        "        record.retry_at = now + min(pause, settings.backoff_max)",
        "        record.retry_at = now",
        (RULES,),
    ),
    Fault(
        "swap whenever idle",
        "forecast.py",
        "        return min(share, 1.0) * self.load_seconds",
        "        return 0.0",
        (FORECAST, SWITCHING),
    ),
    Fault(
        "linger for clients that come back late",
        "forecast.py",
        "        if not self._gaps or _median(self._gaps) >= self.load_seconds:",
        "        if not self._gaps:",
        (FORECAST,),
    ),
    Fault(
        "drain on the first miss",
        "planner.py",
        "    return due is not None and due <= seen.now\n",
        "    return due is not None\n",
        (SWITCHING,),
    ),
    Fault(
        "count the quantum from the request alone",
        "planner.py",
        "(max(w.since, ready) + _patience(w, cost, quantum) for w in record.heads())",
        "(w.since + _patience(w, cost, quantum) for w in record.heads())",
        (SWITCHING, "test_scenarios.py"),
    ),
    Fault(
        "load one more than models_max",
        "scheduler.py",
        "        if limit > 0 and before + 1 > limit:",
        "        if limit > 0 and before > limit:",
        (RULES, ROOM),
    ),
    Fault(
        "serve the latest first",
        "scheduler.py",
        "            return (-weighted, min(w.order for w in heads))",
        "            return (weighted, -min(w.order for w in heads))",
        (SWITCHING, RULES),
    ),
    Fault(
        "evict for a model that can never fit",
        "planner.py",
        "    if not possible:\n",
        "    possible = list(record.model.placements)\n    if not possible:\n",
        (ROOM, RULES),
    ),
    Fault(
        "let a hang-up keep its plan",
        "scheduler.py",
        "if not record.waiting or one.model.definition != record.wanted.definition:",
        "if False:",
        (SWITCHING, RULES),
    ),
    Fault(
        "load with the settings that were given last for ever",
        "state.py",
        "        self.varied.pop(waiter.lease, None)\n",
        "",
        (VARIED,),
    ),
    Fault(
        "give an operator a model with other settings",
        "scheduler.py",
        "if waiter.overrides is not None and _has_other_settings(record, waiter.overrides):",
        "if False:",
        (VARIED,),
    ),
    Fault(
        "forget an operator's pin",
        "state.py",
        "return self.model.pinned if self.pin is None else self.pin",
        "return self.model.pinned",
        (VARIED,),
    ),
    Fault(
        "evict for a replica",
        "scheduler.py",
        "        return not any(self._state.conflicts(model)) and self._state.ledger.fits(place.footprint)",
        "        return True",
        (RULES,),
    ),
    Fault(
        "grant only the first of those who wait",
        "scheduler.py",
        "                self._leave_queue(waiter)\n                if waiter.overrides",
        "                if instance.leases:\n                    break\n"
        "                self._leave_queue(waiter)\n                if waiter.overrides",
        (SWITCHING, RULES),
    ),
    Fault(
        "end an idle model before its waiters are served",
        "scheduler.py",
        "        self._grant_waiters(now)\n        self._end_what_is_over(now)\n",
        "        self._end_what_is_over(now)\n        self._grant_waiters(now)\n",
        (RULES,),
    ),
    Fault(
        "overlook that who becomes idle leaves before all others",
        "scheduler.py",
        "        return ttl is None or now + ttl >= self._due\n",
        "        return True\n",
        (RULES,),
    ),
    Fault(
        "take it for routine that somebody becomes idle whose room is waited for",
        "scheduler.py",
        "        if self._demands or self._plans or self._crowded():\n",
        "        if self._crowded():\n",
        (SWITCHING,),
    ),
    Fault(
        "take it for routine that somebody becomes idle where others lack room",
        "scheduler.py",
        "        if self._demands or self._plans or self._crowded():\n",
        "        if self._demands or self._plans:\n",
        (ROOM,),
    ),
    Fault(
        "take it for routine that the last one leaves who kept a victim",
        "scheduler.py",
        "        if one.state is not READY:\n            return False\n",
        "",
        (RULES,),
    ),
    Fault(
        "leave what is due to the next event that is no request",
        "scheduler.py",
        "        if now < self._due:\n            if type",
        "        if True:\n            if type",
        (RULES,),
    ),
    Fault(
        "go on with the child that served before",
        "scheduler.py",
        "        self._open.clear()\n",
        "",
        (RULES, SWITCHING),
    ),
    Fault(
        "take the second lease where the first went",
        "scheduler.py",
        "        if len(record.instances) == 1:  # else",
        "        if True:  # else",
        (RULES,),
    ),
    Fault(
        "leave what is due to the next event that is no routine",
        "scheduler.py",
        "        if is_routine and now < self._due and not self._dirty:\n",
        "        if is_routine:\n",
        (RULES,),
    ),
)


def survives(fault: Fault, folder: Path) -> str | None:
    """None if the tests caught the fault, else why it counts as survived. `folder` is an empty one for
    the copy."""
    source = ROOT / "router/scheduler" / fault.file
    text = source.read_text()
    if text.count(fault.old) != 1:
        return f"its text stands {text.count(fault.old)} times in {fault.file}, not once: renew the fault"
    for part in ("router", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "router/scheduler" / fault.file).write_text(text.replace(fault.old, fault.new))
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    tests = [str(folder / "tests/scheduler" / name) for name in fault.tests]
    ended = subprocess.run(
        [*run, *tests], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if ended.returncode == 0:
        return f"{', '.join(fault.tests)} pass with it"
    if ended.returncode != 1:  # a fault that does not even run proves nothing about the tests
        return f"pytest ended with {ended.returncode}: {ended.stdout[-500:]}{ended.stderr[-500:]}"
    return None


def main(names: Iterable[str]) -> int:
    wanted = set(names)
    survivors = 0
    for fault in FAULTS:
        if wanted and fault.name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            reason = survives(fault, Path(folder))
        print(
            f"{'caught  ' if reason is None else 'SURVIVED'}  {fault.name}"
            + (f": {reason}" if reason else ""),
            flush=True,
        )
        survivors += reason is not None
    print(f"{survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
