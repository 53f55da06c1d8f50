"""NVIDIA GPUs through the real pynvml, over a stub of the driver's library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.memory.devices.host import HostMemory
from tests.memory.devices.conftest import GIB, MIB, A, B, look, look_until
from tests.stub_nvml.state import StubGpu, StubNvml, hold_allocation
from tests.waiting import until

CUDA_A, CUDA_B = f"cuda:{A.uuid}", f"cuda:{B.uuid}"


async def test_every_gpu_is_known_by_its_uuid_with_name_size_and_health(each_probe, open_devices):
    sample = await look(await open_devices(**each_probe))
    assert list(sample.devices) == ["host", CUDA_A, CUDA_B]
    first = sample.devices[CUDA_A]
    assert first.kind == "cuda"
    assert first.label == "cuda:0 NVIDIA GeForce RTX 3090"
    assert first.name == "NVIDIA GeForce RTX 3090"
    assert first.uuid == A.uuid
    assert first.pci == "0000:01:00.0"
    assert first.driver == "570.86.15"
    assert first.compute_capability == "8.6"
    assert (first.utilisation_percent, first.temperature_celsius) == (7, 41)
    assert first.error is None
    assert first.pool == CUDA_A
    assert sample.notes == ()


async def test_the_drivers_reserve_is_neither_free_nor_ever_to_be_had(each_probe, open_devices, stub):
    stub.gpu(0, used=3 * GIB)
    sample = await look(await open_devices(**each_probe))
    assert sample.devices[CUDA_A].total_bytes == 24 * GIB - 400 * MIB
    assert sample.devices[CUDA_A].reserved_bytes == 400 * MIB
    assert sample.devices[CUDA_A].free_bytes == 21 * GIB - 400 * MIB
    assert sample.devices[CUDA_B].free_bytes == sample.devices[CUDA_B].total_bytes == 16 * GIB - 300 * MIB


async def test_an_old_driver_is_asked_in_the_old_ways(each_probe, open_devices, stub, children):
    stub.change(old_driver=1)
    pid = children().pid
    with_memory = hold_allocation(stub.folder, {0: 2 * GIB}, pid)
    sample = await look(await open_devices(**each_probe), pid)
    # Only the new way tells the driver's reserve from the capacity; what is free is the same in both.
    assert sample.devices[CUDA_A].total_bytes == 24 * GIB
    assert sample.devices[CUDA_A].free_bytes == 22 * GIB - 400 * MIB
    assert sample.devices[CUDA_A].temperature_celsius == 41
    assert sample.used[pid][CUDA_A] == 2 * GIB
    with_memory.close()


async def test_what_a_process_holds_is_told_per_device_and_comes_back_when_it_is_gone(
    each_probe, open_devices, stub, children
):
    devices = await open_devices(**each_probe)
    ours, other = children().pid, children().pid
    held = hold_allocation(stub.folder, {0: 5 * GIB, 1: 1 * GIB}, ours)
    stranger = hold_allocation(stub.folder, {0: 2 * GIB}, other)
    sample = await look(devices, ours)
    assert {CUDA_A: 5 * GIB, CUDA_B: 1 * GIB}.items() <= sample.used[ours].items()
    assert other not in sample.used
    assert sample.devices[CUDA_A].free_bytes == 17 * GIB - 400 * MIB
    assert sample.attributed[CUDA_A] and sample.attributed[CUDA_B]
    held.close()
    sample = await look(devices, ours)
    assert CUDA_A not in sample.used[ours]
    assert sample.devices[CUDA_A].free_bytes == 22 * GIB - 400 * MIB
    stranger.close()


async def test_what_children_of_a_child_hold_counts_as_its_own(probe, open_devices, stub, children):
    parent = children("sh", "-c", "sleep 600 & sleep 600 & wait")
    devices = await open_devices(**probe)
    await until(lambda: len(parent.children()) == 2)
    grandchildren = [child.pid for child in parent.children()]
    held = [hold_allocation(stub.folder, {1: 1 * GIB}, pid) for pid in (parent.pid, *grandchildren)]
    sample = await look(devices, parent.pid)
    assert sample.used[parent.pid][CUDA_B] == 3 * GIB
    for one in held:
        one.close()


async def test_a_pid_that_is_gone_has_nothing(probe, open_devices, children):
    gone = children("true")
    gone.wait()
    sample = await look(await open_devices(**probe), gone.pid)
    assert sample.used == {gone.pid: {}}


async def test_an_index_may_change_and_the_identity_does_not(probe, open_devices, stub):
    devices = await open_devices(**probe)
    stub.gpu(1, used=4 * GIB)
    before = await look(devices)
    # After a reboot, or with one card out of the machine, the other one is number 0.
    stub.change(gpus=(stub.state.gpus[1],))
    again = await open_devices(**probe)
    after = await look(again)
    assert list(after.devices) == ["host", CUDA_B]
    assert after.devices[CUDA_B].label == "cuda:0 NVIDIA RTX A4000"
    assert after.devices[CUDA_B].free_bytes == before.devices[CUDA_B].free_bytes


class TestMig:
    CARD = replace(A, name="NVIDIA A100-SXM4-40GB", mig=1)
    ONE = StubGpu("MIG-11111111-0000", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", A.pci, 5 * GIB, 64 * MIB, parent=0)
    TWO = StubGpu(
        "MIG-22222222-0000", "NVIDIA A100-SXM4-40GB MIG 2g.10gb", A.pci, 10 * GIB, 64 * MIB, parent=0
    )

    async def test_a_card_in_mig_mode_is_its_instances(self, each_probe, open_devices, stub, children):
        stub.change(gpus=(self.CARD, B, self.ONE, self.TWO))
        pid = children().pid
        held = hold_allocation(stub.folder, {self.TWO.uuid: 3 * GIB}, pid)
        sample = await look(await open_devices(**each_probe), pid)
        one, two = f"cuda:{self.ONE.uuid}", f"cuda:{self.TWO.uuid}"
        assert list(sample.devices) == ["host", one, two, CUDA_B]
        assert sample.devices[two].label == "cuda:0.1 NVIDIA A100-SXM4-40GB MIG 2g.10gb"
        assert sample.devices[two].uuid == self.TWO.uuid
        assert sample.devices[two].free_bytes == 7 * GIB - 64 * MIB
        assert sample.devices[two].utilisation_percent is None
        assert sample.devices[one].free_bytes == 5 * GIB - 64 * MIB
        assert sample.used[pid][two] == 3 * GIB
        assert one not in sample.used[pid]
        held.close()

    async def test_without_an_instance_nothing_can_be_put_there(self, probe, open_devices, stub):
        stub.change(gpus=(self.CARD, B))
        sample = await look(await open_devices(**probe))
        assert sample.devices[CUDA_A].free_bytes is None
        assert "no instance" in str(sample.devices[CUDA_A].error)
        assert sample.devices[CUDA_B].error is None


class TestUnifiedMemory:
    """A GPU without memory of its own draws from the machine's, and says so by its pool."""

    @pytest.mark.parametrize("says", [{"memerr": 3}, {"total": 0, "reserved": 0}, {"name": "NVIDIA GB10"}])
    async def test_its_free_memory_is_the_hosts(self, each_probe, open_devices, stub, children, says):
        stub.gpu(0, **says)
        pid = children().pid
        held = hold_allocation(stub.folder, {0: 2 * GIB}, pid)
        sample = await look(await open_devices(**each_probe), pid)
        device, host = sample.devices[CUDA_A], sample.devices["host"]
        assert device.pool == "host"
        assert device.error is None
        assert device.free_bytes is not None
        assert host.free_bytes is not None
        assert device.free_bytes <= host.free_bytes
        assert device.total_bytes <= host.total_bytes
        # One pool, one ledger: what is held there is held of the host, and stands nowhere else.
        assert sample.used[pid]["host"] >= 2 * GIB
        assert CUDA_A not in sample.used[pid]
        held.close()

    async def test_what_it_does_not_tell_of_processes_makes_the_hosts_figures_doubtful(
        self, probe, open_devices, stub, children
    ):
        stub.gpu(0, memerr=3, procerr=999)
        sample = await look(await open_devices(**probe), children().pid)
        assert not sample.attributed[CUDA_A]
        assert not sample.attributed["host"]
        assert sample.attributed[CUDA_B]


