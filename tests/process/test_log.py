from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from router.process import LogFile, LogReader
from tests.waiting import wait_until


def write(log: LogFile, data: bytes) -> None:
    fd = log.open_for_child()
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def test_the_tail_is_the_last_whole_lines(tmp_path):
    log = LogFile(tmp_path / "log", 1 << 20)
    assert log.tail(5) == ()
    write(log, b"".join(b"line %d\n" % i for i in range(100_000)))
    assert log.tail(2) == ("line 99998", "line 99999")
    assert log.tail(0) == ()
    everything = log.tail(1_000_000)
    assert all(line.startswith("line ") for line in everything), "no half line at the beginning"


def test_what_is_no_text_does_not_hurt(tmp_path):
    log = LogFile(tmp_path / "log", 1 << 20)
    write(log, b"\xff\xfe\x00 broken\nand no end")
    assert log.tail(5)[1] == "and no end"


def test_a_log_within_its_limit_is_not_touched(tmp_path):
    log = LogFile(tmp_path / "log", 1000)
    write(log, b"x" * 1000)
    log.trim()
    assert log.size() == 1000


def test_trimming_keeps_the_newest_lines_and_the_child_goes_on_at_the_end(tmp_path):
    log = LogFile(tmp_path / "log", 4000)
    fd = log.open_for_child()
    try:
        os.write(fd, b"".join(b"line %04d\n" % i for i in range(1000)))
        log.trim()
        assert log.size() <= 4000
        os.write(fd, b"line after\n")
    finally:
        os.close(fd)
    lines = log.tail(1000)
    assert lines[0].startswith("[llama-router: the log was cut here")
    assert lines[1:] == (*(f"line {i:04d}" for i in range(1000 - len(lines) + 2, 1000)), "line after")


def test_one_endless_line_is_cut_too(tmp_path):
    log = LogFile(tmp_path / "log", 4000)
    write(log, b"x" * 100_000)
    log.trim()
    assert log.size() <= 4000


@pytest.mark.parametrize("end", [b"", b"\n"], ids=["open", "ended"])
def test_of_a_line_longer_than_what_is_read_its_end_is_kept(tmp_path, end):
    """Progress that is drawn with carriage returns, a dump of bytes: the end of the output is there."""
    log = LogFile(tmp_path / "log", 4000)
    write(log, b"first\n" + b"x" * 100_000 + b" the last words" + end)
    assert log.tail(5)[-1].endswith("the last words")
    assert len(log.tail(5)[-1]) <= 2000
    assert LogReader(log.path, 5).read().rstrip().endswith(b"the last words")
    log.trim()
    assert log.path.read_bytes().rstrip().endswith(b"the last words")
    assert log.size() <= log.max_bytes


def test_a_long_line_is_told_without_its_middle(tmp_path):
    log = LogFile(tmp_path / "log", 1 << 20)
    write(log, b"begin " + b"x" * 50_000 + b" end\nshort\n")
    long, short = log.tail(2)
    assert (long[:8], long[-6:], short) == ("begin xx", "xx end", "short")
    assert len(long) < 2000


def test_a_log_is_private_and_a_link_is_not_followed(tmp_path):
    log = LogFile(tmp_path / "log", 4000)
    os.close(log.open_for_child())
    assert log.path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    try:
        LogFile(tmp_path / "link", 4000).open_for_child()
    except OSError:
        pass
    else:
        raise AssertionError("followed a link")


NO_LOG = [
    errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ENOENT, errno.ENOTDIR,
    errno.EISDIR, errno.EBUSY, errno.ESTALE,
]  # fmt: skip


