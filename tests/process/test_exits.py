from __future__ import annotations

import signal

import pytest

from router.process.exits import describe_exit, oom_kill_count


def described(returncode, *, asked=False, oom_kills=0, tail=(), texts=()):
    return describe_exit(returncode, tail, asked=asked, oom_kills=oom_kills, out_of_memory_texts=texts)


@pytest.mark.parametrize(
    ("returncode", "reason"),
    [
        (0, "exited with status 0"),
        (1, "exited with status 1"),
        (-signal.SIGSEGV, "killed by SIGSEGV (segmentation fault)"),
        (-signal.SIGABRT, "killed by SIGABRT (abort)"),
        (-signal.SIGILL, "killed by SIGILL (illegal instruction; the binary was built for another CPU)"),
        (-signal.SIGTERM, "killed by SIGTERM"),
        (128 + signal.SIGSEGV, "killed by SIGSEGV (segmentation fault)"),  # as a shell reports it
        (-(signal.SIGRTMIN + 3), "killed by signal 37"),
        (200, "exited with status 200"),
        (None, "exited (a child of an earlier router: its status is not known)"),
    ],
)
def test_a_return_code_in_words(returncode, reason):
    assert described(returncode).reason == reason


def test_a_sigkill_is_the_kernels_only_if_it_killed_somebody_and_we_did_not():
    by_kernel = described(-signal.SIGKILL, oom_kills=1)
    assert by_kernel.out_of_memory
    assert "OOM killer" in by_kernel.reason
    assert not described(-signal.SIGKILL, oom_kills=1, asked=True).out_of_memory
    assert not described(-signal.SIGKILL, oom_kills=0).out_of_memory
    assert not described(-signal.SIGTERM, oom_kills=1).out_of_memory


def test_a_failed_allocation_is_found_in_the_last_lines_whatever_its_case():
    tail = ("loading", "CUDA error: Out Of Memory", "bye")
    assert described(1, tail=tail, texts=("out of memory",)).out_of_memory
    assert described(1, tail=tail, texts=("out of memory",)).reason == "exited with status 1 (out of memory)"
    assert not described(1, tail=tail).out_of_memory
    assert not described(0, tail=tail, texts=("out of memory",)).out_of_memory, "it went well after all"


def test_the_kernels_count_never_goes_back():
    assert 0 <= oom_kill_count() <= oom_kill_count()
