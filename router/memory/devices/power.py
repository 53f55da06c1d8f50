"""Whether a PCI device sleeps, asked without waking it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from router.memory.devices.kernel_files import text


def all_asleep(addresses: Collection[str], root: Path = Path("/")) -> bool:
    """True where every one of them is in runtime suspend (a laptop's GPU that nobody uses), and there is one.

    To open the driver, or to ask it anything, resumes such a GPU, and it stays up for seconds after the last
    file on it was closed. This attribute is the kernel's own bookkeeping and costs nothing.
    """
    devices = root / "sys/bus/pci/devices"
    statuses = [text(devices / address / "power/runtime_status") for address in addresses]
    return bool(statuses) and all(status in ("suspended", "suspending") for status in statuses)
