"""Which GPUs CUDA_VISIBLE_DEVICES and its kin leave, where the router itself was started with them.

NVML and sysfs ignore these variables, and the children get some of their own: without this a router that was
told to keep to one GPU would use them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.memory.devices.protocol import GpuReading


def visible(environ: Mapping[str, str], gpus: Sequence[GpuReading]) -> tuple[frozenset[str] | None, str]:
    """The UUIDs that are left, in no order (None: all), and what is uncertain about them.

    The variable is read as CUDA reads it: indices, UUIDs or unique beginnings of them, up to the first word
    that names nothing.
    """
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return None, ""
    chosen: set[str] = set()
    doubt = ""
    for word in map(str.strip, mask.split(",")):
        if is_index := word.removeprefix("-").isascii() and word.removeprefix("-").isdigit():
            # A card in MIG mode counts once and stands for its first instance: a process can see only one.
            names = (str(int(word)), f"{int(word)}.0")
            found = [gpu.uuid for gpu in gpus if gpu.index in names][:1]
        else:
            is_uuid = word.startswith(("GPU-", "MIG-"))
            found = [gpu.uuid for gpu in gpus if is_uuid and gpu.uuid.lower().startswith(word.lower())]
        if len(found) != 1:
            break
        chosen.update(found)
        if is_index:
            doubt = _doubt(environ, gpus)
    return frozenset(chosen), doubt


def _doubt(environ: Mapping[str, str], gpus: Sequence[GpuReading]) -> str:
    """CUDA numbers the fastest GPU first by default, NVML by PCI address: between equal cards it is the
    same."""
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) < 2:
        return ""
    return (
        "the indices in CUDA_VISIBLE_DEVICES were read in PCI order, which may not be CUDA's: "
        "name UUIDs, or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    )


def visible_amd(environ: Mapping[str, str], uuids: Sequence[str]) -> list[int]:
    """The ordinals that are left of AMD devices in the driver's order. HIP numbers what ROCR left to it.

    CUDA_VISIBLE_DEVICES, which HIP obeys too, is not read here: on a machine with both it is meant for the
    others.
    """
    left = list(range(len(uuids)))
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if variable not in environ:
            continue
        chosen: list[int] = []
        for word in map(str.strip, environ[variable].split(",")):
            found = [i for i in left if word.startswith("GPU-") and uuids[i].lower() == word.lower()]
            if word.isascii() and word.isdigit():
                found = left[int(word) :][:1]
            if not found:
                break
            chosen.append(found[0])
        left = chosen
    return left
