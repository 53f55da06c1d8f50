from __future__ import annotations

import os
import subprocess
import sys

import pytest

from router.process import argv_hash, find_marked, identify
from router.process.identity import MARKER, progress
from tests.fake_binary import INTERPRETER
from tests.process.traces import is_alive
from tests.scarcity import few_descriptors
from tests.waiting import wait_until


@pytest.fixture
def sleeper(tmp_path):
    environ = {**os.environ, MARKER: f"{tmp_path}/child.sock"}
    process = subprocess.Popen(["/bin/sleep", "1000"], env=environ)
    yield process
    process.kill()
    process.wait()


def test_a_process_is_itself_and_after_its_end_nobody(sleeper):
    identity = identify(sleeper.pid)
    assert identity is not None
    assert is_alive(identity)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert identify(sleeper.pid) is None, "a zombie holds nothing"
    assert identify(sleeper.pid, also_zombie=True) == identity
    sleeper.wait()
    assert not is_alive(identity)


def test_processes_of_one_pid_differ_by_their_start(sleeper):
    ours = identify(os.getpid())
    theirs = identify(sleeper.pid)
    assert ours is not None
    assert theirs is not None
    assert theirs.start_time >= ours.start_time
    assert theirs.boot_id == ours.boot_id


def test_a_name_with_brackets_and_blanks_does_not_confuse_the_fields(tmp_path):
    script = tmp_path / "a) S 1 (b"
    script.write_text(f"#!{INTERPRETER} -SE\nprint(flush=True); import time; time.sleep(1000)\n")
    script.chmod(0o755)
    process = subprocess.Popen([script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        odd, ours = identify(process.pid), identify(os.getpid())
        assert odd is not None
        assert ours is not None
        assert odd.start_time >= ours.start_time
    finally:
        process.kill()
        process.communicate()


def settled_argv_hash(pid):
    """The kernel has the new command line a moment after exec has returned to the parent."""
    wait_until(lambda: argv_hash(pid) is not None, "the process has no command line")
    return argv_hash(pid)


def test_command_lines_are_told_apart_by_their_hash(sleeper):
    other = subprocess.Popen(["/bin/sleep", "1001"])
    same = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        assert settled_argv_hash(same.pid) == settled_argv_hash(sleeper.pid)
        assert settled_argv_hash(other.pid) != settled_argv_hash(sleeper.pid)
    finally:
        for process in (other, same):
            process.kill()
            process.wait()
    assert argv_hash(same.pid) is None


def test_marked_processes_are_found_by_the_folder_of_their_socket(sleeper, tmp_path):
    identity = identify(sleeper.pid)
    settled_argv_hash(sleeper.pid)
    assert find_marked(f"{tmp_path}/") == {identity: f"{tmp_path}/child.sock"}
    assert find_marked(f"{tmp_path}/other") == {}


def test_progress_sees_memory_and_reads(tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(8 << 20))
    script = "import sys\nfor line in sys.stdin: kept = open(sys.argv[1], 'rb').read(); print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-SE", "-c", script, data],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = progress(process.pid)
        process.stdin.write(b"\n")
        process.stdout.readline()
        after = progress(process.pid)
        process.kill()
    assert after.io_bytes >= before.io_bytes + (8 << 20)
    assert after.resident_bytes > before.resident_bytes


def test_nobody_makes_no_progress():
    assert progress(2**22 + 1).io_bytes == 0


def test_without_files_to_look_with_progress_is_unknown_and_not_none(sleeper):
    with few_descriptors(0), pytest.raises(OSError, match="Too many open files"):
        progress(sleeper.pid)


def test_without_files_to_look_with_the_marked_are_not_taken_for_gone(sleeper, tmp_path):
    settled_argv_hash(sleeper.pid)
    for free in (0, 1):  # for the list of all, for one of them
        with few_descriptors(free), pytest.raises(OSError, match="Too many open files"):
            find_marked(f"{tmp_path}/")
