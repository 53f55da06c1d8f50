"""The machine's own memory as a device."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from router.memory.devices.host import HostMemory, memory_of_machine
from tests.memory.devices.test_cgroup import V2_MOUNT, group, place
from tests.memory.devices.test_process_memory import mapping, process

GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def test_free_is_what_is_available_less_the_hot_pages_of_our_children(root):
    process(root, 5, anon=200, file=4096, maps=mapping(7, 4096))
    host = HostMemory(root, lambda: (64 * GIB, 40 * GIB))
    reading = host.read(host.trees([5]))
    assert reading.device.total_bytes == 64 * GIB
    assert reading.device.free_bytes == 36 * GIB
    assert reading.use.used == {5: 4 * GIB + 200 * MIB}
    assert (reading.device.id, reading.device.pool, reading.device.error) == ("host", "host", None)


def test_the_tightest_cgroup_bounds_both_total_and_free(root):
    place(root, "0::/a/b\n", V2_MOUNT)
    group(root, "a/b", max=16 * GIB, current=GIB)
    group(root, "a", max=20 * GIB, current=19 * GIB)
    device = HostMemory(root, lambda: (64 * GIB, 40 * GIB)).read({}).device
    assert device.total_bytes == 16 * GIB
    assert device.free_bytes == 1 * GIB


def test_a_cgroup_larger_than_the_machine_does_not_bind(root):
    place(root, "0::/a\n", V2_MOUNT)
    group(root, "a", max=1024 * GIB, current=0)
    device = HostMemory(root, lambda: (64 * GIB, 40 * GIB)).read({}).device
    assert (device.total_bytes, device.free_bytes) == (64 * GIB, 40 * GIB)


def test_free_is_never_less_than_nothing(root):
    process(root, 5, file=4096, maps=mapping(7, 4096))
    host = HostMemory(root, lambda: (64 * GIB, 2 * GIB))
    assert host.read(host.trees([5])).device.free_bytes == 0


def test_what_is_free_and_what_is_used_move_together(root):
    """While a model loads from a mapped file, every page that becomes resident leaves free and enters
    used."""
    host = HostMemory(root, lambda: (64 * GIB, 40 * GIB))
    process(root, 5, file=1024, maps=mapping(7, 4096))
    before = host.read(host.trees([5]))
    (root / "proc/5/status").write_text(f"RssAnon: 0 kB\nRssFile: {3 << 20} kB\n")
    after = host.read(host.trees([5]))
    assert before.device.free_bytes is not None
    assert after.device.free_bytes is not None
    assert (
        before.device.free_bytes - after.device.free_bytes
        == after.use.used[5] - before.use.used[5]
        == 2 * GIB
    )


def test_the_machine_is_told_as_psutil_tells_it():
    total, available = memory_of_machine()
    assert total == psutil.virtual_memory().total
    assert available == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_this_very_machine():
    device = HostMemory().read({}).device
    assert device.free_bytes is not None
    assert 0 < device.free_bytes <= device.total_bytes <= psutil.virtual_memory().total
