"""The local host: it passes what every host must, and its children outlive it if they shall."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.config import DeviceConfig, MemoryConfig
from router.db.store import Store
from router.engines import Launch
from router.errors import LoadFailed, ShuttingDown, StartupError, Unavailable
from router.hosts import Address, HostFull, local
from router.hosts.local import LocalHost
from router.hosts.records import CHILDREN, LOAD_TIMES, ProcessRecord, keep_record
from router.ids import Definition
from router.process import Process, get_status, identify
from router.scheduler.types import InstanceId, Placement
from tests.hosts import conformance
from tests.hosts.conftest import FIRST, GIB, MEMORY, MIB, SECOND, on_first
from tests.memory.devices.conftest import A, B
from tests.process.traces import is_alive
from tests.stub_nvml.state import Stranger
from tests.waiting import until, wait_until

ROOM = (
    A.total - A.reserved - GIB
)  # what may be had on the first GPU: less the driver's reserve and the margin


@dataclasses.dataclass
class LocalSubject:
    host: LocalHost
    fake: Callable[..., Launch]

    def placement(self, share: float) -> Placement:
        return on_first(int(ROOM * share) // MIB * MIB)

    def launch(self, placement: Placement, *, load_seconds: float = 0.0, fails: bool = False) -> Launch:
        flags = ("--alloc-mib", str(placement.footprint[FIRST] // MIB), "--load-seconds", str(load_seconds))
        return self.fake(*flags, *(["--crash-during-load"] if fails else []))

    async def kill(self, instance: InstanceId) -> None:
        pids = {record.instance: record.pid for record in await self.host.instances()}
        os.kill(pids[instance] or 0, signal.SIGKILL)

    async def answers(self, address: Address) -> bool:
        return await get_status(Path(address.socket), "/health", timeout_seconds=10) == 200


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_it_is_a_host(host, fake, check):
    await check(LocalSubject(host, fake))


async def start(host, fake, instance="a#1", size=4 * GIB, *flags, **how):
    launch = fake("--alloc-mib", str(size // MIB), *flags, **how)
    return await host.start(
        instance,
        instance.partition("#")[0],
        on_first(size),
        launch,
        definition=Definition("first", "definition"),
    )


async def kept_records(store: Store) -> tuple[ProcessRecord, ...]:
    return tuple((await store.rows(CHILDREN)).values())


def pid_of(records):
    (record,) = records
    assert record.pid is not None
    return record.pid


# --- memory -----------------------------------------------------------------------------------------------


async def test_margins_and_disabled_devices_are_as_configured(open_host):
    named = {"cuda:0": DeviceConfig(margin_mib=3), B.uuid: DeviceConfig(enabled=False)}
    async with open_host(MemoryConfig(margin_mib=7, devices=named)) as host:
        devices = {device.id: device for device in await host.devices()}
        assert set(devices) == {FIRST, "local/host"} == set((await host.measure()).free)
        assert devices[FIRST].margin == 3 * MIB
        assert devices["local/host"].margin == 7 * MIB
        assert devices[FIRST].total == A.total - A.reserved
        assert SECOND not in host.infos
        assert host.infos[FIRST].uuid == A.uuid


async def test_memory_of_strangers_is_respected(host, fake, stub):
    stranger = Stranger(stub.folder, {0: 10 * GIB})
    try:
        with pytest.raises(HostFull, match=r"a needs 16\.0 GiB on cuda:0 .*: 13\.6 GiB free"):
            await start(host, fake, size=16 * GIB)
    finally:
        stranger.close()
    await start(host, fake, size=16 * GIB)


async def test_a_start_rests_on_the_figures_of_its_plan_unless_anything_began_or_ended_since(
    open_host, fake, monkeypatch
):
    monkeypatch.setattr(local, "JUST_NOW_SECONDS", 3600.0)
    async with open_host() as host:
        samples, sample = [], host._devices.sample

        async def counted(*args, **more):
            samples.append(more["wake"])
            return await sample(*args, **more)

        monkeypatch.setattr(host._devices, "sample", counted)
        await host.measure()
        await start(host, fake)
        assert samples == [False, True], "no driver had been asked for the first"
        await host.measure()
        await start(host, fake, "b#1")
        assert samples == [False, True, True], "it was planned on the figures of just now"
        await start(host, fake, "c#1")
        assert samples == [False, True, True, True], "but b has begun since"
        for one in ("a#1", "b#1", "c#1"):
            await host.stop(one, grace_seconds=10)
        await host.measure()
        assert samples[4:] == [True], "its memory is waited for, maybe"
        await start(host, fake, "d#1")
        assert samples[5:] == []


async def test_a_start_does_not_rest_on_old_figures(open_host, fake, stub, monkeypatch):
    monkeypatch.setattr(local, "JUST_NOW_SECONDS", -1.0)
    async with open_host() as host:
        await start(host, fake)
        await host.measure()
        stranger = Stranger(stub.folder, {0: 10 * GIB})
        try:
            with pytest.raises(HostFull, match=r"needs 16\.0 GiB"):
                await start(host, fake, "b#1", 16 * GIB)
        finally:
            stranger.close()


async def test_a_measurement_that_finds_no_file_to_look_with_is_refused_as_such(host, fake, monkeypatch):
    async def out_of_files(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files", "/proc/1/task")

    with monkeypatch.context() as patch:
        patch.setattr(host._devices, "sample", out_of_files)
        with pytest.raises(Unavailable, match="cannot measure memory: .*Too many open files"):
            await host.measure()
        with pytest.raises(Unavailable):
            await start(host, fake)
    await start(host, fake)


async def test_without_a_margin_nothing_is_checked(open_host, fake):
    async with open_host(MemoryConfig(margin_mib=0)) as host:
        with pytest.raises(LoadFailed, match="out of memory") as failed:
            await start(host, fake, size=30 * GIB)
        assert failed.value.details["out_of_memory"] is True
        assert (await host.wait("a#1")).out_of_memory


async def test_nothing_is_started_on_a_device_that_is_lost(host, fake, stub):
    await host.devices()
    stub.gpu(0, err=15)
    with pytest.raises(HostFull, match="is unhealthy"):
        await start(host, fake)
    assert (await host.measure()).free[FIRST] is None


async def test_nothing_is_started_on_a_device_that_is_not_there(host, fake):
    with pytest.raises(HostFull, match="local/cuda:9 is not there"):
        await host.start("a#1", "a", Placement("local", {"local/cuda:9": 1}), fake())


async def test_a_split_must_fit_on_both_devices(host, fake):
    both = {FIRST: 4 * GIB, SECOND: 15 * GIB}
    with pytest.raises(HostFull, match="on cuda:1"):
        await host.start("a#1", "a", Placement("local", both), fake())
    both[SECOND] = 4 * GIB
    flags = ("--alloc-mib", "4096,2048")
    await host.start("a#2", "a", Placement("local", both), fake(*flags, devices=(A.uuid, B.uuid)))
    used = (await host.measure()).used["a#2"]
    assert (used[FIRST], used[SECOND]) == (4 * GIB // 10 * 10, 2 * GIB // 10 * 10)


async def test_growth_that_is_promised_to_one_that_serves_is_not_given_away(host, fake):
    """It was started with 10 GiB reserved and has taken 4: it may take the rest with its next request."""
    launch = fake("--alloc-mib", str(4096))
    await host.start("a#1", "a", on_first(10 * GIB), launch)
    with pytest.raises(HostFull, match=r"6\.0 GiB of it promised"):
        await start(host, fake, "b#1", 14 * GIB)
    host.reserve({"a#1": {FIRST: 5 * GIB}, "gone#1": {FIRST: GIB}})
    await start(host, fake, "b#1", 14 * GIB)


async def test_what_a_loading_child_has_yet_to_take_is_promised(host, fake):
    """The first takes its 14 GiB in ten steps; at no step may the 9 GiB of the second seem free."""
    loading = asyncio.ensure_future(start(host, fake, "a#1", 14 * GIB, "--load-seconds", "0.6"))
    refused = 0
    await until(host.instances)
    while not loading.done():
        with contextlib.suppress(HostFull):
            await start(host, fake, f"b#{refused}", 9 * GIB)
            raise AssertionError("there was never room for both")
        refused += 1
    await loading
    assert refused > 2


async def test_without_attribution_a_child_counts_with_what_its_device_lost(host, fake, stub):
    stub.change(hide_pids=1)
    await start(host, fake, "a#1", 4 * GIB)
    first = (await host.measure()).used["a#1"]
    assert first[FIRST] == pytest.approx(4 * GIB, rel=0.01)
    overlapping = [start(host, fake, f"b#{i}", 3 * GIB, "--load-seconds", "0.2") for i in range(2)]
    await asyncio.gather(*overlapping)
    used = (await host.measure()).used
    assert used["b#0"][FIRST] == used["b#1"][FIRST] == 3 * GIB, "nothing better is known than the reservation"


# --- life -------------------------------------------------------------------------------------------------


async def test_leaving_stops_all_children_at_once_and_those_that_load_too(open_host, fake, paths):
    loop = asyncio.get_running_loop()
    async with open_host(stop_grace_seconds=0.5) as host:
        for i in range(4):
            await start(host, fake, f"a#{i}", GIB, "--ignore-sigterm", "--double-fork")
        loading = asyncio.ensure_future(start(host, fake, "b#1", GIB, "--hang-load", "--ignore-sigterm"))
        await until(host.instances, holds=lambda found: len(found) == 5)
        leaving_at = loop.time()
    assert loop.time() - leaving_at < 4 * 0.5 + 10, "one grace for all, not one each"
    with pytest.raises(LoadFailed):
        await loading
    with pytest.raises(ShuttingDown):
        await start(host, fake, "c#1", GIB)
    assert not list(paths.runtime_dir.glob("*.sock"))


async def test_a_cancelled_leaving_kills_what_it_would_have_waited_for(open_host, fake, paths):
    async def router():
        async with open_host(stop_grace_seconds=1e6) as host:
            await start(host, fake, "a#1", GIB, "--ignore-sigterm")
            await start(host, fake, "b#1", GIB, "--slow-stop", "1e6")
            serving.set()

    serving = asyncio.Event()
    running = asyncio.ensure_future(router())
    async with asyncio.timeout(30):
        await serving.wait()
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running})
    assert running.cancelled()
    assert not list(paths.runtime_dir.glob("*.sock"))


async def test_a_stop_in_the_middle_of_a_spawn_is_not_lost(host, fake, store):
    for turns in range(12):
        starting = asyncio.ensure_future(start(host, fake, f"a#{turns}", GIB, "--hang-load"))
        await until(lambda: kept_records(store))  # it is recorded before it is spawned
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await host.stop(f"a#{turns}", grace_seconds=0)
            with pytest.raises(LoadFailed):
                await starting
            await until(lambda: kept_records(store), holds=lambda records: not records)


async def test_only_one_router_works_on_a_state_folder(host, open_host):
    with pytest.raises(StartupError, match=rf"another llama-router \(pid {os.getpid()}\) works in"):
        async with open_host():
            pass


async def test_a_name_of_any_shape_makes_a_short_and_safe_path(host, fake, paths):
    names = ("../../etc/passwd#1", "a/b/c#2", "é" * 300 + "#3", ".#4", "-rf *; $(reboot)#5")
    addresses = [await start(host, fake, name, 100 * MIB) for name in names]
    assert {Path(address.socket).parent for address in addresses} == {paths.runtime_dir}
    assert all(len(Path(address.socket).name) < 40 for address in addresses)
    logs = [host.log_path(name) for name in names]
    assert all(log is not None and log.parent == paths.logs_dir for log in logs)


async def test_what_is_left_of_dead_routers_is_cleared_away(host, fake, paths):
    (paths.runtime_dir / "stale.sock").touch()
    for i in range(100):
        (paths.logs_dir / f"old-{i}.log").touch()
    await start(host, fake)
    await host.instances()
    assert [path.name for path in paths.runtime_dir.glob("*.sock")] == [
        Path((await host.instances())[0].address.socket).name
    ]
    assert len(list(paths.logs_dir.glob("old-*.log"))) == 64
    assert host.log_path("a#1").exists()


async def test_load_times_are_kept(host, fake, store):
    await start(host, fake, "a#1", GIB, "--load-seconds", "0.1")
    kept = Definition("first", "definition")
    await until(lambda: store.rows(LOAD_TIMES), holds=lambda times: kept in times)
    assert (await store.rows(LOAD_TIMES))[kept].seconds >= 0.1


# --- housekeeping that fails ------------------------------------------------------------------------------


def fails(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def fails_later(error: Exception) -> Callable[..., Any]:
    async def fail(*_: object, **__: object) -> None:
        raise error

    return fail


READ_ONLY = OSError(errno.EROFS, "Read-only file system")
#: What is done for one child at its end, and how it fails.
FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "the old log cannot be removed": ("pathlib.Path.unlink", fails(READ_ONLY)),
    "no thread can be started to remove it": (
        "router.hosts.local._remove",
        fails(RuntimeError("can't start new thread")),
    ),
    "the record cannot be deleted": (
        "router.db.store.Store.delete",
        fails_later(sqlite3.OperationalError("disk I/O error")),
    ),
    "its name is no Unicode": (
        "router.db.store.Store.delete",
        fails_later(UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")),
    ),
    "its end cannot be described": ("router.process.child.describe_exit", fails(ValueError("a status"))),
    "its log cannot be cut": ("router.process.LogFile.trim", fails(READ_ONLY)),
    "what it left cannot be looked for": ("router.process.child.find_marked", fails(READ_ONLY)),
}


@pytest.mark.parametrize(("target", "fault"), FAULTS.values(), ids=list(FAULTS))
async def test_the_housekeeping_of_one_child_that_fails_reaches_no_other(
    open_host, fake, paths, monkeypatch, target, fault
):
    monkeypatch.setattr(local, "LOGS_KEPT", 0)
    async with open_host() as host:
        living = await start(host, fake, "living#1", GIB)
        await start(host, fake, "dying#1", GIB)
        with monkeypatch.context() as patch:
            patch.setattr(target, fault)
            async with asyncio.timeout(30):
                await host.stop("dying#1", grace_seconds=10)
                await until(host.instances, holds=lambda found: len(found) == 1)
        assert await get_status(Path(living.socket), "/health", timeout_seconds=10) == 200
        again = await start(host, fake, "again#1", GIB)
        assert await get_status(Path(again.socket), "/health", timeout_seconds=10) == 200
        for socket in set(paths.runtime_dir.glob("*.sock")) - {Path(living.socket), Path(again.socket)}:
            socket.unlink()


@pytest.mark.parametrize(("owner", "target"), [(Store, "delete"), (Store, "put"), (local, "keep_load_time")])
async def test_leaving_is_bounded_where_the_database_hangs(
    open_host, fake, store, monkeypatch, owner, target
):
    monkeypatch.setattr(local, "_KILL_SECONDS", 0.5)

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patch:
        async with open_host() as host:
            await start(host, fake, "a#1", GIB)
            patch.setattr(owner, target, hang)
            loading = asyncio.ensure_future(start(host, fake, "b#1", GIB))
            await asyncio.sleep(0)
            leaving_at = loop.time()
        assert loop.time() - leaving_at < 20
        loading.cancel()
        await asyncio.wait({loading})
    await store.delete(CHILDREN, "a#1")
    await store.delete(CHILDREN, "b#1")


async def test_a_log_on_a_disk_that_hangs_does_not_keep_a_child_from_being_killed(
    open_host, fake, monkeypatch
):
    is_over = threading.Event()
    monkeypatch.setattr("router.process.LogFile.trim", lambda _: is_over.wait(60))
    async with open_host() as host:
        launch = dataclasses.replace(fake("--ignore-sigterm"), log_max_bytes=1)
        await host.start("a#1", "a", on_first(GIB), launch)
        await asyncio.sleep(1.0)  # in which its log has been looked at
        async with asyncio.timeout(20):
            await host.stop("a#1", grace_seconds=0.1)
        is_over.set()


async def test_one_record_that_cannot_be_adopted_does_not_keep_the_others_from_it(
    open_host, fake, store, monkeypatch
):
    async with open_host() as host:
        for name in ("a#1", "b#1"):
            await start(host, fake, name, GIB)
        await until(
            lambda: kept_records(store), holds=lambda records: all(record.is_ready for record in records)
        )
        pids = [record.pid for record in await kept_records(store) if record.pid is not None]
        host.hand_over()
    adopt = Process.adopt

    async def fail_for_one(name: str, *more: Any) -> Process:
        if name == "a#1":
            raise OSError(errno.EMFILE, "Too many open files")
        return await adopt(name, *more)

    monkeypatch.setattr(Process, "adopt", fail_for_one)
    async with open_host() as host:
        (record,) = await host.instances()
        assert (record.instance, record.ready) == ("b#1", True)
        assert [one.instance for one in await kept_records(store)] == ["b#1"]
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)  # in these tests every router is this process


async def test_every_child_can_be_killed_from_another_thread(host, fake):
    for name in ("a#1", "b#1"):
        await start(host, fake, name, GIB, "--ignore-sigterm")
    await asyncio.to_thread(host.kill_all)
    async with asyncio.timeout(20):
        assert [(await host.wait(name)).returncode for name in ("a#1", "b#1")] == [-signal.SIGKILL] * 2


# --- adoption ---------------------------------------------------------------------------------------------


@pytest.fixture
async def earlier(open_host, fake, store):
    """Leaves a child behind, as a router does that is replaced; yields its record and pid."""
    async with open_host() as host:
        address = await start(host, fake)
        await until(lambda: kept_records(store), holds=lambda records: records[0].is_ready)
        pid = pid_of(await host.instances())
        host.hand_over()
    identity = identify(pid)
    assert identity is not None
    yield address, identity
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # in these tests every router is this process


async def test_a_child_handed_over_is_found_serving(earlier, open_host, store):
    address, identity = earlier
    async with open_host() as host:
        (record,) = await host.instances()
        assert (record.instance, record.model, record.definition) == (
            "a#1",
            "a",
            Definition("first", "definition"),
        )
        assert (record.address, record.pid, record.ready) == (address, identity.pid, True)
        assert record.placement == on_first(4 * GIB)
        assert await get_status(Path(address.socket), "/health", timeout_seconds=10) == 200
        assert (await host.measure()).used["a#1"][FIRST] == 4 * GIB // 10 * 10
        assert "model loaded" in host.log_tail("a#1")[-1]
        waiting = asyncio.ensure_future(host.wait("a#1"))
        await host.stop(record.instance, grace_seconds=10.0)
        assert (await waiting).returncode is None
        assert await kept_records(store) == ()


async def test_an_adopted_child_is_stopped_with_the_host(earlier, open_host):
    _, identity = earlier
    async with open_host() as host:
        await host.instances()
    assert not is_alive(identity)


async def test_a_record_whose_pid_is_a_strangers_is_forgotten_and_the_stranger_left_alone(
    open_host, store, paths
):
    stranger = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        async with open_host() as host:
            identity = identify(stranger.pid)
            assert identity is not None
            record = record_of(paths, identity, start_time=identity.start_time - 1)
            await keep_record(store, record)
            assert await host.instances() == ()
            assert await kept_records(store) == ()
            # The same process by its start, but with another command line than the child had:
            record = record_of(paths, identity, start_time=identity.start_time, argv_hash="another")
            await keep_record(store, record)
            assert await host.instances() == ()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def record_of(paths, identity, **changes):
    record = ProcessRecord(
        "a#1",
        "a",
        Definition("d"),
        on_first(GIB),
        socket=str(paths.runtime_dir / "a.sock"),
        log=str(paths.logs_dir / "a.log"),
        pid=identity.pid,
        boot_id=identity.boot_id,
        is_ready=True,
    )
    return dataclasses.replace(record, **changes)


async def test_a_dead_childs_record_is_forgotten(earlier, open_host, store):
    _, identity = earlier
    os.kill(identity.pid, signal.SIGKILL)
    os.waitpid(identity.pid, 0)
    async with open_host() as host:
        assert await host.instances() == ()
        assert await kept_records(store) == ()


async def test_a_child_without_a_record_is_ended(earlier, open_host, store):
    _, identity = earlier
    await store.delete(CHILDREN, "a#1")
    async with open_host() as host:
        assert await host.instances() == ()
    wait_until(lambda: not is_alive(identity), "nobody would ever have ended it")


async def test_a_child_that_does_not_answer_is_found_but_not_called_ready(earlier, open_host):
    _, identity = earlier
    os.kill(identity.pid, signal.SIGSTOP)
    async with open_host() as host:
        (record,) = await host.instances()
        assert not record.ready
        await host.stop(record.instance, grace_seconds=0.1)
    assert not is_alive(identity)


ROUTER = """
import asyncio, sys
from pathlib import Path
from router.engines import Launch
from router.config import MemoryConfig, StatePaths
from router.ids import Definition
from router.scheduler.types import Placement
from router.memory.devices import Devices
from router.hosts.local import LocalHost
from router.db.store import Store
from router.hosts.records import CHILDREN
from tests.fake_binary import FAKE
from tests.process.traces import ENVIRON

