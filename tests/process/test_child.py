"""Real processes, at each moment of their lives: whatever happens, nothing of them is left."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from router.errors import LoadFailed
from router.process import Command, Health, LogFile, NotAlive, Process, find_marked, identify
from tests.fake_binary import FAKE
from tests.process.traces import ENVIRON, is_alive, leaves_nothing, owning_tasks
from tests.scarcity import few_descriptors
from tests.waiting import until

HEALTH = Health(poll_seconds=0.01, probe_timeout_seconds=0.5, stall_seconds=60.0, timeout_seconds=60.0)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with leaves_nothing(tmp_path):
        yield tmp_path


def command(folder: Path, *flags: str, log_max_bytes: int = 1 << 20, name: str = "child") -> Command:
    socket = folder / f"{name}.sock"
    argv = (sys.executable, "-SE", str(FAKE), "--host", str(socket), *flags)
    return Command(argv, socket, LogFile(folder / f"{name}.log", log_max_bytes), folder, ENVIRON)


# --- birth ------------------------------------------------------------------------------------------------


async def test_a_child_becomes_ready_and_ends_when_told(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--load-seconds", "0.1"), tasks)
        await process.ready(HEALTH)
        ended = await process.stop(grace_seconds=10)
    assert (ended.returncode, ended.reason) == (0, "exited with status 0")
    assert "cleaning up" in ended.log_tail[-1]
    assert process.ended


async def test_a_child_leads_a_session_and_inherits_nothing_but_its_log(folder):
    with (folder / "ours").open("w"):
        async with owning_tasks() as tasks:
            process = await Process.spawn("child", command(folder), tasks)
            await process.ready(HEALTH)
            links = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            assert os.getsid(process.pid) == process.pid
            assert links.count(str(folder / "child.log")) == 2  # stdout and stderr
            assert "/dev/null" in links
            assert not [link for link in links if link.endswith("ours")]
            assert (folder / "child.log").stat().st_mode & 0o777 == 0o600
            assert (folder / "child.sock").stat().st_mode & 0o077 == 0
            assert Path(f"/proc/{process.pid}/cwd").readlink() == folder
            await process.stop(grace_seconds=10)


async def test_the_environment_is_what_was_given_and_no_more(folder, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "not for children")
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder), tasks)
        await process.ready(HEALTH)
        environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        await process.stop(grace_seconds=0)
    names = {entry.partition(b"=")[0].decode() for entry in environ if entry}
    assert names == {*ENVIRON, "LLAMA_ROUTER_CHILD"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file; run bin/build-llama-server"),
        (lambda path: path.write_text("#!/bin/sh\n"), "permission denied; make it executable"),
        (
            lambda path: (path.write_bytes(b"\x7fnot an ELF"), path.chmod(0o755)),
            "not a program for this machine",
        ),
        (lambda path: (path.write_text("#!/no/such/interpreter\n"), path.chmod(0o755)), "interpreter"),
    ],
)
async def test_a_binary_that_cannot_run_says_what_to_do(folder, make, words):
    binary = folder / "llama-server"
    make(binary)
    bad = dataclasses.replace(command(folder), argv=(str(binary),))
    async with owning_tasks() as tasks:
        with pytest.raises(LoadFailed, match=words) as failed:
            await Process.spawn("child", bad, tasks)
    assert str(binary) in failed.value.message


async def test_a_runtime_folder_that_is_gone_is_named(folder):
    bad = dataclasses.replace(command(folder), cwd=folder / "gone")
    async with owning_tasks() as tasks:
        with pytest.raises(LoadFailed, match=r"runtime folder .*gone is gone"):
            await Process.spawn("child", bad, tasks)


async def test_a_link_in_the_place_of_a_log_fails_the_load(folder):
    (folder / "link").symlink_to(folder / "elsewhere")
    bad = dataclasses.replace(command(folder), log=LogFile(folder / "link", 1000))
    async with owning_tasks() as tasks:
        with pytest.raises(LoadFailed, match="Too many levels of symbolic links"):
            await Process.spawn("child", bad, tasks)
    assert not (folder / "elsewhere").exists()


async def test_a_child_that_cannot_be_named_for_want_of_files_is_ended_at_once(folder, monkeypatch):
    def out_of_files(pid, *, also_zombie=False):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("router.process.child.identify", out_of_files)
    async with owning_tasks() as tasks:
        with pytest.raises(LoadFailed, match="ulimit -n"):
            await Process.spawn("child", command(folder), tasks)


async def test_a_runtime_folder_that_takes_no_socket_says_so(folder, monkeypatch):
    def read_only(self, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    async with owning_tasks() as tasks:
        with pytest.raises(LoadFailed, match=r"takes no socket: Read-only file system"):
            await Process.spawn("child", command(folder), tasks)
    monkeypatch.undo()


async def test_a_socket_path_too_long_for_the_kernel_is_refused(folder):
    bad = dataclasses.replace(command(folder), socket=folder / ("x" * 107 + ".sock"))
    async with owning_tasks() as tasks:
        with pytest.raises(LoadFailed, match="shorter --state-dir"):
            await Process.spawn("child", bad, tasks)


async def test_a_stale_socket_in_the_way_is_removed(folder):
    (folder / "child.sock").write_text("left by a crash")
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder), tasks)
        await process.ready(HEALTH)
        await process.stop(grace_seconds=10)


async def test_spawning_does_not_hold_up_the_event_loop(folder):
    loop = asyncio.get_running_loop()
    gaps = [0.0]

    async def tick():
        last = loop.time()
        while True:
            await asyncio.sleep(0)
            now = loop.time()
            gaps.append(now - last)
            last = now

    async with owning_tasks() as tasks:
        ticking = tasks.create_task(tick())
        processes = [
            await Process.spawn(f"child{i}", command(folder, "--hang-bind", name=f"c{i}"), tasks)
            for i in range(4)
        ]
        ticking.cancel()
        await asyncio.gather(*(process.stop(grace_seconds=0) for process in processes))
    assert len(gaps) > 20, "the loop did not turn while children were spawned"


# --- loading ----------------------------------------------------------------------------------------------


async def test_a_death_while_loading_is_noticed_without_waiting_for_a_probe(folder):
    slow = dataclasses.replace(HEALTH, poll_seconds=1e6)  # only the pidfd can tell
    async with owning_tasks() as tasks:
        process = await Process.spawn(
            "child", command(folder, "--crash-during-load", "--load-seconds", "0.2"), tasks
        )
        with pytest.raises(LoadFailed, match=r"killed by SIGSEGV \(segmentation fault\)") as failed:
            await process.ready(slow)
    assert failed.value.details["returncode"] == -signal.SIGSEGV
    assert "initializing" in failed.value.message
    assert failed.value.details["log_tail"]


async def test_a_health_path_that_accepts_and_never_answers_does_not_wedge(folder):
    health = dataclasses.replace(HEALTH, probe_timeout_seconds=0.05, timeout_seconds=0.5)
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--hang-health"), tasks)
        with pytest.raises(LoadFailed, match="was not ready after"):
            await process.ready(health)
        assert not process.ended, "the caller ends it, with the grace it wants"
        await process.stop(grace_seconds=10)


@pytest.mark.parametrize(
    "flags", [("--hang-load",), ("--hang-bind", "--hang-load"), ("--silent", "--hang-load")]
)
async def test_a_load_without_progress_is_called_hung(folder, flags):
    health = dataclasses.replace(HEALTH, stall_seconds=1.5)
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, *flags), tasks)
        with pytest.raises(LoadFailed, match="hung while loading: no progress"):
            await process.ready(health)
        await process.stop(grace_seconds=10)


async def test_a_load_that_still_reads_is_not_called_hung_but_has_a_last_deadline(folder):
    health = dataclasses.replace(HEALTH, stall_seconds=1.0, timeout_seconds=3.0)
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--busy-load"), tasks)
        with pytest.raises(LoadFailed, match="was not ready after 3 s"):
            await process.ready(health)
        await process.stop(grace_seconds=10)


async def test_an_out_of_memory_line_is_understood(folder):
    texts = ("cudaMalloc failed",)
    script = "echo 'ggml: cudaMalloc failed: out of memory' >&2; kill -ABRT $$"
    dying = dataclasses.replace(command(folder), argv=("/bin/sh", "-c", script), out_of_memory_texts=texts)
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", dying, tasks)
        ended = await process.wait()
    assert ended.out_of_memory
    assert ended.reason == "killed by SIGABRT (out of memory)"


# --- death ------------------------------------------------------------------------------------------------


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--ignore-sigterm"), tasks)
        await process.ready(HEALTH)
        ended = await process.stop(grace_seconds=0.2)
    assert ended.returncode == -signal.SIGKILL
    assert ended.reason == "killed by SIGKILL"
    assert not ended.out_of_memory, "we killed it, not the kernel"


async def test_a_second_stop_may_shorten_the_grace_of_the_first(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--ignore-sigterm"), tasks)
        await process.ready(HEALTH)
        patient = tasks.create_task(process.stop(grace_seconds=1e6))
        await asyncio.sleep(0)
        assert (await process.stop(grace_seconds=0)).returncode == -signal.SIGKILL
        assert (await patient).returncode == -signal.SIGKILL


async def test_a_child_may_use_its_grace(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--slow-stop", "0.3"), tasks)
        await process.ready(HEALTH)
        assert (await process.stop(grace_seconds=30)).returncode == 0


async def test_a_death_after_ready_is_told_to_all_who_wait(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder), tasks)
        await process.ready(HEALTH)
        waiting = [tasks.create_task(process.wait()) for _ in range(3)]
        os.kill(process.pid, signal.SIGBUS)
        assert {(await task).reason.partition(" (")[0] for task in waiting} == {"killed by SIGBUS"}
        assert (await process.stop(grace_seconds=10)).returncode == -signal.SIGBUS, (
            "stopping the dead is fine"
        )


async def test_a_death_while_stopping_is_an_end_like_any_other(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--ignore-sigterm"), tasks)
        await process.ready(HEALTH)
        stopping = tasks.create_task(process.stop(grace_seconds=1e6))
        await asyncio.sleep(0)
        os.kill(process.pid, signal.SIGSEGV)
        assert (await stopping).returncode == -signal.SIGSEGV


@pytest.mark.parametrize("flag", ["--fork-grandchild", "--double-fork"])
async def test_what_a_child_has_forked_goes_with_it(folder, flag):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, flag), tasks)
        await process.ready(HEALTH)
        family = {identity.pid for identity in find_marked(str(process.socket))}
        assert len(family) == 2, "the grandchild carries the marker too"
        await process.stop(grace_seconds=10)
        await process.cleared()
        await until(lambda: not find_marked(str(process.socket)), "the grandchild outlived its parent")


async def test_what_has_escaped_is_ended_as_soon_as_there_are_files_to_look_with(folder, caplog):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--double-fork"), tasks)
        await process.ready(HEALTH)
        with few_descriptors(0):
            assert (await process.stop(grace_seconds=0)).returncode == -signal.SIGKILL
            await until(lambda: "cannot look" in caplog.text, "it has not looked for what is left")
        assert find_marked(str(process.socket)), "with no files it saw nothing, and ended nothing"
        await process.cleared()
        await until(lambda: not find_marked(str(process.socket)), "the grandchild outlived its parent")
    assert "Traceback" not in caplog.text


async def test_its_group_is_gone_with_the_notice_of_its_death_also_what_bears_no_marker(folder):
    script = 'env -i sleep 1000 & echo "grandchild $!"; exec "$@"'
    wrapped = command(folder)
    wrapped = dataclasses.replace(wrapped, argv=("/bin/sh", "-c", script, "sh", *wrapped.argv))
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", wrapped, tasks)
        await process.ready(HEALTH)
        pid = int(process.log.tail(10)[0].removeprefix("grandchild "))
        grandchild = identify(pid)
        assert grandchild is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await until(lambda: not is_alive(grandchild), "the grandchild outlived its parent")


@pytest.mark.parametrize("flag", ["--fork-grandchild", "--double-fork"])
async def test_a_grandchild_that_holds_the_log_does_not_delay_the_notice(folder, flag):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, flag), tasks)
        await process.ready(HEALTH)
        os.kill(process.pid, signal.SIGKILL)
        assert (await process.wait()).returncode == -signal.SIGKILL


async def test_a_log_bomb_stays_within_its_bound(folder):
    bound = 1 << 20
    largest = 0
    flags = ("--spew-log", "60", "--load-seconds", "4")
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, *flags, log_max_bytes=bound), tasks)
        ready = tasks.create_task(process.ready(HEALTH))
        while not ready.done():
            largest = max(largest, (folder / "child.log").stat().st_size)
            await asyncio.sleep(0.005)
        await until(lambda: (folder / "child.log").stat().st_size <= bound, "the log is not cut")
        ended = await process.stop(grace_seconds=10)
    assert largest < 30 * bound, f"60 MiB written in bursts of 6; the file reached {largest >> 20} MiB"
    assert "cleaning up" in ended.log_tail[-1], "the newest lines are kept"


# --- cancellation -----------------------------------------------------------------------------------------


async def run_its_life(folder: Path, tasks: asyncio.TaskGroup, reached: list[str]) -> None:
    slow = command(folder, "--load-seconds", "0.05", "--slow-stop", "0.05")
    process = await Process.spawn("child", slow, tasks)
    try:
        reached.append("loading")
        await process.ready(HEALTH)
        reached.append("stopping")
        await process.stop(grace_seconds=10)
        reached.append("ended")
    finally:
        process.end(grace_seconds=0)


async def test_cancelled_at_any_turn_of_the_loop_a_life_leaves_nothing(folder):
    """Each time some turns later, from before the spawn to after the end, so that every await is hit."""
    turns = 0
    reached: list[str] = []
    cancelled_in = set()
    while "ended" not in reached:
        reached = []
        async with owning_tasks() as tasks:
            life = tasks.create_task(run_its_life(folder, tasks, reached))
            for _ in range(turns):
                await asyncio.sleep(0 if turns < 30 else 0.002)
                if life.done():
                    break
            life.cancel()
        with leaves_nothing(folder):
            pass
        cancelled_in.add(reached[-1] if reached else "spawning")
        turns += 1 if turns < 30 else 7
    assert cancelled_in == {"spawning", "loading", "stopping", "ended"}


async def test_cancelling_the_owners_ends_the_children(folder):
    processes = []

    async def live_until_a_bug_elsewhere():
        async with asyncio.TaskGroup() as tasks:
            for i in range(3):
                stubborn = command(folder, "--ignore-sigterm", "--double-fork", name=f"c{i}")
                processes.append(await Process.spawn(f"c{i}", stubborn, tasks))
                await processes[i].ready(HEALTH)
            raise RuntimeError("a bug elsewhere")

    with pytest.raises(ExceptionGroup):
        await live_until_a_bug_elsewhere()
    assert [process.ended for process in processes] == [True, True, True]


async def test_a_cancelled_stop_goes_on(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--ignore-sigterm"), tasks)
        await process.ready(HEALTH)
        stopping = tasks.create_task(process.stop(grace_seconds=0.1))
        await asyncio.sleep(0)
        stopping.cancel()
        assert (await process.wait()).returncode == -signal.SIGKILL


async def test_a_loop_that_is_torn_down_takes_its_children_along(folder):
    script = f"""
