"""What a model really took, and what is reserved for it because of that: arithmetic only.

A prediction is reserved until something was measured. Then the peak rules, with a slack for growth; the
surplus of the prediction is given back in halves, one with each measurement after use that found nothing new.
All sizes are bytes, one per device of the placement, in the placement's order: identical cards share what was
learned, whichever of them a model is on.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from router.memory.estimate.fit_params import FitRow, Question
from router.memory.estimate.values import MIB, Estimate
from router.scheduler.scheduler import OUT_OF_MEMORY_FACTOR
from router.scheduler.types import NOTHING, DeviceId, Footprint

Stamp: TypeAlias = tuple[str, int, int]
"""A file as it was: its real path, bytes, and time of change in nanoseconds."""
Confidence: TypeAlias = Literal["estimated", "measured", "proven"]
#: Of llama-fit-params: not wanted, not there, not asked yet, asked without an answer, more or no more than
#: the estimate.
Opinion: TypeAlias = Literal["off", "missing", "open", "none", "more", "agrees"]

#: Kept above the peak for what a model takes only with use: lazily loaded kernels, cuBLAS workspaces, pools.
UNPROVEN_SLACK_BYTES: Final = 256 * MIB
PROVEN_SLACK_BYTES: Final = 64 * MIB
PROVEN_SLACK_SHARE: Final = 100  # and one hundredth of the peak
#: A peak is proven by so many requests, and so many measurements after use in a row that did not raise it.
#: How long prompts were is not known here, so more measurements stand in for one long prompt.
PROOF_REQUESTS: Final = 3
PROOF_TRIALS: Final = 8
#: Growth by less than a hundredth of the peak, or so little, is noise: every process breathes. It neither
#: begins the proof anew nor is worth a write.
GROWTH_SHARE: Final = 100
GROWTH_BYTES: Final = 16 * MIB
#: Without figures per process a device's loss is believed up to this much of the prediction: what is more
#: was taken by somebody else meanwhile.
BELIEVED_LOSS_FACTOR: Final = 1.5
#: What nobody used for so long is forgotten.
FORGET_SECONDS: Final = 90 * 86400.0

#: Terms that are filled only with use: that a measurement does not show them says nothing. Weights that are
#: mapped into the host's memory come and go with use, too.
_GROWING: Final = ("cache", "checkpoints", "mmproj", "output")
_GROWING_ON_HOST: Final = (*_GROWING, "weights")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one placement of a model is expected to take, and under which name that is corrected.

    `key` stands for files, binary and flags, `shape` for the kinds of devices. `predicted`, `growing` (the
    part of it that comes only with use) and `most` (what the device has, less its margin) are per device of
    `devices`. `files` are those the server opens: what was learned ends with them. `beyond` is the part of
    `predicted` that is there because of a second opinion, and `question` how to ask for one. `has_resort`:
    there are slower ways to load the model, for when this one does not work out; `is_fallback`: it is one.
    """

    key: str
    shape: str
    devices: tuple[DeviceId, ...]
    predicted: tuple[int, ...]
    growing: tuple[int, ...]
    most: tuple[int, ...]
    files: tuple[Stamp, ...] = ()
    beyond: tuple[int, ...] = ()
    question: Question | None = field(default=None, compare=False, repr=False)
    no_question: Opinion = "off"
    is_fallback: bool = False
    has_resort: bool = False
    is_attempt: bool = False

    def with_fit_params(self, rows: Sequence[FitRow]) -> Prediction:
        """With a second opinion: no less is predicted than llama.cpp counts."""
        if self.beyond or self.question is None:
            return self
        beyond = self.question.beyond(rows, len(self.devices))
        if not any(beyond):
            return self
        predicted = tuple(map(operator.add, self.predicted, beyond))
        return replace(self, predicted=predicted, beyond=beyond)

    @property
    def id(self) -> tuple[str, str]:
        return self.key, self.shape


@dataclass(frozen=True, slots=True)
class Learned:
    """`peak` is the most ever measured per device (None: never measured there), `floor` what to reserve at
    least after running out of memory, until a peak is proven. `trials` are measurements after use since the
    peak last grew.
    """

    peak: tuple[int | None, ...]
    floor: tuple[int, ...] = ()
    requests: int = 0
    trials: int = 0

    @property
    def is_measured(self) -> bool:
        return any(peak is not None for peak in self.peak)

    @property
    def is_proven(self) -> bool:
        is_known = all(peak is not None for peak in self.peak)
        return is_known and self.requests >= PROOF_REQUESTS and self.trials >= PROOF_TRIALS


@dataclass(frozen=True, slots=True)
class FootprintStatus:
    """How well one placement is known, for people: what was predicted, the most that was measured, what a
    load reserves now (of a running instance: what is reserved for it), all in bytes per device. `beyond` is
    what a second opinion has added to the prediction.
    """

    confidence: Confidence
    predicted: Footprint
    measured: Footprint
    reserved: Footprint
    requests: int = 0
    measured_now: Footprint = field(default_factory=lambda: NOTHING)
    beyond: Footprint = field(default_factory=lambda: NOTHING)
    opinion: Opinion = "off"


# --- what it is known by ---


