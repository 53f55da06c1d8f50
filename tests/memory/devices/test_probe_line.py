"""The child process that speaks to the driver: when it hangs, crashes, is killed, or is not needed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path
from types import TracebackType

import psutil
import pytest

from router.memory.devices import Devices
from tests.memory.devices.conftest import GIB, MIB, A, B, look, look_until
from tests.stub_nvml.state import hold_allocation
from tests.waiting import until

CUDA_A, CUDA_B = f"cuda:{A.uuid}", f"cuda:{B.uuid}"
STUCK_MS = 30_000


async def test_a_card_that_hangs_is_out_alone_and_comes_back(each_probe, open_devices, stub):
    devices = await open_devices(**each_probe, probe_timeout_seconds=1.0)
    healthy = await look(devices)
    stub.gpu(0, hang_ms=STUCK_MS)
    for _ in range(2):
        sample = await look(devices)
        assert "no answer from the driver" in str(sample.devices[CUDA_A].error)
        assert sample.devices[CUDA_A].free_bytes is None
        assert sample.devices[CUDA_A].total_bytes == healthy.devices[CUDA_A].total_bytes
        assert sample.devices[CUDA_B] == healthy.devices[CUDA_B]
        assert sample.devices["host"].error is None
    stub.gpu(0, hang_ms=0)
    # The old session's call is still stuck: a new one is opened beside it.
    await look_until(devices, lambda s: s.devices[CUDA_A] == healthy.devices[CUDA_A])


async def test_a_driver_that_hangs_altogether_costs_one_timeout_and_heals(probe, open_devices):
    devices = await open_devices(**probe, probe_timeout_seconds=1.0)
    healthy = await look(devices)
    stuck = devices.probe_pids[0]
    os.kill(stuck, signal.SIGSTOP)
    sample = await look(devices)
    assert "no answer" in str(sample.devices[CUDA_A].error)
    assert sample.devices[CUDA_B].free_bytes is None
    assert sample.devices["host"].error is None
    assert any("no answer" in note for note in sample.notes)
    await look_until(devices, lambda s: s.devices[CUDA_A] == healthy.devices[CUDA_A])
    await until(lambda: not psutil.pid_exists(stuck))


async def test_a_driver_that_hangs_while_it_is_opened_holds_up_only_the_first_sample(
    probe, open_devices, stub
):
    stub.change(init_hang_ms=STUCK_MS)
    devices = await open_devices(**probe, start_timeout_seconds=0.5, probe_timeout_seconds=0.2)
    sample = await look(devices)
    assert list(sample.devices) == ["host"]
    assert sample.notes == ("NVML: the driver could not be opened within 0.5 s",)
    stub.change(init_hang_ms=0)
    devices = await open_devices(**probe)
    assert CUDA_A in (await look(devices)).devices


async def test_a_driver_that_takes_its_time_to_open_is_waited_for_in_the_background(
    probe, open_devices, stub
):
    stub.change(init_hang_ms=1000)
    devices = await open_devices(**probe, start_patience_seconds=0.05)
    sample = await look(devices)
    assert sample.notes == ("NVML: the driver is being opened",)
    assert list(sample.devices) == ["host"]
    await look_until(devices, lambda s: CUDA_A in s.devices)
    assert len(devices.probe_pids) == 1


async def test_a_crash_inside_the_library_is_an_error_of_the_devices(each_probe, open_devices, stub):
    devices = await open_devices(**each_probe)
    healthy = await look(devices)
    stub.gpu(0, crash=1)
    sample = await look_until(devices, lambda s: "SIGSEGV" in str(s.devices[CUDA_A].error))
    assert sample.devices[CUDA_A].free_bytes is None
    assert sample.devices[CUDA_B].free_bytes is None
    assert sample.devices["host"].error is None
    stub.gpu(0, crash=0)
    await look_until(devices, lambda s: s.devices[CUDA_B] == healthy.devices[CUDA_B])


async def test_a_probe_that_somebody_kills_is_not_even_noticed(probe, open_devices):
    # The time for a new one to start is that of one answer: here that must not depend on how busy the machine
    # is.
    devices = await open_devices(**probe | {"renew_seconds": 0.0, "probe_timeout_seconds": 20.0})
    healthy = await look(devices)
    killed = devices.probe_pids[0]
    os.kill(killed, signal.SIGKILL)
    sample = await look(devices)
    assert sample.devices[CUDA_A] == healthy.devices[CUDA_A]
    assert killed not in devices.probe_pids


async def test_a_probe_that_keeps_dying_is_not_started_for_every_sample(probe, open_devices, stub):
    stub.gpu(0, crash=1)
    devices = await open_devices(**probe | {"renew_seconds": 600.0})
    notes = [(await look(devices)).notes for _ in range(5)]
    assert notes == [("NVML: the driver library crashed (SIGSEGV)",)] * 5
    stub.gpu(0, crash=0)
    # It would work again; it is not asked before its time.
    assert CUDA_A not in (await look(devices)).devices
    assert devices.probe_pids == []


HELLO = """echo '{"driver":"1","error":null}'; """


@pytest.mark.parametrize(
    "argv",
    [
        ("/nonexistent/python",),
        ("true",),
        ("sh", "-c", "echo hello; sleep 600"),
        ("sh", "-c", HELLO + "while read line; do echo hello; done"),
        ("sh", "-c", HELLO + """while read line; do echo '{"id":99,"gpus":[]}'; done"""),
        ("sh", "-c", HELLO + "read line; head -c 9000000 /dev/zero; sleep 600"),
    ],
)
async def test_something_else_in_the_place_of_the_probe_is_a_note(probe, open_devices, argv):
    devices = await open_devices(**probe | {"probe_argv": argv})
    sample = await look(devices)
    assert list(sample.devices) == ["host"]
    assert len(sample.notes) == 1
    assert sample.notes[0].startswith("NVML: the probe")
    await until(lambda: not devices.probe_pids)


async def test_a_driver_that_is_not_there_holds_nothing_of_the_samples_that_asked_for_it(open_devices):
    devices = await open_devices(probe_argv=["/no/such/probe"])

    def frames_held() -> int:
        gc.collect()
        return sum(type(one) is TracebackType for one in gc.get_objects())

    await look(devices)
    before = frames_held()
    for _ in range(10):
        await look(devices)
    assert frames_held() <= before


async def test_the_probe_ends_with_the_router_even_when_nobody_tells_it(probe):
    """A router that is killed closes nothing; its end of the pipe closes with it."""
    async with Devices(**probe) as devices:
        await look(devices)
        (pid,) = devices.probe_pids
        assert psutil.Process(pid).ppid() == os.getpid()
        # In a session of its own, so that a Ctrl-C in the terminal is for the router.
        assert os.getsid(pid) == pid
        assert devices._nvidia is not None
        assert devices._nvidia.line._probe is not None
        devices._nvidia.line._probe.close()
        await until(lambda: not psutil.pid_exists(pid))


async def test_leaving_ends_a_probe_that_hangs(probe, stub):
    async with Devices(**probe, probe_timeout_seconds=1.0) as devices:
        await look(devices)
        stub.gpu(0, hang_ms=STUCK_MS)
        await look(devices)
        pids = devices.probe_pids
        os.kill(pids[0], signal.SIGSTOP)
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_it_is_the_same_on_the_other_event_loop(probe, stub):
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        async with Devices(**probe | {"renew_seconds": 0.0, "probe_timeout_seconds": 20.0}) as devices:
            healthy = await look(devices)
            os.kill(devices.probe_pids[0], signal.SIGKILL)
            assert (await look(devices)).devices[CUDA_A] == healthy.devices[CUDA_A]
            stub.gpu(0, crash=1)
            sample = await look_until(devices, lambda s: s.devices[CUDA_A].error is not None)
            assert "SIGSEGV" in str(sample.devices[CUDA_A].error)
            stub.gpu(0, crash=0)
            await look_until(devices, lambda s: s.devices[CUDA_A].error is None)
            pids = devices.probe_pids
        assert pids
        assert not [pid for pid in pids if psutil.pid_exists(pid)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


class TestRest:
    """Nothing keeps a laptop's GPU awake when nothing is loaded."""

    @staticmethod
    def sleeps(root: Path, status: str) -> None:
        for gpu in (A, B):
            power = root / "sys/bus/pci/devices" / gpu.pci[4:] / "power"
            power.mkdir(parents=True, exist_ok=True)
            (power / "runtime_status").write_text(status + "\n")

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        (root / "proc").symlink_to("/proc")
        self.sleeps(root, "active")
        return root

    async def test_the_driver_is_closed_when_nobody_needs_it(self, probe, open_devices, stub, root):
        devices = await open_devices(**probe, idle_seconds=0.2, root=root)
        before = await look(devices)
        await until(lambda: not devices.probe_pids)
        stub.gpu(0, used=3 * GIB)
        shown = await look(devices, wake=False)
        assert shown.devices[CUDA_A].free_bytes == before.devices[CUDA_A].free_bytes
        assert shown.devices[CUDA_A].utilisation_percent is None
        assert "closed" in shown.notes[0]
        assert devices.probe_pids == []

    async def test_a_decision_opens_it_again(self, probe, open_devices, stub, root):
        devices = await open_devices(**probe, idle_seconds=0.2, root=root)
        await look(devices)
        await until(lambda: not devices.probe_pids)
        stub.gpu(0, used=3 * GIB)
        sample = await look(devices)
        assert sample.devices[CUDA_A].free_bytes == 21 * GIB - 400 * MIB
        assert sample.notes == ()

    async def test_showing_it_to_somebody_does_not_keep_it_open(self, probe, open_devices, root):
        devices = await open_devices(**probe, idle_seconds=0.3, root=root)
        await look(devices)
        await until(lambda: look(devices, wake=False), holds=lambda _: not devices.probe_pids)

    async def test_a_gpu_that_sleeps_is_not_woken_and_its_memory_is_free(
        self, probe, open_devices, stub, children, root
    ):
        devices = await open_devices(**probe, idle_seconds=0.2, root=root)
        stub.gpu(0, used=1 * GIB)
        pid = children().pid
        held = hold_allocation(stub.folder, {0: 5 * GIB}, pid)
        sample = await look(devices, pid)
        assert sample.devices[CUDA_A].free_bytes == 18 * GIB - 400 * MIB
        held.close()
        await until(lambda: not devices.probe_pids)
        self.sleeps(root, "suspended")
        sample = await look(devices)
        assert sample.devices[CUDA_A].asleep
        # Our child held five of them when they were last counted, and it is gone.
        assert sample.devices[CUDA_A].free_bytes == 23 * GIB - 400 * MIB
        assert sample.devices[CUDA_A].error is None
        assert devices.probe_pids == []
        self.sleeps(root, "active")
        sample = await look(devices)
        assert not sample.devices[CUDA_A].asleep
        assert len(devices.probe_pids) == 1

    async def test_a_child_that_works_on_a_gpu_keeps_the_figures_fresh(
        self, probe, open_devices, stub, children, root
    ):
        devices = await open_devices(**probe, idle_seconds=0.2, root=root)
        pid = children().pid
        await look(devices)
        await until(lambda: not devices.probe_pids)
        held = hold_allocation(stub.folder, {0: 5 * GIB}, pid)
        sample = await look(devices, pid, wake=False)
        assert sample.used[pid][CUDA_A] == 5 * GIB
        await until(lambda: not devices.probe_pids)
        held.set({0: 6 * GIB})
        sample = await look(devices, pid, wake=False)
        assert sample.used[pid][CUDA_A] == 6 * GIB
        held.close()

    async def test_a_child_on_the_host_alone_does_not_keep_it_open(self, probe, open_devices, children, root):
        devices = await open_devices(**probe, idle_seconds=0.3, root=root)
        pid = children().pid
        await look(devices, pid)
        await until(lambda: look(devices, pid, wake=False), holds=lambda _: not devices.probe_pids)
