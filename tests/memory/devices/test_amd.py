"""AMD GPUs in a sysfs that is written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from router.descriptors import is_out_of_files
from router.memory.devices.amd import Amd
from router.memory.devices.types import Found
from tests.memory.devices.conftest import look
from tests.scarcity import at_each_moment

GIB = 1 << 30
MIB = 1 << 20


class Machine:
    """A /sys and a /proc to put cards and processes into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc").mkdir()
        (root / "sys/class/drm").mkdir(parents=True)

    def card(
        self,
        number: int,
        pci: str,
        *,
        vram: tuple[int, int] = (24 * GIB, 0),
        gtt: tuple[int, int] = (32 * GIB, 0),
        unique_id: str = "",
        vendor: str = "0x1002",
        product: str = "",
        metrics: int = 1,
    ) -> Path:
        """(total, used) of both heaps. `metrics` is the revision of gpu_metrics: 1 for cards, 2 and 3 for
        APUs."""
        path = self.root / f"sys/class/drm/card{number}/device"
        path.mkdir(parents=True)
        (path / "vendor").write_text(vendor + "\n")
        (path / "uevent").write_text(f"DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_SLOT_NAME={pci}\n")
        for heap, (total, used) in {"vram": vram, "gtt": gtt}.items():
            (path / f"mem_info_{heap}_total").write_text(f"{total}\n")
            (path / f"mem_info_{heap}_used").write_text(f"{used}\n")
        for name, text in {"unique_id": unique_id, "product_name": product}.items():
            if text:
                (path / name).write_text(text + "\n")
        (path / "gpu_busy_percent").write_text("63\n")
        (path / "hwmon/hwmon3").mkdir(parents=True)
        (path / "hwmon/hwmon3/temp1_input").write_text("54000\n")
        (path / "gpu_metrics").write_bytes(bytes([120, 0, metrics, 3, 0, 0]))
        return path

    def node(self, number: int, gpu_id: int, location: int = 0, gfx: int = 0, domain: int = 0) -> None:
        path = self.root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        path.mkdir(parents=True)
        (path / "gpu_id").write_text(f"{gpu_id}\n")
        (path / "properties").write_text(
            f"cpu_cores_count 0\nlocation_id {location}\ndomain {domain}\ngfx_target_version {gfx}\nname\n"
        )

    def compute(self, pid: int, gpu_id: int, size: int) -> None:
        path = self.root / f"sys/class/kfd/kfd/proc/{pid}"
        path.mkdir(parents=True, exist_ok=True)
        (path / f"vram_{gpu_id}").write_text(f"{size}\n")

    def render(self, pid: int, fd: int, pci: str, client: int, **kib: int) -> None:
        for folder in ("fd", "fdinfo"):
            (self.root / f"proc/{pid}/{folder}").mkdir(parents=True, exist_ok=True)
        (self.root / f"proc/{pid}/fd/{fd}").symlink_to("/dev/dri/renderD128")
        lines = ["pos:\t0", "drm-driver:\tamdgpu", f"drm-pdev:\t{pci}", f"drm-client-id:\t{client}"]
        lines += [f"drm-{key.replace('_', '-')}:\t{size} KiB" for key, size in kib.items()]
        (self.root / f"proc/{pid}/fdinfo/{fd}").write_text("\n".join([*lines, ""]))

    def read(self, *pids: int, **environ: str) -> Found:
        return Amd(environ, self.root).read({pid: frozenset({pid}) for pid in pids})


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = tmp_path / "root"
    root.mkdir()
    return Machine(root)


def test_a_machine_without_one_has_none(machine):
    assert machine.read(5) == Found(used={5: {}})


def test_a_card_is_known_by_its_unique_id(machine):
    machine.card(0, "0000:03:00.0", vram=(24 * GIB, 2 * GIB), unique_id="a1b2c3d4e5f60718")
    machine.node(0, 0)
    machine.node(1, 51001, location=0x0300, gfx=110000)
    (device,) = machine.read().devices.values()
    assert device.id == "rocm:a1b2c3d4e5f60718"
    assert device.kind == "rocm"
    assert device.label == "rocm:0 AMD gfx1100"
    assert device.uuid == "GPU-a1b2c3d4e5f60718"
    assert device.pci == "0000:03:00.0"
    assert (device.total_bytes, device.free_bytes) == (24 * GIB, 22 * GIB)
    assert (device.utilisation_percent, device.temperature_celsius) == (63, 54)
    assert device.compute_capability == "gfx1100"
    assert device.pool == device.id
    assert device.error is None