import asyncio, sys
from pathlib import Path
from tests.process.test_child import HEALTH, command
from router.process import Process
async def main():
    async with asyncio.TaskGroup() as tasks:
        process = await Process.spawn("child", command(Path({str(folder)!r}), "--ignore-sigterm"), tasks)
        await process.ready(HEALTH)
        print(process.pid, flush=True)
        await asyncio.sleep(1e6)
asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    router = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
    )
    assert router.stdout is not None
    pid = int(await router.stdout.readline())
    child = identify(pid)
    assert child is not None
    router.send_signal(signal.SIGINT)
    await router.communicate()
    assert not is_alive(child)


# --- adoption ---------------------------------------------------------------------------------------------


class Foreign:
    """A child of somebody who is gone: reparented, so that its status is not ours to know."""

    def __init__(self, command: Command) -> None:
        self.command = command
        environ = {**command.env, "LLAMA_ROUTER_CHILD": str(command.socket)}
        script = (
            "import subprocess, sys; log = open(sys.argv[1], 'ab'); print(subprocess.Popen(sys.argv[2:],"
            " stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True).pid)"
        )
        launcher = [sys.executable, "-S", "-c", script, str(command.log.path), *command.argv]
        self.pid = int(subprocess.run(launcher, env=environ, capture_output=True, check=True).stdout)
        found = identify(self.pid)
        assert found is not None
        self.identity = found