class TestVisibleDevices:
    async def test_the_router_keeps_to_the_gpus_it_was_started_with(self, probe, open_devices):
        probe["environ"]["CUDA_VISIBLE_DEVICES"] = "GPU-bbbb"
        sample = await look(await open_devices(**probe))
        assert list(sample.devices) == ["host", CUDA_B]

    async def test_an_index_is_kept_as_the_uuid_it_meant(self, probe, open_devices, stub):
        probe["environ"] |= {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        devices = await open_devices(**probe, idle_seconds=0.1)
        assert list((await look(devices)).devices) == ["host", CUDA_B]
        # With the first card gone the other one becomes number 0; it is still the one that was meant.
        await until(lambda: not devices.probe_pids)
        stub.change(gpus=(B,))
        sample = await look(devices)
        assert list(sample.devices) == ["host", CUDA_B]
        assert sample.devices[CUDA_B].label == "cuda:0 NVIDIA RTX A4000"

    async def test_an_empty_mask_hides_all(self, probe, open_devices):
        probe["environ"]["CUDA_VISIBLE_DEVICES"] = ""
        assert list((await look(await open_devices(**probe))).devices) == ["host"]


class TestFaults:
    @pytest.mark.parametrize(
        ("code", "words"),
        [(9, "driver not loaded"), (4, "no permission"), (999, "unknown error"), (18, "differ in version")],
    )
    async def test_without_a_working_driver_there_is_the_host_and_a_note(
        self, probe, open_devices, stub, code, words
    ):
        stub.change(init_err=code)
        sample = await look(await open_devices(**probe))
        assert list(sample.devices) == ["host"]
        assert len(sample.notes) == 1
        assert words in sample.notes[0]

    async def test_without_the_drivers_library_there_is_the_host_and_a_note(
        self, shared_object, open_devices, tmp_path: Path
    ):
        folder = tmp_path / "empty"
        folder.mkdir()
        # A machine that runs the tests may have the real one: this file is found first and is no library.
        (folder / "libnvidia-ml.so.1").write_text("not ELF")
        shared_object["environ"]["LD_LIBRARY_PATH"] = str(folder)
        sample = await look(await open_devices(**shared_object))
        assert list(sample.devices) == ["host"]
        assert sample.notes == ("NVML: no driver library (libnvidia-ml.so.1)",)

    async def test_a_driver_that_is_loaded_later_is_found(self, probe, open_devices, stub):
        stub.change(init_err=9)
        devices = await open_devices(**probe)
        assert CUDA_A not in (await look(devices)).devices
        stub.change(init_err=0)
        sample = await look_until(devices, lambda s: CUDA_A in s.devices)
        assert sample.devices[CUDA_A].error is None

    @pytest.mark.parametrize(("code", "words"), [(15, "lost"), (16, "reset"), (999, "unknown error")])
    async def test_a_lost_gpu_is_out_alone_and_comes_back_by_itself(
        self, each_probe, open_devices, stub, children, code, words
    ):
        devices = await open_devices(**each_probe)
        pid = children().pid
        held = hold_allocation(stub.folder, {0: 1 * GIB, 1: 2 * GIB}, pid)
        healthy = await look(devices, pid)
        stub.gpu(0, err=code)
        sample = await look(devices, pid)
        lost = sample.devices[CUDA_A]
        assert lost.free_bytes is None
        assert words in str(lost.error)
        assert lost.total_bytes == healthy.devices[CUDA_A].total_bytes
        assert lost.label == healthy.devices[CUDA_A].label
        assert not sample.attributed[CUDA_A]
        assert sample.devices[CUDA_B] == healthy.devices[CUDA_B]
        assert sample.used[pid][CUDA_B] == 2 * GIB
        stub.gpu(0, err=0)
        sample = await look_until(devices, lambda s: s.devices[CUDA_A].error is None, pid)
        assert sample.devices[CUDA_A] == healthy.devices[CUDA_A]
        assert sample.used[pid][CUDA_A] == 1 * GIB
        held.close()

    async def test_a_gpu_that_left_the_list_is_kept_with_a_reason(self, probe, open_devices, stub):
        devices = await open_devices(**probe)
        await look(devices)
        stub.change(gpus=(B,))
        # First its handle is stale, then a new session with the driver does not list it.
        sample = await look_until(devices, lambda s: "not list" in str(s.devices[CUDA_A].error))
        assert sample.devices[CUDA_A].free_bytes is None
        assert sample.devices[CUDA_B].error is None
        stub.change(gpus=(A, B))
        sample = await look_until(devices, lambda s: s.devices[CUDA_A].error is None)
        assert sample.devices[CUDA_A].free_bytes == 24 * GIB - 400 * MIB

    async def test_a_container_that_loses_the_driver_keeps_its_devices_as_unhealthy(
        self, probe, open_devices, stub
    ):
        devices = await open_devices(**probe)
        await look(devices)
        stub.gpu(0, err=999)
        stub.gpu(1, err=999)
        stub.change(init_err=999)
        for _ in range(5):
            sample = await look(devices)
            assert {d.error is None for k, d in sample.devices.items() if k != "host"} == {False}
            assert sample.devices["host"].error is None
        stub.gpu(0, err=0)
        stub.gpu(1, err=0)
        stub.change(init_err=0)
        await look_until(devices, lambda s: all(device.error is None for device in s.devices.values()))

    async def test_a_gpu_that_will_not_say_who_it_is_does_not_hide_the_others(
        self, probe, open_devices, stub
    ):
        stub.gpu(0, err=15)
        devices = await open_devices(**probe)
        sample = await look(devices)
        assert CUDA_A not in sample.devices
        assert sample.devices[CUDA_B].error is None
        assert sample.notes == (
            "NVML: device 0: GPU is lost (it fell off the bus, or its driver was unloaded)",
        )
        stub.gpu(0, err=0)
        sample = await look_until(devices, lambda s: CUDA_A in s.devices)
        assert sample.devices[CUDA_A].error is None

    async def test_figures_that_a_card_does_not_know_are_none(self, probe, open_devices, stub):
        stub.gpu(0, utilerr=3, temperr=3)
        sample = await look(await open_devices(**probe))
        assert sample.devices[CUDA_A].utilisation_percent is None
        assert sample.devices[CUDA_A].temperature_celsius is None
        assert sample.devices[CUDA_A].error is None


class TestProcessList:
    """When it lies, memory is still told; only what each process holds is not."""

    @pytest.mark.parametrize("fault", [{"procerr": 999}, {"procna": 1}, {"proczero": 1}])
    async def test_an_unusable_list_says_so_and_gives_no_figures(
        self, each_probe, open_devices, stub, children, fault
    ):
        stub.gpu(0, **fault)
        pid = children().pid
        held = hold_allocation(stub.folder, {0: 4 * GIB, 1: 1 * GIB}, pid)
        sample = await look(await open_devices(**each_probe), pid)
        assert sample.devices[CUDA_A].error is None
        assert sample.devices[CUDA_A].free_bytes == 20 * GIB - 400 * MIB
        assert not sample.attributed[CUDA_A]
        assert CUDA_A not in sample.used[pid]
        assert any(CUDA_A in note for note in sample.notes)
        assert sample.attributed[CUDA_B]
        assert sample.used[pid][CUDA_B] == 1 * GIB
        held.close()

    async def test_pids_that_are_hidden_are_noticed_by_the_memory_that_nobody_took(
        self, probe, open_devices, stub, children
    ):
        stub.change(hide_pids=1)
        devices = await open_devices(**probe)
        await look(devices)  # before anything of ours runs: what is used now is not ours
        pid = children().pid
        sample = await look(devices, pid)
        assert sample.attributed[CUDA_A]
        held = hold_allocation(stub.folder, {0: 4 * GIB}, pid)
        sample = await look(devices, pid)
        assert not sample.attributed[CUDA_A]
        assert sample.attributed[CUDA_B]
        assert sample.devices[CUDA_A].free_bytes == 20 * GIB - 400 * MIB
        held.close()

    async def test_a_desktop_does_not_make_the_list_doubtful(self, probe, open_devices, stub, children):
        devices = await open_devices(**probe)
        pid = children().pid
        stub.gpu(0, gfx=2 * GIB)
        sample = await look(devices, pid)
        assert sample.attributed[CUDA_A]
        assert sample.devices[CUDA_A].free_bytes == 22 * GIB - 400 * MIB


async def test_memory_that_returns_late_is_not_free_before_it_is(
    probe, open_devices, stub: StubNvml, children
):
    stub.change(lag_ms=300)
    devices = await open_devices(**probe)
    pid = children().pid
    held = hold_allocation(stub.folder, {0: 4 * GIB}, pid)
    await look(devices, pid)
    held.close()
    sample = await look(devices, pid)
    assert CUDA_A not in sample.used[pid]
    assert sample.devices[CUDA_A].free_bytes == 20 * GIB - 400 * MIB
    await look_until(devices, lambda s: s.devices[CUDA_A].free_bytes == 24 * GIB - 400 * MIB, pid)


# --- models on the CPU though there is a driver ---


@pytest.mark.parametrize("proof", ["proc/driver/nvidia/version", "dev/nvidiactl"])
async def test_a_driver_that_is_loaded_and_cannot_be_used_is_a_warning_until_it_can(
    probe, open_devices, stub, tmp_path, proof
):
    """As after an update of the driver without a reboot: its library and the kernel's module differ."""
    (tmp_path / "root" / proof).parent.mkdir(parents=True)
    (tmp_path / "root" / proof).touch()
    stub.change(init_err=18)
    devices = await open_devices(**probe, root=tmp_path / "root", host=HostMemory())
    (warning,) = (await look(devices)).warnings
    assert warning.startswith("models run on the CPU: the NVIDIA driver is loaded, but cannot be used")
    assert "driver library and kernel module differ in version" in warning
    assert (await look(devices, wake=False)).warnings == (warning,), "it does not come and go"
    stub.change(init_err=0)
    sample = await look_until(devices, lambda s: CUDA_A in s.devices)
    assert sample.warnings == ()


async def test_a_driver_that_lists_no_device_is_a_warning(probe, open_devices, stub, tmp_path):
    """As in a container that was given the library and not the devices."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    stub.change(gpus=())
    devices = await open_devices(**probe, root=tmp_path, host=HostMemory())
    (warning,) = (await look(devices)).warnings
    assert "it lists no device" in warning


@pytest.mark.parametrize("hidden", ["", "-1"])
async def test_where_the_environment_hides_the_gpus_there_is_no_warning(
    probe, open_devices, stub, tmp_path, hidden
):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    probe["environ"]["CUDA_VISIBLE_DEVICES"] = hidden
    for init_err in (18, 0):
        stub.change(init_err=init_err)
        devices = await open_devices(**probe, root=tmp_path, host=HostMemory())
        assert (await look(devices)).warnings == ()


async def test_without_a_driver_there_is_no_warning(probe, open_devices, stub, tmp_path):
    stub.change(init_err=9)
    devices = await open_devices(**probe, root=tmp_path, host=HostMemory())
    assert (await look(devices)).warnings == ()