def test_without_a_unique_id_its_address_names_it_and_its_number_masks_it(machine):
    machine.card(0, "0000:0c:00.0", unique_id="0000000000000000", product="AMD Radeon Pro W6800")
    machine.card(1, "0000:03:00.0")
    machine.node(0, 0)
    machine.node(1, 11, location=0x0C00, gfx=90010)
    machine.node(2, 22, location=0x0300)
    first, second = machine.read().devices.values()
    assert (first.id, first.uuid, first.label) == ("rocm:0000:0c:00.0", "0", "rocm:0 AMD Radeon Pro W6800")
    assert first.compute_capability == "gfx90a"
    # ROCm's own order, not that of the addresses.
    assert (second.id, second.uuid) == ("rocm:0000:03:00.0", "1")


def test_other_cards_and_connectors_are_not_its_business(machine):
    machine.card(0, "0000:01:00.0", vendor="0x10de")
    card = machine.card(1, "0000:03:00.0")
    (card / "mem_info_vram_total").unlink()
    (machine.root / "sys/class/drm/card1-DP-1/device").mkdir(parents=True)
    (machine.root / "sys/class/drm/renderD128/device").mkdir(parents=True)
    assert machine.read().devices == {}


def test_the_routers_own_mask_holds(machine):
    machine.card(0, "0000:03:00.0", unique_id="aa")
    machine.card(1, "0000:04:00.0", unique_id="bb")
    found = machine.read(ROCR_VISIBLE_DEVICES="GPU-00000000000000bb")
    assert list(found.devices) == ["rocm:bb"]


def test_what_each_process_holds_is_told_by_the_compute_driver(machine):
    machine.card(0, "0000:03:00.0", vram=(24 * GIB, 8 * GIB), unique_id="aa")
    machine.node(1, 51001, location=0x0300)
    machine.compute(5, 51001, 5 * GIB)
    machine.compute(6, 51001, 2 * GIB)
    found = machine.read(5)
    assert found.used == {5: {"rocm:aa": 5 * GIB}}
    assert found.attributed == {"rocm:aa": True}


def test_a_whole_tree_is_added_up(machine):
    machine.card(0, "0000:03:00.0", vram=(24 * GIB, 8 * GIB), unique_id="aa")
    machine.node(1, 51001, location=0x0300)
    machine.compute(5, 51001, 5 * GIB)
    machine.compute(6, 51001, 2 * GIB)
    found = Amd({}, machine.root).read({5: frozenset({5, 6})})
    assert found.used == {5: {"rocm:aa": 7 * GIB}}


def test_or_by_the_render_nodes_it_has_open_each_client_once(machine):
    machine.card(0, "0000:03:00.0", vram=(24 * GIB, 8 * GIB), unique_id="aa")
    machine.card(1, "0000:04:00.0", unique_id="bb")
    machine.render(5, 7, "0000:03:00.0", client=70, memory_vram=3 << 20)
    machine.render(5, 8, "0000:03:00.0", client=70, memory_vram=3 << 20)  # the same, duplicated
    machine.render(5, 9, "0000:03:00.0", client=71, resident_vram=1 << 20, memory_vram=1 << 20)
    machine.render(5, 10, "0000:04:00.0", client=72, memory_vram=2 << 20)
    found = machine.read(5)
    assert found.used == {5: {"rocm:aa": 4 * GIB, "rocm:bb": 2 * GIB}}


def test_who_stands_in_both_is_not_counted_twice(machine):
    machine.card(0, "0000:03:00.0", vram=(24 * GIB, 8 * GIB), unique_id="aa")
    machine.node(1, 51001, location=0x0300)
    machine.compute(5, 51001, 5 * GIB)
    machine.render(5, 7, "0000:03:00.0", client=70, memory_vram=5 << 20)
    assert machine.read(5).used == {5: {"rocm:aa": 5 * GIB}}


def test_without_any_source_nothing_is_attributed_and_memory_is_still_told(machine):
    machine.card(0, "0000:03:00.0", vram=(24 * GIB, 8 * GIB), unique_id="aa")
    found = machine.read(5)
    assert found.devices["rocm:aa"].free_bytes == 16 * GIB
    assert found.attributed == {"rocm:aa": False}
    assert found.used == {5: {}}
    assert "cannot be told" in found.notes[0]