@pytest.mark.parametrize("number", NO_LOG, ids=errno.errorcode.get)
def test_a_disk_that_takes_no_log_costs_the_log_and_not_the_child(tmp_path, monkeypatch, number):
    real = os.open

    def full(path, *args, **kwargs):
        if path == tmp_path / "log":
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", full)
    log = LogFile(tmp_path / "log", 4000)
    write(log, b"words")
    assert log.size() == 0
    assert log.tail(10) == ()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_files_that_have_run_out_are_no_reason_to_go_on_without_a_log(tmp_path, monkeypatch, number):
    def none_left(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(OSError, match=os.strerror(number)):
        LogFile(tmp_path / "log", 4000).open_for_child()


def test_a_reader_begins_with_the_last_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree")
    reader = LogReader(path, 2)
    assert reader.read() == b"two\nthree"
    assert reader.read() == b""
    with path.open("ab") as file:
        file.write(b" and a half\nfour\n")
    assert reader.read() == b" and a half\nfour\n"


def test_a_reader_goes_on_behind_what_it_had_when_the_log_is_cut(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", 4000)
    log.path.write_bytes(b"".join(b"line %d\n" % number for number in range(1000)))
    reader = LogReader(log.path, 1)
    assert reader.read() == b"line 999\n"
    log.trim()
    with log.path.open("ab") as file:
        file.write(b"line 1000\n")
    assert reader.read() == b"line 1000\n"


def test_a_reader_that_finds_nothing_it_knows_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    reader = LogReader(path, 5)
    assert reader.read() == b"", "there is no file yet"
    path.write_bytes(b"one\n" * 100)
    assert reader.read() == b"one\n" * 5
    path.write_bytes(b"two\n")
    assert reader.read() == b"two\n"


def test_a_reader_takes_no_more_than_a_piece_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"")
    reader = LogReader(path, 0)
    assert reader.read() == b""
    path.write_bytes(b"x" * 200_000)
    pieces = [len(reader.read()) for _ in range(5)]
    assert pieces == [65536, 65536, 65536, 3392, 0]


def test_what_a_child_said_as_it_started_is_found_in_its_first_lines(tmp_path):
    log = LogFile(tmp_path / "log", 1 << 20)
    assert log.find(("failed",)) is None
    log.path.write_bytes(b"build: 1\n  ggml_cuda_init: failed to initialize CUDA: \xff no\nfailed again\n")
    assert log.find(("nothing", "failed")) == "ggml_cuda_init: failed to initialize CUDA: \ufffd no"
    assert log.find(("nothing",)) is None


def test_what_comes_while_the_log_is_cut_is_kept_behind_what_was_there(tmp_path, monkeypatch):
    """As on a machine under load, where the cut is interrupted at any step."""
    log = LogFile(tmp_path / "log", 4000)
    log.path.write_bytes(b"".join(b"line %d\n" % number for number in range(1000)))
    child = os.open(log.path, os.O_WRONLY | os.O_APPEND)
    written = iter(range(1000, 2000))
    pwrite = os.pwrite

    def interrupted(fd: int, data: bytes, at: int) -> int:
        if (number := next(written)) < 1005:
            os.write(child, b"line %d\n" % number)
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", interrupted)
    log.trim()
    os.write(child, b"the last\n")
    os.close(child)
    head, *lines, last = log.path.read_text().splitlines()
    assert "cut here" in head
    assert last == "the last"
    numbers = [int(line.removeprefix("line ")) for line in lines]
    assert numbers == list(range(numbers[0], 1005)), "in their order, and none is missing"
    assert log.size() <= log.max_bytes


def test_lines_stay_in_their_order_however_often_the_log_is_cut_while_a_child_writes(tmp_path):
    log = LogFile(tmp_path / "log", 16 << 10)
    script = "import itertools, os\nfor n in itertools.count(): os.write(1, b'%d\\n' % n)"
    with open(log.path, "ab") as output:
        child = subprocess.Popen([sys.executable, "-S", "-c", script], stdout=output)
    try:
        for _ in range(30):
            wait_until(lambda: log.size() > log.max_bytes, "the child writes nothing")
            log.trim()
            numbers = [int(line) for line in log.path.read_text().splitlines()[1:-1] if line]
            assert numbers == sorted(numbers)
    finally:
        child.kill()
        child.wait()


def test_a_disk_without_room_for_the_copy_is_cut_all_the_same(tmp_path, monkeypatch):
    log = LogFile(tmp_path / "log", 1000)
    log.path.write_bytes(b"x" * 5000)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "pwrite", full)
        log.trim()
    assert log.size() == 0