async def test_a_child_of_somebody_else_is_adopted_and_lives_on_like_one_of_ours(folder):
    foreign = Foreign(command(folder))
    async with owning_tasks() as tasks:
        process = await Process.adopt("adopted", foreign.identity, foreign.command, tasks)
        await process.ready(HEALTH)
        assert process.pid == foreign.pid
        ended = await process.stop(grace_seconds=10)
    assert ended.returncode is None
    assert "cleaning up" in ended.log_tail[-1]


@pytest.mark.parametrize("flag", ["--fork-grandchild", "--double-fork"])
async def test_the_death_of_an_adopted_child_is_noticed_and_its_family_ended(folder, flag):
    foreign = Foreign(command(folder, "--ignore-sigterm", flag))
    async with owning_tasks() as tasks:
        process = await Process.adopt("adopted", foreign.identity, foreign.command, tasks)
        await process.ready(HEALTH)
        os.kill(foreign.pid, signal.SIGKILL)
        await process.wait()


async def test_an_adopted_child_that_ignores_sigterm_is_killed(folder):
    foreign = Foreign(command(folder, "--ignore-sigterm"))
    async with owning_tasks() as tasks:
        process = await Process.adopt("adopted", foreign.identity, foreign.command, tasks)
        await process.ready(HEALTH)
        await process.stop(grace_seconds=0.1)
    assert not is_alive(foreign.identity)