class TestApu:
    """Its memory is a carve-out and a window (GTT) into the machine's own; the kernel uses the larger one."""

    SMALL: ClassVar[dict[str, Any]] = {"vram": (512 * MIB, 0), "gtt": (15 * GIB, 1 * GIB), "metrics": 2}

    def test_with_a_small_carve_out_it_draws_from_the_host(self, machine):
        machine.card(0, "0000:c5:00.0", **self.SMALL)
        (device,) = machine.read().devices.values()
        assert device.pool == "host"
        assert (device.total_bytes, device.free_bytes) == (15 * GIB, 14 * GIB)

    def test_with_a_large_one_that_is_its_memory(self, machine):
        machine.card(0, "0000:c5:00.0", vram=(96 * GIB, 0), gtt=(16 * GIB, 0), metrics=3)
        (device,) = machine.read().devices.values()
        assert device.pool == device.id
        assert device.total_bytes == 96 * GIB

    def test_a_card_that_is_smaller_than_its_window_is_still_a_card(self, machine):
        machine.card(0, "0000:03:00.0", vram=(8 * GIB, 0), gtt=(32 * GIB, 0), metrics=1)
        (device,) = machine.read().devices.values()
        assert device.total_bytes == 8 * GIB

    def test_what_a_process_holds_there_it_holds_of_the_host(self, machine):
        machine.card(0, "0000:c5:00.0", **self.SMALL)
        machine.render(5, 7, "0000:c5:00.0", client=70, memory_vram=1 << 20, memory_gtt=4 << 20)
        assert machine.read(5).used == {5: {"host": 4 * GIB}}

    async def test_in_a_sample_it_has_no_more_than_the_host_has(self, machine, open_devices):
        machine.card(0, "0000:c5:00.0", vram=(512 * MIB, 0), gtt=(1 << 50, 0), metrics=2)
        devices = await open_devices(enabled={"nvml": False}, root=machine.root, environ={})
        sample = await look(devices)
        host, apu = sample.devices["host"], sample.devices["rocm:0000:c5:00.0"]
        assert (apu.total_bytes, apu.free_bytes) == (host.total_bytes, host.free_bytes)


def test_a_sleeping_card_is_read_without_a_word_to_it(machine):
    card = machine.card(0, "0000:03:00.0", vram=(24 * GIB, GIB), unique_id="aa")
    power = machine.root / "sys/bus/pci/devices/0000:03:00.0/power"
    power.mkdir(parents=True)
    (power / "runtime_status").write_text("suspended\n")
    (card / "gpu_busy_percent").unlink()
    (device,) = machine.read().devices.values()
    assert device.asleep
    assert device.free_bytes == 23 * GIB
    assert device.utilisation_percent is None
    assert device.temperature_celsius is None


def test_a_card_that_does_not_answer_or_is_gone_is_kept_with_a_reason(machine):
    card = machine.card(0, "0000:03:00.0", vram=(24 * GIB, GIB), unique_id="aa")
    machine.card(1, "0000:04:00.0", unique_id="bb")
    amd = Amd({}, machine.root)
    before = amd.read({})
    (card / "mem_info_vram_used").write_text("")
    found = amd.read({})
    assert found.devices["rocm:aa"].free_bytes is None
    assert found.devices["rocm:aa"].total_bytes == 24 * GIB
    assert found.devices["rocm:aa"].error == "the driver does not tell its memory"
    assert not found.attributed["rocm:aa"]
    assert found.devices["rocm:bb"] == before.devices["rocm:bb"]
    (card / "vendor").unlink()
    assert amd.read({}).devices["rocm:aa"].error == "the driver does not list it any more"
    (card / "vendor").write_text("0x1002\n")
    (card / "mem_info_vram_used").write_text(f"{GIB}\n")
    assert amd.read({}) == before


def test_a_card_is_read_whole_or_not_at_all_when_files_run_out(machine):
    """Else an APU's memory were for a moment another's, or what a process holds nobody's."""
    machine.card(0, "0000:03:00.0", vram=(24 * GIB, 8 * GIB), unique_id="aa")
    machine.card(1, "0000:04:00.0", vram=(GIB, 0), metrics=2)
    machine.node(1, 51001, location=0x0300)
    machine.compute(5, 51001, 5 * GIB)
    machine.render(5, 7, "0000:04:00.0", client=70, memory_gtt=1 << 20)
    *without, whole = at_each_moment(lambda: machine.read(5))
    assert whole == machine.read(5)
    assert len(without) > 20
    assert all(isinstance(error, OSError) and is_out_of_files(error) for error in without)
