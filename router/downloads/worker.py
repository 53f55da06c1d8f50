"""The process that speaks to the hub: `python -m router.downloads.worker`, one for each look and attempt.

A process and not a thread, so that it can be killed at any moment and whatever hangs in a library hangs
here; and huggingface_hub, half a second to import, is imported nowhere else. What has come of a file stays in
the cache when it is killed, and the next one goes on from there.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import BinaryIO

import msgspec

from router.downloads import fetching, hub
from router.downloads.protocol import Failed, Fetch, Look, Request, Said, Sweep


def main() -> None:
    said = _own_stdout()
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_end_with_the_router, daemon=True).start()

    speaking = threading.Lock()

    def say(what: Said) -> None:
        with speaking:
            said.write(msgspec.json.encode(what) + b"\n")
            said.flush()

    try:
        match request:
            case Look():
                say(hub.look(request))
            case Fetch():
                say(fetching.fetch(request, say))
            case Sweep():
                say(hub.sweep(request))
    except hub.HubProblem as problem:
        say(problem.failed)
    except Exception as error:  # noqa: BLE001 - the end of the process: whatever it was, it is told
        say(Failed("unexpected", hub.scrubbed(f"{type(error).__name__}: {error}")))


def _own_stdout() -> BinaryIO:
    """For the protocol alone: whatever a library prints goes to the standard error."""
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return said


def _end_with_the_router() -> None:
    """Also when it was killed: nobody else would end this process."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
