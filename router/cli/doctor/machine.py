"""The machine: devices and their drivers, permissions, limits, disks, and the address to listen on."""

from __future__ import annotations

import asyncio
import grp
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from router.app.listening import bind, is_on_loopback, url_of
from router.cli.client import Client, NoRouter, RequestRefused, address_of
from router.cli.doctor.findings import Finding, fail, ok, warn
from router.cli.words import gib
from router.config import Config, ServerConfig, models_dirs, state_paths
from router.errors import StartupError
from router.installation import build_command
from router.memory.devices import DeviceInfo, Devices, Sample

_HEALTH_SECONDS: Final = 2.0
#: Two sockets a request, and those of the children.
_FILES_WANTED: Final = 4096
_DISK_FAIL_BYTES: Final = 100 << 20
_DISK_WARN_BYTES: Final = 5 << 30
#: PCI vendors of GPUs, and what each needs; class 03 is a display controller.
_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD"}
_DRIVERS: Final = {
    "NVIDIA": "install its driver and see that nvidia-smi works; in a container: --gpus all",
    "AMD": "load the driver amdgpu; in a container: --device /dev/kfd --device /dev/dri",
}
_DISPLAY: Final = "0x03"


def look_at_devices(listed: str, root: Path = Path("/")) -> Iterator[Finding]:
    """`listed` is what llama-server itself says of the devices it can use."""
    sample = asyncio.run(_sample(listed))
    gpus = [one for one in sample.devices.values() if one.kind != "host"]
    for one in sample.devices.values():
        yield _device(one)
    without = _cards(root) - {_vendor(one) for one in gpus}
    for warning in sample.warnings:
        yield warn("GPU", warning, "see docs/troubleshooting.md: after an update of the driver, reboot")
    for note in sample.notes:
        if "NVIDIA" in without or not note.startswith("NVML: no driver library"):
            yield warn("devices", note, "see docs/troubleshooting.md")
    for name in sorted(without):
        yield warn("GPU", f"there is an {name} card whose driver does not answer", _DRIVERS[name])
    yield from _cannot_be_used(gpus, listed)
    if not gpus:
        yield ok("devices", "no GPU: models run in main memory")


def look_at_permissions(config: Config, root: Path = Path("/")) -> Iterator[Finding]:
    paths = state_paths(config)
    try:
        paths.prepare()
        yield ok("folders", f"state in {paths.state_dir}, sockets in {paths.runtime_dir}")
    except StartupError as error:
        yield fail("folders", error.message, "give yourself the right to write there, or set paths.state_dir")
    for folder in models_dirs(config):
        if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
            yield fail("models", f"{folder} cannot be read", f"chmod u+rx {folder}, or run as its owner")
    for node in (root / "dev/kfd", *sorted((root / "dev/dri").glob("renderD*"))):
        if node.exists() and not os.access(node, os.R_OK | os.W_OK):
            group = _group_of(node)
            yield warn(
                "GPU", f"{node} may not be opened", f"sudo usermod -aG {group} $USER, then log in again"
            )


def look_at_limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if most < _FILES_WANTED:
        do = "raise it: `ulimit -Hn`, LimitNOFILE= in the service, or /etc/security/limits.conf"
        yield warn("limits", f"at most {most} open files: about {most // 2} requests at a time", do)
    else:
        yield ok("limits", f"{most} open files (the router raises its soft limit of {soft} itself)")
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and processes < 1024:
        yield warn("limits", f"at most {processes} processes and threads", "raise `ulimit -u`")


def look_at_disks(config: Config) -> Iterator[Finding]:
    """Once per file system. A full disk under the state costs the router its memory, one under the models
    only downloads."""
    seen: set[int] = set()
    for what, folder in (
        ("state", state_paths(config).state_dir),
        *(("models", f) for f in models_dirs(config)),
    ):
        there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
        if there.stat().st_dev in seen:
            continue
        seen.add(there.stat().st_dev)
        free = shutil.disk_usage(there).free
        words = f"{gib(free)} free for {what} in {folder}"
        if free < _DISK_FAIL_BYTES:
            yield fail("disk", words, "make room: the database and the logs need some")
        elif free < _DISK_WARN_BYTES:
            yield warn("disk", words, "a model needs several GiB: make room, or set paths to another disk")
        else:
            yield ok("disk", words)


def look_at_address(server: ServerConfig) -> Iterator[Finding]:
    """Whether a router runs there already, or could."""
    url = address_of(server)
    try:
        Client(url, read_seconds=_HEALTH_SECONDS).get("/health")
        yield ok("address", f"a router answers at {url}")
        return
    except (NoRouter, RequestRefused):
        pass
    except Exception as error:  # noqa: BLE001 - whatever answers there is not ours
        yield fail("address", str(getattr(error, "message", error)), "stop it, or choose another server.port")
        return
    reached = []
    try:
        for bound in bind(server):
            if bound.family == socket.AF_UNIX:
                Path(bound.getsockname()).unlink(missing_ok=True)
            elif not is_on_loopback(bound):
                reached.append(url_of(bound))
            bound.close()
        yield ok("address", f"{url} is free; no router runs there now")
    except StartupError as error:
        yield fail("address", error.message, "choose another server.host or server.port")
    if reached and not server.api_keys:
        yield warn(
            "address",
            f"anybody who reaches {' or '.join(reached)} may use it",
            "set server.api_keys, or listen on 127.0.0.1",
        )


async def _sample(listed: str) -> Sample:
    async def answer() -> str:
        return listed

    async with Devices(list_devices=answer) as devices:
        return await devices.sample(now=asyncio.get_running_loop().time())


def _device(one: DeviceInfo) -> Finding:
    if one.free_bytes is None:
        return fail(
            "device", f"{one.label}: {one.error or 'it cannot be measured'}", "see docs/troubleshooting.md"
        )
    driver = f", driver {one.driver}" if one.driver else ""
    name = f"{one.label} {one.name}" if one.name not in ("", one.label) else one.label
    return ok("device", f"{name}: {gib(one.free_bytes)} free of {gib(one.total_bytes)}{driver}")


def _cards(root: Path) -> set[str]:
    """The makers of the cards in the machine, whether anybody speaks for them or not."""
    return {
        _VENDORS[vendor]
        for card in (root / "sys/bus/pci/devices").glob("*")
        if _text(card / "class").startswith(_DISPLAY) and (vendor := _text(card / "vendor")) in _VENDORS
    }


def _cannot_be_used(gpus: list[DeviceInfo], listed: str) -> Iterator[Finding]:
    backends = {"cuda": "CUDA", "rocm": "ROCm"}
    for kind in sorted({one.kind for one in gpus} & backends.keys()):
        if listed and backends[kind] not in listed and "HIP" not in listed:
            yield fail(
                "llama-server",
                f"it was built without {backends[kind]}: it cannot use the GPUs that are there",
                f"build it again where the {backends[kind]} toolkit is: {build_command()} --rebuild",
            )


def _vendor(one: DeviceInfo) -> str:
    return {"cuda": "NVIDIA", "rocm": "AMD"}.get(one.kind, one.kind)


def _group_of(node: Path) -> str:
    try:
        return grp.getgrgid(node.stat().st_gid).gr_name
    except KeyError:
        return str(node.stat().st_gid)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