async def test_a_pid_that_is_another_process_by_now_is_not_adopted_nor_harmed(folder):
    stranger = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        real = identify(stranger.pid)
        assert real is not None
        earlier = dataclasses.replace(real, start_time=real.start_time - 1)
        async with owning_tasks() as tasks:
            with pytest.raises(NotAlive):
                await Process.adopt("adopted", earlier, command(folder), tasks)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_neither_the_dead_nor_their_zombies_are_adopted(folder):
    zombie = subprocess.Popen(["/bin/true"])
    identity = identify(zombie.pid, also_zombie=True)
    assert identity is not None
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    async with owning_tasks() as tasks:
        with pytest.raises(NotAlive):
            await Process.adopt("zombie", identity, command(folder), tasks)
        zombie.wait()
        with pytest.raises(NotAlive):
            await Process.adopt("gone", identity, command(folder), tasks)


async def test_a_child_left_alone_goes_on_and_can_be_adopted(folder):
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder), tasks)
        await process.ready(HEALTH)
        process.detach()
        assert (await process.stop(grace_seconds=0)).reason == "left to the next router"
    assert is_alive(process.identity)
    async with owning_tasks() as tasks:
        again = await Process.adopt("child", process.identity, command(folder), tasks)
        await again.ready(HEALTH)
        await again.stop(grace_seconds=10)
    os.waitpid(process.pid, 0)  # in this test both routers are one process, and the child its own


