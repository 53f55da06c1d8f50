"""The stub itself: what tests build on must be honest about who lives and who does not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.memory.devices.conftest import A, B
from tests.stub_nvml import state
from tests.stub_nvml.state import Stranger, StubNvml, allocations, free_bytes, hold_allocation, read_state
from tests.waiting import until

GIB = 1 << 30


def test_what_is_written_is_what_is_read(stub: StubNvml):
    stub.gpu(1, name="A name = with signs", err=15, procna=1)
    stub.change(driver="1.2.3", lag_ms=700)
    assert read_state(stub.folder) == stub.state


def test_memory_comes_back_the_moment_its_owner_is_killed(stub: StubNvml):
    stranger = Stranger(stub.folder, {0: 5 * GIB, B.uuid: GIB})
    assert allocations(stub.folder, 0) == [(stranger.pid, 5 * GIB)]
    assert allocations(stub.folder, 1) == [(stranger.pid, GIB)]
    assert free_bytes(stub.folder, 0) == A.total - A.reserved - 5 * GIB
    stranger.close()
    assert allocations(stub.folder, 0) == allocations(stub.folder, 1) == []


async def test_even_before_anybody_has_reaped_it(stub: StubNvml):
    held = "import sys; sys.path.insert(0, sys.argv[1]); import state; "
    held += "a = state.hold_allocation(sys.argv[2], {0: 7}); print(flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", held, str(Path(state.__file__).parent), str(stub.folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert allocations(stub.folder, 0) == [(process.pid, 7)]
        process.send_signal(signal.SIGKILL)
        await until(lambda: "State:\tZ" in Path(f"/proc/{process.pid}/status").read_text())
        assert allocations(stub.folder, 0) == []


async def test_late_memory_is_used_by_nobody_until_its_time(stub: StubNvml):
    stub.change(lag_ms=200)
    stranger = Stranger(stub.folder, {0: 5 * GIB})
    stranger.close()
    assert allocations(stub.folder, 0) == [(0, 5 * GIB)]
    assert allocations(stub.folder, 0, living_only=True) == []
    await until(lambda: allocations(stub.folder, 0) == [])


def test_an_allocation_that_does_not_fit_is_refused_and_changes_nothing(stub: StubNvml):
    room = free_bytes(stub.folder, 0)
    mine = hold_allocation(stub.folder, {0: room // 2})
    theirs = hold_allocation(stub.folder, {0: room // 4})
    assert not mine.try_set({0: room, 1: GIB})
    assert mine.held == {0: room // 2}
    assert free_bytes(stub.folder, 1) == B.total - B.reserved
    assert mine.try_set({0: room - room // 4})
    assert free_bytes(stub.folder, 0) == 0
    theirs.close()
    mine.close()
    assert free_bytes(stub.folder, 0) == room


def test_an_allocation_may_stand_in_the_name_of_another(stub: StubNvml):
    held = hold_allocation(stub.folder, {0: GIB}, pid=4711)
    assert allocations(stub.folder, 0) == [(4711, GIB)]
    held.set({1: 2 * GIB})
    assert allocations(stub.folder, 0) == []
    assert allocations(stub.folder, 1) == [(4711, 2 * GIB)]
    held.close()
    assert allocations(stub.folder, 1) == []
