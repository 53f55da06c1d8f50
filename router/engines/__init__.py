"""What an inference server is: its command line, environment, socket and health path. A backend is a file
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.process import Health


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one child, as data. `{socket}` in `argv` is replaced by the host with the Unix socket
    it made.

    `env` is the whole environment of the child, not an addition. `health` is how to ask whether it is ready.
    `out_of_memory_texts`: one of them in its last log lines says that it ended for want of memory.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    health: Health = Health()  # noqa: RUF009 - frozen
    log_max_bytes: int = 16 << 20
    out_of_memory_texts: tuple[str, ...] = ()