async def main(state, run, *flags):
    paths = StatePaths(Path(state), Path(run))
    argv = (sys.executable, "-SE", str(FAKE), "--host", "{socket}")
    async with (
        Devices(enabled={"nvml": False, "amd": False}) as devices,
        Store(paths.database) as store,
        LocalHost(devices, store, paths, MemoryConfig(margin_mib=0)) as host,
    ):
        place = Placement("local", {"local/host": 1 << 20})
        await host.start("ready#1", "ready", place, Launch(argv, ENVIRON), definition=Definition("d"))
        hanging = Launch((*argv, "--hang-load"), ENVIRON)
        loading = asyncio.ensure_future(
            host.start("loading#1", "loading", place, hanging, definition=Definition("d"))
        )
        while len(await host.instances()) < 2 or not any(
            r.is_ready for r in (await store.rows(CHILDREN)).values()
        ):
            await asyncio.sleep(0.01)
        print(*(record.pid for record in await host.instances()), flush=True)
        await asyncio.sleep(1e6)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_children_of_a_router_that_was_killed_are_found_by_the_next(open_host, paths):
    router = subprocess.Popen(
        [sys.executable, "-c", ROUTER, str(paths.state_dir), str(paths.runtime_dir)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert router.stdout is not None
    identities = [identify(int(pid)) for pid in router.stdout.readline().split()]
    router.kill()
    router.communicate()
    assert all(identity is not None and is_alive(identity) for identity in identities)
    async with open_host(MEMORY) as host:
        records = {record.instance: record for record in await host.instances()}
        assert {name: record.ready for name, record in records.items()} == {
            "ready#1": True,
            "loading#1": False,
        }
        assert [records["ready#1"].pid, records["loading#1"].pid] == [i.pid for i in identities if i]
    assert not any(is_alive(identity) for identity in identities if identity)


async def test_no_child_is_lost_when_the_host_is_cancelled_at_any_moment(open_host, fake, store, paths):
    async def router():
        async with open_host(stop_grace_seconds=0.2) as host:
            await asyncio.gather(
                start(host, fake, "a#1", GIB, "--load-seconds", "0.05"),
                start(host, fake, "b#1", GIB, "--ignore-sigterm"),
            )
            await host.stop("a#1", grace_seconds=1)

    for delay_ms in (0, 30, 100, 150, 200, 250, 300, 400, 600):
        running = asyncio.ensure_future(router())
        await asyncio.wait({running}, timeout=delay_ms / 1000)
        running.cancel()
        await asyncio.wait({running})
        await until(lambda: not list(paths.runtime_dir.glob("*.sock")), "a socket is left")
        assert await kept_records(store) == ()


async def test_a_child_that_was_ready_and_stands_still_for_a_moment_is_not_given_up(earlier, open_host):
    """A machine that has just been woken, or is in need of memory."""
    _, identity = earlier
    os.kill(identity.pid, signal.SIGSTOP)
    async with open_host() as host:
        asyncio.get_running_loop().call_later(1.5, os.kill, identity.pid, signal.SIGCONT)
        (record,) = await host.instances()
        assert record.ready
