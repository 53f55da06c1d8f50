"""What an inference server is: its command line, environment, socket and health path. A backend is a file
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one child, as data. `{socket}` in `argv` is replaced by the host with the Unix socket
    it made.

    `env` is the whole environment of the child, not an addition. `stall_seconds`: no progress in its log
    or memory for that long means hung; `timeout_seconds` bounds the load altogether. Times in seconds.
    `out_of_memory_texts`: one of them in its last log lines says that it ended for want of memory.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"
    health_poll_seconds: float = 0.02
    health_timeout_seconds: float = 1.0
    stall_seconds: float = 120.0
    timeout_seconds: float = 1800.0
    log_max_bytes: int = 16 << 20
    out_of_memory_texts: tuple[str, ...] = ()
