"""The process that asks the hub: `python -m router.downloads.worker`, one for each look and attempt.

A process and not a thread, so that it can be killed at any moment and whatever hangs in a library hangs
here; and huggingface_hub, half a second to import, is imported nowhere else. What has come of a file stays in
the cache when it is killed, and the next one goes on from there.
"""

from __future__ import annotations

import os
import sys
import threading

import msgspec

from router.downloads import fetching, hub
from router.downloads.protocol import Answer, Fetch, Look, Request, Sweep


def main() -> None:
    # The standard output is for the protocol alone: what a library prints goes to the standard error.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_exit_with_the_router, daemon=True).start()

    def send(answer: Answer) -> None:
        output.write(msgspec.json.encode(answer) + b"\n")
        output.flush()

    try:
        match request:
            case Look():
                send(hub.look(request))
            case Fetch():
                send(fetching.fetch(request, send))
            case Sweep():
                send(hub.sweep(request))
    except Exception as error:  # noqa: BLE001 - the end of the process: whatever it was, it is sent
        send(hub.translated(error).failed)


def _exit_with_the_router() -> None:
    """Also when it was killed: nothing else would end this process."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