def key(files: Sequence[Stamp], binary: Stamp | None, args: Sequence[str], env: Mapping[str, str]) -> str:
    """A hash of all that decides what a server takes on given devices. `args` and `env` hold nothing else."""
    parts = [sorted(files), binary, list(args), sorted(env.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def shape(devices: Sequence[tuple[str, int]]) -> str:
    """Kinds of devices in their order, by name and total bytes; those of a machine's main memory are 0."""
    return " + ".join(f"{name} {total // MIB} MiB" if total else name for name, total in devices)


def growing_bytes(estimate: Estimate, device: DeviceId) -> int:
    """The part of an estimate that shows in a measurement only after use."""
    return sum(
        term.bytes
        for term in estimate.terms
        if estimate.pool_of(term.device) == device
        and term.kind in (_GROWING_ON_HOST if term.device.endswith("/host") else _GROWING)
    )


# --- what is learned ---


def folded(
    learned: Learned | None, sample: Sequence[int | None], *, requests: int = 0, is_trial: bool = False
) -> Learned:
    """With one more measurement (None where it says nothing), taken after so many further `requests`.

    `is_trial`: the model was used since the one before, and every device was told.
    """
    if learned is None:
        learned = Learned((None,) * len(sample))
    peak = tuple(_higher(old, new) for old, new in zip(learned.peak, sample, strict=True))
    grown = any(has_grown(old, new) for old, new in zip(learned.peak, peak, strict=True))
    trials = 0 if grown else learned.trials + is_trial
    found = Learned(peak, learned.floor, learned.requests + requests, trials)
    return replace(found, floor=()) if found.is_proven else found


def has_grown(old: int | None, new: int | None) -> bool:
    """Whether a peak has risen by more than noise."""
    return new is not None and (old is None or new > old + max(old // GROWTH_SHARE, GROWTH_BYTES))


def believed_loss(predicted: int, lost: int | None) -> int | None:
    """What a device lost while a model loaded there, as a measurement of that model: only ever upwards.

    A stranger may have taken or freed memory in that time, and later growth cannot be seen in this way.
    """
    if lost is None or not predicted <= lost <= predicted * BELIEVED_LOSS_FACTOR:
        return None
    return lost


def ran_out(
    learned: Learned | None, reserved: Sequence[int], seen: Sequence[int], attainable: Sequence[int]
) -> Learned:
    """After an end for want of memory: more is reserved, and the proof starts anew.

    `reserved` was not enough, `seen` is the most it was seen to hold. More than `attainable`, what the device
    could have given at best, would only keep the model from ever being tried again.
    """
    if learned is None:
        learned = Learned((None,) * len(reserved))
    before = learned.floor or (0,) * len(reserved)
    floor = tuple(
        max(old, min(most, math.ceil(max(was, high) * OUT_OF_MEMORY_FACTOR)))
        for old, was, high, most in zip(before, reserved, seen, attainable, strict=True)
    )
    return Learned(learned.peak, floor)


# --- what follows from it ---


def reservation(
    prediction: Prediction, learned: Learned | None = None, measured: Footprint = NOTHING
) -> dict[DeviceId, int]:
    """Bytes to reserve per device; never less than is `measured` now, also where nothing was predicted."""
    wanted = {device: _reserved(prediction, at, learned) for at, device in enumerate(prediction.devices)}
    return {device: max(wanted.get(device, 0), measured.get(device, 0)) for device in {**wanted, **measured}}


def confidence(learned: Learned | None) -> Confidence:
    """How good the numbers are, in a word."""
    if learned is None or not learned.is_measured:
        return "estimated"
    return "proven" if learned.is_proven else "measured"


def standing(
    prediction: Prediction,
    learned: Learned | None,
    *,
    reserved: Footprint | None = None,
    measured: Footprint = NOTHING,
    opinion: Opinion = "off",
) -> FootprintStatus:
    """The numbers of one placement; `reserved` and `measured` are a running instance's, where it is one."""
    peaks = learned.peak if learned is not None else (None,) * len(prediction.devices)
    known = {d: peak for d, peak in zip(prediction.devices, peaks, strict=True) if peak is not None}
    return FootprintStatus(
        confidence(learned),
        MappingProxyType(dict(zip(prediction.devices, prediction.predicted, strict=True))),
        MappingProxyType(known),
        MappingProxyType(dict(reserved) if reserved is not None else reservation(prediction, learned)),
        learned.requests if learned is not None else 0,
        measured,
        MappingProxyType(dict(zip(prediction.devices, prediction.beyond, strict=False))),
        opinion,
    )


def _reserved(prediction: Prediction, at: int, learned: Learned | None) -> int:
    """1 nothing known, 2 never measured here, 3 proven, 4 measured: the rest of the surplus on top."""
    predicted, most = prediction.predicted[at], prediction.most[at]
    if learned is None:
        return predicted  # 1
    peak = learned.peak[at]
    floor = learned.floor[at] if learned.floor else 0
    expected = max(predicted, floor)
    if peak is None:
        return expected  # 2
    slack = PROVEN_SLACK_BYTES + peak // PROVEN_SLACK_SHARE if learned.is_proven else UNPROVEN_SLACK_BYTES
    wanted = peak + slack
    wanted = max(wanted, min(predicted, wanted + prediction.growing[at]))  # 3
    if not learned.is_proven and expected > wanted:
        wanted += (expected - wanted) >> min(learned.trials, 62)  # 4
    wanted = -(-wanted // MIB) * MIB  # else every measurement would be a correction of some bytes
    # A slack must not make impossible what was seen to fit; running out of all there is does.
    return max(peak, min(wanted, max(most, floor)))


def _higher(old: int | None, new: int | None) -> int | None:
    return new if old is None else old if new is None else max(old, new)
