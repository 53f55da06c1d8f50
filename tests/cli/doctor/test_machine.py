"""Devices, permissions, limits, disks and the address, as a doctor sees them."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.cli.doctor import machine
from router.cli.doctor.findings import Finding, Level
from router.cli.doctor.machine import (
    look_at_address,
    look_at_devices,
    look_at_disks,
    look_at_limits,
    look_at_permissions,
)
from router.config import Config, PathsConfig, ServerConfig
from router.memory.devices import Sample
from router.memory.devices.host import host_device
from tests.admin.conftest import Api, api, known, models_dir
from tests.admin.upstream import free_port
from tests.e2e.stub_machine import make_stub_machine
from tests.stub_nvml.state import StubGpu

__all__ = ["api", "known", "models_dir"]


def levels(findings: list[Finding]) -> list[str]:
    return [f"{one.level.value} {one.about}" for one in findings]


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU and no driver, also on a machine that has them."""
    found = {"host": host_device(8 << 30, 4 << 30)}

    async def sample(_: str) -> Sample:
        return Sample(0.0, found, notes=("NVML: no driver library (libnvidia-ml.so.1)",))

    monkeypatch.setattr(machine, "_sample", sample)


def card(root: Path, name: str, vendor: str, kind: str = "0x030000") -> None:
    folder = root / "sys/bus/pci/devices" / name
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(vendor + "\n")
    (folder / "class").write_text(kind + "\n")


def test_a_machine_without_gpus_is_well(no_driver, tmp_path: Path):
    findings = list(look_at_devices("", tmp_path))
    assert {one.level for one in findings} == {Level.OK}
    assert "main memory" in findings[-1].found


def test_a_card_whose_driver_is_missing_is_told_with_what_it_needs(no_driver, tmp_path: Path):
    card(tmp_path, "a", "0x10de")
    card(tmp_path, "b", "0x1002")
    card(tmp_path, "c", "0x10de", kind="0x040300")  # its sound
    findings = [one for one in look_at_devices("", tmp_path) if one.about == "GPU"]
    assert [one.found.split()[3] for one in findings] == ["AMD", "NVIDIA"]
    assert "nvidia-smi" in findings[1].do


def test_a_build_that_cannot_use_the_gpus_is_told(monkeypatch, tmp_path: Path):
    make_stub_machine(tmp_path, monkeypatch, StubGpu("GPU-1"))
    findings = list(look_at_devices("Available devices:\n  (none)", tmp_path))
    (wrong,) = [one for one in findings if one.level is Level.FAIL]
    assert "built without CUDA" in wrong.found
    listed = "Available devices:\n  CUDA0: NVIDIA H200 (1 MiB, 1 MiB free)"
    assert not [one for one in look_at_devices(listed, tmp_path) if one.level is Level.FAIL]


def config_of(folder: Path, models: Path | None = None) -> Config:
    return Config(paths=PathsConfig(state_dir=folder, models_dirs=(models or folder,)))


def test_folders_that_can_be_used_are_named(tmp_path: Path):
    (finding,) = look_at_permissions(config_of(tmp_path / "state"), tmp_path)
    assert finding.level is Level.OK and str(tmp_path / "state") in finding.found


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "state").write_text("a file")
    (finding,) = look_at_permissions(config_of(tmp_path / "state", tmp_path), tmp_path)
    assert levels([finding]) == ["fail folders"] and "paths.state_dir" in finding.do


def test_a_gpu_that_may_not_be_opened_is_told_with_its_group(monkeypatch, tmp_path: Path):
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/renderD128").write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: "renderD" not in str(path))
    found = [one for one in look_at_permissions(config_of(tmp_path / "s"), tmp_path) if one.about == "GPU"]
    assert [one.level for one in found] == [Level.WARN]
    assert "usermod -aG" in found[0].do


def test_few_files_are_few_requests(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    files, processes = look_at_limits()
    assert levels([files, processes]) == ["warn limits", "warn limits"]
    assert "about 256 requests" in files.found
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1 << 20))
    assert levels(list(look_at_limits())) == ["ok limits"]


@pytest.mark.parametrize(("free", "level"), [(1 << 20, "fail"), (1 << 30, "warn"), (1 << 40, "ok")])
def test_a_disk_is_told_once_with_what_is_free(monkeypatch, tmp_path: Path, free: int, level: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert levels(list(look_at_disks(config_of(tmp_path / "a", tmp_path / "b")))) == [f"{level} disk"]


def test_an_address_is_free_or_somebody_elses():
    (free,) = look_at_address(ServerConfig(port=free_port()))
    assert free.level is Level.OK and "is free" in free.found
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(30)
        (taken,) = look_at_address(ServerConfig(port=other.getsockname()[1]))
    assert taken.level is Level.FAIL


async def test_a_router_that_runs_is_recognised(api: Api):
    await api.start()
    port = int(api.url.rpartition(":")[2])
    (finding,) = await asyncio.to_thread(lambda: list(look_at_address(ServerConfig(port=port))))
    assert (finding.level, finding.found) == (Level.OK, f"a router answers at {api.url}")


def test_an_open_door_is_warned_of():
    findings = list(look_at_address(ServerConfig(host="0.0.0.0", port=free_port())))
    assert levels(findings) == ["ok address", "warn address"]
    assert len(list(look_at_address(ServerConfig(host="0.0.0.0", port=free_port(), api_keys=("k",))))) == 1
