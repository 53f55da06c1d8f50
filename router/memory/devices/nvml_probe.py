"""Child process that calls the NVIDIA driver: `python -m router.memory.devices.nvml_probe`, JSON lines over
its pipes.

The driver's library can block for seconds in the kernel and can crash (a GPU off the bus, a handle older than
a restart). Here either costs a process that nobody else lives in. Each card has a thread of its own, so that
one that hangs does not silence the others. It ends when its stdin does, with the router or before it.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import msgspec

from router.memory.devices.nvml import Card, NvmlFailed, card_count, open_session
from router.memory.devices.protocol import GpuReading, Hello, Reading, Request

#: How long a card that hangs since an earlier request is waited for: the others' figures are wanted now.
_GRACE_SECONDS = 0.05


class _Worker:
    """Reads one card, again and again, in its own thread."""

    def __init__(self, index: int) -> None:
        self._card = Card(index)
        self._known: tuple[GpuReading, ...] = ()
        self._changed = threading.Condition()
        self._wanted = self._done = 0  # serial numbers of reads
        self._since = 0.0  # when the read that runs now began
        self._hangs = False
        self._result: tuple[GpuReading, ...] | NvmlFailed = ()
        threading.Thread(target=self._run, name=f"card-{index}", daemon=True).start()

    def begin(self) -> None:
        """Wants a read that begins from now on. One that still hangs is not it."""
        with self._changed:
            self._hangs = self._done < self._wanted
            if not self._hangs:
                self._since = time.monotonic()
            self._wanted += 1
            self._changed.notify_all()

    def end(self, deadline: float) -> tuple[tuple[GpuReading, ...], str | None]:
        """The readings; and, where nobody is known whom they could name, what went wrong."""
        with self._changed:
            if self._hangs:
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
            while self._done < self._wanted:
                left = deadline - time.monotonic()
                if left <= 0:
                    return self._fail(f"no answer from the driver for {time.monotonic() - self._since:.1f} s")
                self._changed.wait(left)
            if isinstance(self._result, NvmlFailed):
                return self._fail(str(self._result))
            self._known = self._result
            return self._result, None

    def _fail(self, error: str) -> tuple[tuple[GpuReading, ...], str | None]:
        named = tuple(msgspec.structs.replace(gpu, error=error) for gpu in self._known)
        return named, None if named else f"device {self._card.index}: {error}"

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._done == self._wanted:
                    self._changed.wait()
                serial, self._since = self._wanted, time.monotonic()
            result: tuple[GpuReading, ...] | NvmlFailed
            try:
                result = self._card.read()
            except NvmlFailed as failed:
                result = failed
            with self._changed:
                self._result, self._done = result, serial
                self._changed.notify_all()


def main() -> None:
    """Says Hello, then answers every Request with a Reading."""
    try:
        driver = open_session()
        workers = [_Worker(index) for index in range(card_count())]
    except NvmlFailed as failed:
        _say(Hello(error=str(failed)))
        return
    _say(Hello(driver=driver))
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        deadline = time.monotonic() + request.patience_seconds
        for worker in workers:
            worker.begin()
        ended = [worker.end(deadline) for worker in workers]
        gpus = tuple(gpu for readings, _ in ended for gpu in readings)
        _say(Reading(request.id, gpus, tuple(broken for _, broken in ended if broken)))
    # A thread that hangs in the driver must not hold up the end; the kernel closes the session with the
    # files.
    os._exit(0)


def _say(message: Hello | Reading) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
