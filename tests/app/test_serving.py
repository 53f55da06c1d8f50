"""How the router shares its process between the event loop and threads that compute."""

from __future__ import annotations

import select
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from router.app.serving import tune_gil


@pytest.fixture
def busy_thread() -> Iterator[None]:
    """One that computes without an end, as a look through a large catalog does for a while."""
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(range(100))

    thread = threading.Thread(target=compute)
    thread.start()
    yield
    is_over.set()
    thread.join()


@pytest.mark.usefixtures("busy_thread")
def test_a_thread_that_computes_does_not_hold_up_the_loop_whenever_that_has_waited():
    before = sys.getswitchinterval()

    def seconds_for_turns() -> float:
        begun = time.perf_counter()
        for _ in range(100):
            select.select([], [], [], 0.0001)  # as a loop that waits for its clients
        return time.perf_counter() - begun

    usual = seconds_for_turns()
    try:
        tune_gil()
        quick = seconds_for_turns()
    finally:
        sys.setswitchinterval(before)
    assert quick < usual / 3
