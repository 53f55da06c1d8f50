"""A read that may hang, with a deadline."""

from __future__ import annotations

import threading

import pytest

from router.memory.devices.blocking import BlockingRead, Late


async def test_the_result_comes_back_from_another_thread():
    read = BlockingRead("test", lambda x: (x, threading.current_thread().name), 10.0)
    assert await read(5) == (5, "test")


async def test_what_it_raises_is_raised():
    def fail() -> None:
        raise OSError("broken")

    read = BlockingRead("test", fail, 10.0)
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            await read()


async def test_one_that_hangs_is_given_up_and_no_second_one_is_started():
    goes_on, started = threading.Event(), []

    def hang() -> str:
        started.append(1)
        goes_on.wait()
        return "at last"

    read = BlockingRead("test", hang, 0.05)
    for _ in range(5):
        with pytest.raises(Late, match="no answer for"):
            await read()
    assert started == [1]
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "test":
            thread.join(10.0)
    patient = BlockingRead("test", hang, 10.0)
    assert await patient() == "at last"
    # What the old call gave came too late for anybody; a new one is made.
    read._timeout_seconds = 10.0
    assert await read() == "at last"
    assert len(started) == 3
