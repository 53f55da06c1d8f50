"""Which GPUs CUDA_VISIBLE_DEVICES and its kin leave, where the router itself was started with them.

NVML and sysfs ignore these variables, and the children get some of their own: without this a router that was
told to keep to one GPU would use them all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visible:
    """The UUIDs that are left, in no order; None = all. `note` says what is uncertain about them."""

    uuids: frozenset[str] | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device as NVML numbers it: "1", or "1.0" for a MIG instance."""

    uuid: str
    index: str
    name: str


def visible(environ: Mapping[str, str], candidates: Sequence[Candidate]) -> Visible:
    """Reads the variable as CUDA does: indices, UUIDs or unique beginnings of them, up to the first that
    names nothing."""
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return Visible(None)
    chosen: set[str] = set()
    by_index = False
    for word in text.split(","):
        word = word.strip()
        found = _by_index(word, candidates) if _is_integer(word) else _by_uuid(word, candidates)
        if found is None:
            break
        by_index = by_index or _is_integer(word)
        chosen.add(found)
    return Visible(frozenset(chosen), _doubt(environ, candidates) if by_index else "")


def visible_amd(environ: Mapping[str, str], uuids: Sequence[str]) -> list[int]:
    """The ordinals that are left of AMD devices in the driver's order. HIP numbers what ROCR left to it.

    CUDA_VISIBLE_DEVICES, which HIP obeys too, is not read here: on a machine with both it is meant for the
    others.
    """
    left = list(range(len(uuids)))
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if variable in environ:
            left = _chosen(environ[variable], left, uuids)
    return left


def _chosen(text: str, ordinals: Sequence[int], uuids: Sequence[str]) -> list[int]:
    chosen: list[int] = []
    for word in text.split(","):
        word = word.strip()
        if word.isascii() and word.isdigit() and int(word) < len(ordinals):
            chosen.append(ordinals[int(word)])
        elif word.startswith("GPU-") and (found := [i for i in ordinals if uuids[i].lower() == word.lower()]):
            chosen.append(found[0])
        else:
            break
    return chosen


def _is_integer(word: str) -> bool:
    return word.removeprefix("-").isascii() and word.removeprefix("-").isdigit()


def _by_index(word: str, candidates: Collection[Candidate]) -> str | None:
    """A card in MIG mode counts once and stands for its first instance: a process can see only one."""
    for candidate in candidates:
        card, _, instance = candidate.index.partition(".")
        if card == str(int(word)) and instance in ("", "0"):
            return candidate.uuid
    return None


def _by_uuid(word: str, candidates: Collection[Candidate]) -> str | None:
    if not word.startswith(("GPU-", "MIG-")):
        return None
    found = [one.uuid for one in candidates if one.uuid.lower().startswith(word.lower())]
    return found[0] if len(found) == 1 else None


def _doubt(environ: Mapping[str, str], candidates: Collection[Candidate]) -> str:
    """CUDA numbers the fastest GPU first by default, NVML by PCI address: between equal cards it is the
    same."""
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({one.name for one in candidates}) < 2:
        return ""
    return (
        "the indices in CUDA_VISIBLE_DEVICES were read in PCI order, which may not be CUDA's: "
        "name UUIDs, or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    )
