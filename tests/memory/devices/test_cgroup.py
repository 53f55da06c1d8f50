"""What control groups leave of the machine's memory: trees of both versions, written out."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.descriptors import is_out_of_files
from router.memory.devices.cgroup import Limit, memory_limits
from tests.scarcity import at_each_moment

GIB = 1 << 30

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def place(root: Path, cgroup: str, mountinfo: str) -> None:
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)


def group(root: Path, path: str, **files: object) -> Path:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")
    return folder


def test_without_cgroups_there_is_no_limit(root):
    assert memory_limits(root) == []


def test_page_cache_is_not_in_the_way(root):
    place(root, "0::/app\n", V2_MOUNT)
    stat = (
        f"anon {GIB}\nfile {5 * GIB}\ninactive_file {3 * GIB}\nactive_file {GIB}\nslab_reclaimable {GIB // 2}"
    )
    folder = group(root, "app", max=8 * GIB, high="max", current=6 * GIB, stat=stat)
    assert memory_limits(root) == [Limit(str(folder), 8 * GIB, 8 * GIB - (6 * GIB - 4 * GIB - GIB // 2))]


def test_every_ancestor_counts(root):
    place(root, "0::/user.slice/user-1000.slice/router.service\n", V2_MOUNT)
    group(root, "user.slice/user-1000.slice/router.service", max="max", current=GIB)
    group(root, "user.slice/user-1000.slice", max=4 * GIB, current=3 * GIB)
    group(root, "user.slice", max="max", high=10 * GIB, current=2 * GIB)
    assert [(limit.limit_bytes, limit.available_bytes) for limit in memory_limits(root)] == [
        (4 * GIB, 1 * GIB),
        (10 * GIB, 8 * GIB),
    ]


def test_the_lower_of_max_and_high_binds(root):
    place(root, "0::/app\n", V2_MOUNT)
    group(root, "app", max=8 * GIB, high=6 * GIB, current=0)
    assert [limit.limit_bytes for limit in memory_limits(root)] == [6 * GIB]


def test_version_one_counts_what_is_below_too(root):
    place(root, "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n", V1_MOUNT)
    stat = f"inactive_file 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}"
    folder = group(root, "memory/docker/abc", limit_in_bytes=4 * GIB, usage_in_bytes=3 * GIB, stat=stat)
    group(root, "memory", limit_in_bytes=9223372036854771712, usage_in_bytes=30 * GIB)
    own, top = memory_limits(root)
    assert own == Limit(str(folder), 4 * GIB, 3 * GIB)
    assert top.available_bytes > 1 << 60  # "unlimited" is a number there


def test_in_a_container_the_own_group_is_what_is_mounted(root):
    # Without a namespace of its own it is told the host's path, of which only the end can be seen.
    mount = V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
    place(root, "0::/docker/abc/app\n", mount)
    group(root, "", max=4 * GIB, current=GIB)
    group(root, "app", max=2 * GIB, current=GIB)
    assert [limit.limit_bytes for limit in memory_limits(root)] == [2 * GIB, 4 * GIB]


@pytest.mark.parametrize("path", ["/../../other.slice", "/", "/elsewhere/entirely"])
def test_a_group_outside_of_what_can_be_seen_is_bound_by_the_top(root, path):
    mount = V2_MOUNT if path != "/elsewhere/entirely" else V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
    place(root, f"0::{path}\n", mount)
    group(root, "", max=4 * GIB, current=GIB)
    assert [limit.limit_bytes for limit in memory_limits(root)] == [4 * GIB]


def test_in_a_hybrid_hierarchy_both_are_read(root):
    unified = V2_MOUNT.replace("/sys/fs/cgroup rw", "/sys/fs/cgroup/unified rw")
    place(root, "4:memory:/a\n0::/b\n", V1_MOUNT + unified)
    group(root, "memory/a", limit_in_bytes=3 * GIB, usage_in_bytes=GIB)
    group(root, "unified/b")  # the memory controller is with version one
    assert [limit.limit_bytes for limit in memory_limits(root)] == [3 * GIB]


def test_broken_files_are_as_good_as_none(root):
    place(root, "nonsense\n0::\n:::\n", "x\n\n1 2 3 - \n" + V2_MOUNT)
    group(root, "", max="banana", current="")
    assert memory_limits(root) == []


def test_this_very_machine_can_be_read():
    for limit in memory_limits():
        assert limit.limit_bytes >= 0
        assert limit.available_bytes <= limit.limit_bytes


def test_a_limit_is_not_taken_for_none_when_files_run_out(root):
    place(root, "0::/a/b\n", V2_MOUNT)
    group(root, "a", max=8 * GIB, current=GIB, stat="")
    group(root, "a/b", max=6 * GIB, current=GIB, stat="inactive_file 5")
    *without, whole = at_each_moment(lambda: memory_limits(root))
    assert len(memory_limits(root)) == 2
    assert whole == memory_limits(root)
    assert len(without) > 6
    assert all(isinstance(error, OSError) and is_out_of_files(error) for error in without)