# --- without pidfds ---------------------------------------------------------------------------------------


async def test_without_pidfds_exits_are_noticed_by_looking(folder, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder), tasks)
        await process.ready(HEALTH)
        os.kill(process.pid, signal.SIGKILL)
        assert (await process.wait()).returncode == -signal.SIGKILL
        await process.cleared()  # the next one has the same socket: it would be taken for a stray of this one
        crashing = await Process.spawn("child", command(folder, "--crash-during-load"), tasks)
        with pytest.raises(LoadFailed, match="SIGSEGV"):
            await crashing.ready(HEALTH)


LEADER_LEAVES = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).syscall({exit}, 0)  # of this thread alone
"""


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the number of a system call")
async def test_without_pidfds_a_child_of_which_a_thread_lives_on_is_no_zombie_and_none_is_left(
    folder, monkeypatch
):
    """Large children take their time to go: by /proc they are zombies meanwhile, and cannot be reaped yet."""
    monkeypatch.delattr(os, "pidfd_open")
    script = LEADER_LEAVES.format(exit=60 if os.uname().machine == "x86_64" else 93)
    plain = dataclasses.replace(command(folder), argv=(sys.executable, "-S", "-c", script))
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", plain, tasks)
        await until(lambda: identify(process.pid) is None)
        await asyncio.sleep(0.2)  # in which it must not be found to have ended
        assert not process.ended
        await process.stop(grace_seconds=0)
        with pytest.raises(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


# --- the kernel's own hand --------------------------------------------------------------------------------


def memory_cgroup() -> Path | None:
    """A cgroup with a limit of 64 MiB, where this machine lets us make one."""
    for base, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(base) / f"llama-router-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / limit).write_text(str(64 << 20))
        except OSError:
            if folder.is_dir():
                folder.rmdir()
            continue
        return folder
    return None


async def test_evidence_of_such_a_kill_is_kept_for_as_long_as_dying_may_take(folder, monkeypatch):
    """Taking down a large process may last seconds, in which the owner has looked at the count again."""
    kills = 0
    monkeypatch.setattr("router.process.child.oom_kill_count", lambda: kills)
    monkeypatch.setattr("router.process.child._OOM_EVIDENCE_SECONDS", 0.0)  # every look counts
    monkeypatch.setattr("router.process.child._LOOK_SECONDS", 1e6)
    async with owning_tasks() as tasks:
        process = await Process.spawn("child", command(folder, "--ignore-sigterm"), tasks)
        await process.ready(HEALTH)
        kills = 1
        await process._look(0, 1.0)
        os.kill(process.pid, signal.SIGKILL)
        assert (await process.wait()).out_of_memory


async def test_a_kill_by_the_kernel_for_want_of_memory_is_said(folder):
    cgroup = memory_cgroup()
    if cgroup is None:
        pytest.skip("no memory cgroup can be made here")
    try:
        async with owning_tasks() as tasks:
            eater = command(folder, "--alloc-mib", "512", "--load-seconds", "3")
            process = await Process.spawn("child", eater, tasks)
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            with pytest.raises(LoadFailed, match="OOM killer") as failed:
                await process.ready(HEALTH)
        assert failed.value.details["out_of_memory"] is True
    finally:
        deadline = time.monotonic() + 10
        while cgroup.exists() and time.monotonic() < deadline:
            try:
                cgroup.rmdir()
            except OSError:
                await asyncio.sleep(0.01)


def test_nothing_of_these_tests_is_left_behind():
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
