"""What processes hold of the machine's memory: /proc written out, and real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from router.descriptors import is_out_of_files
from router.memory.devices.process_memory import HostUse, Processes, ProcessMemory
from tests.scarcity import at_each_moment
from tests.waiting import until

MIB = 1 << 20
linux_only = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path


def process(
    root: Path, pid: int, *, anon: int = 0, file: int = 0, locked: int = 0, children: str = "", maps: str = ""
) -> None:
    """Sizes in MiB, as /proc has them in kB."""
    base = root / "proc" / str(pid)
    (base / "task" / str(pid)).mkdir(parents=True)
    (base / "task" / str(pid) / "children").write_text(children)
    (base / "status").write_text(
        f"Name:\tllama-server\nVmLck:\t{locked << 10:8} kB\nRssAnon:\t{anon << 10:8} kB\n"
        f"RssFile:\t{file << 10:8} kB\nRssShmem:\t       0 kB\nThreads:\t9\n"
    )
    (base / "maps").write_text(maps)


def use_of(root: Path, *pids: int, loading: tuple[int, ...] = ()) -> HostUse:
    processes = Processes(root)
    return processes.use(processes.trees(pids), loading)


def read_process(pid: int, root: Path = Path("/")) -> ProcessMemory | None:
    return Processes(root).read(pid)


def mapping(inode: int, mib: int, path: str = "/models/m.gguf", dev: str = "08:02") -> str:
    end = 0x7F0000000000 + mib * MIB
    return f"7f0000000000-{end:x} r--s 00000000 {dev} {inode} {path}\n"


def test_private_and_file_backed_memory_are_both_held(root):
    process(root, 5, anon=170, file=1205, maps=mapping(7, 1200) + mapping(8, 5, "/usr/lib/libc.so.6"))
    use = use_of(root, 5)
    assert use.used == {5: (170 + 1205) * MIB}
    assert use.hot_bytes == 1205 * MIB
    assert use.is_complete


def test_a_file_that_two_have_mapped_is_counted_once_for_the_one_with_more_of_it(root):
    process(root, 5, anon=10, file=1000, maps=mapping(7, 4000))
    process(root, 6, anon=20, file=3000, maps=mapping(7, 4000))
    use = use_of(root, 5, 6)
    assert use.used == {5: 10 * MIB, 6: (20 + 3000) * MIB}
    assert use.hot_bytes == 3000 * MIB


def test_the_same_inode_on_another_disk_is_another_file(root):
    process(root, 5, file=1000, maps=mapping(7, 4000, dev="08:02"))
    process(root, 6, file=3000, maps=mapping(7, 4000, dev="08:03"))
    assert use_of(root, 5, 6).hot_bytes == 4000 * MIB


def test_what_is_resident_is_shared_out_over_the_files_by_their_size(root):
    process(root, 5, file=1000, maps=mapping(7, 3000) + mapping(8, 1000, "/models/mmproj.gguf"))
    memory = read_process(5, root)
    assert memory is not None
    assert memory.file_shares() == {("08:02", "7"): 750 * MIB, ("08:02", "8"): 250 * MIB}


def test_what_has_a_name_but_no_disk_is_no_file(root):
    names = ["/dev/nvidia0", "/dev/shm/x", "/memfd:x (deleted)", "/SYSV00000000 (deleted)"]
    process(root, 5, file=100, maps="".join(mapping(9, 500, name) for name in names) + mapping(7, 100))
    memory = read_process(5, root)
    assert memory is not None
    assert memory.mapped == {("08:02", "7"): 100 * MIB}


def test_the_maps_are_read_again_when_something_was_mapped(root):
    processes = Processes(root)
    process(root, 5, file=100, maps=mapping(7, 100))
    status, maps = root / "proc/5/status", root / "proc/5/maps"
    told = status.read_text()
    status.write_text(told + "VmSize:\t  1000 kB\n")
    processes.use({5: {5}})
    maps.write_text(mapping(8, 100))
    unchanged = processes.read(5)
    status.write_text(told + "VmSize:\t  2000 kB\n")
    changed = processes.read(5)
    assert unchanged is not None
    assert changed is not None
    assert [*unchanged.mapped, *changed.mapped] == [("08:02", "7"), ("08:02", "8")]


def test_locked_pages_are_held_but_were_never_available(root):
    process(root, 5, anon=10, file=1000, locked=800, maps=mapping(7, 1000))
    use = use_of(root, 5)
    assert use.used == {5: 1010 * MIB}
    assert use.hot_bytes == 200 * MIB


def test_the_pages_a_loading_child_streams_through_are_left_out(root):
    process(root, 5, anon=10, file=9000, maps=mapping(7, 9000))
    process(root, 6, anon=20, file=1000, maps=mapping(8, 1000))
    use = use_of(root, 5, 6, loading=(5,))
    assert use.used == {5: 10 * MIB, 6: 1020 * MIB}
    assert use.hot_bytes == 1000 * MIB


def test_pages_that_a_loading_child_has_locked_are_there_to_stay(root):
    process(root, 5, anon=10, file=9000, locked=3000, maps=mapping(7, 9000))
    use = use_of(root, 5, loading=(5,))
    assert use.used == {5: 3010 * MIB}
    assert use.hot_bytes == 0


def test_a_tree_is_counted_whole(root):
    process(root, 5, anon=1, children="6 7 ")
    process(root, 6, anon=2)
    process(root, 7, anon=4, children="8")
    process(root, 8, anon=8)
    process(root, 9, anon=16)
    trees = Processes(root).trees([5, 9])
    assert trees == {5: {5, 6, 7, 8}, 9: {9}}
    assert Processes(root).use(trees).used == {5: 15 * MIB, 9: 16 * MIB}


def test_who_is_gone_holds_nothing(root):
    assert Processes(root).trees([5]) == {5: frozenset()}
    use = Processes(root).use({5: frozenset({5})})
    assert use.used == {}
    assert use.is_complete


def test_a_zombie_holds_nothing(root):
    process(root, 5)
    (root / "proc/5/status").write_text("Name:\tllama-server\nState:\tZ (zombie)\nThreads:\t1\n")
    assert use_of(root, 5).used == {5: 0}


def test_a_tree_is_told_whole_or_not_at_all_when_files_run_out(root):
    process(root, 5, anon=1, children="6 7")
    process(root, 6, anon=2, maps=mapping(7, 3))
    process(root, 7, anon=4)
    *without, whole = at_each_moment(lambda: use_of(root, 5))
    assert whole == use_of(root, 5)
    assert len(without) > 6
    assert all(isinstance(error, OSError) and is_out_of_files(error) for error in without)


@pytest.fixture
def mapper(tmp_path: Path) -> Iterator[Callable[[Path], int]]:
    """Starts processes that map a file and touch every page of it; answers with their pid."""
    code = (
        "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ);"
        "sum(m[i] for i in range(0, len(m), 4096)); print('mapped', flush=True); sys.stdin.read()"
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(path: Path) -> int:
        argv = [sys.executable, "-S", "-c", code, str(path)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


@linux_only
def test_a_real_mapped_file_is_counted_once_for_two_real_processes(tmp_path, mapper):
    size = 64 * MIB
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x" * size)
    pids = [mapper(path), mapper(path)]
    memory = read_process(pids[0])
    assert memory is not None
    if memory.file_bytes < size:
        pytest.skip("the temporary folder is in memory: its files are no page cache")
    use = use_of(Path("/"), *pids)
    private = [read.anonymous_bytes for pid in pids if (read := read_process(pid)) is not None]
    assert size <= sum(use.used.values()) - sum(private) < 2 * size
    assert size <= use.hot_bytes < 2 * size


@linux_only
async def test_a_real_tree_is_found_by_the_kernels_own_lists(children):
    parent: psutil.Popen = children("sh", "-c", "sh -c 'sleep 600 & wait' & sleep 600 & wait")
    await until(lambda: len(parent.children(recursive=True)) == 3)
    members = {parent.pid, *(child.pid for child in parent.children(recursive=True))}
    assert Processes().trees([parent.pid]) == {parent.pid: members}
