"""How a child ended, in words: signals decoded, the kernel's OOM killer told from a plain SIGKILL."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended. `reason` decodes the signal ("killed by SIGSEGV"); `log_tail` are its last lines.

    `returncode` is negative for a signal, None where the system does not tell (a child of an earlier router).
    `out_of_memory`: the kernel killed it for memory, or its last lines say that an allocation failed.
    """

    returncode: int | None
    reason: str
    log_tail: tuple[str, ...] = ()
    out_of_memory: bool = False


#: What the signals mean that llama-server dies of by itself.
_MEANINGS: Final[Mapping[int, str]] = {
    signal.SIGABRT: "abort",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error; the model file may have been cut short while it was mapped",
    signal.SIGILL: "illegal instruction; the binary was built for another CPU",
    signal.SIGFPE: "arithmetic error",
}


def describe_exit(
    returncode: int | None,
    log_tail: tuple[str, ...],
    *,
    asked: bool,
    oom_kills: int,
    out_of_memory_texts: tuple[str, ...] = (),
) -> Exit:
    """Decode a return code. `asked`: we told it to end; `oom_kills`: the kernel's kills for memory lately."""
    if returncode is None:
        return Exit(None, "exited (a child of an earlier router: its status is not known)", log_tail)
    by_kernel = returncode == -signal.SIGKILL and oom_kills > 0 and not asked
    says_so = returncode != 0 and any(
        text.lower() in line.lower() for line in log_tail for text in out_of_memory_texts
    )
    return Exit(returncode, _reason(returncode, by_kernel, says_so), log_tail, by_kernel or says_so)


def _reason(returncode: int, by_kernel: bool, says_so: bool) -> str:
    because = " (out of memory)" if by_kernel or says_so else ""
    # Below 0: as Python tells a signal. From 129 on: as a shell does, such as a wrapper script.
    number = -returncode if returncode < 0 else returncode - 128 if 128 < returncode < 160 else 0
    if number == 0:
        return f"exited with status {returncode}{because}"
    if by_kernel:
        because = " (out of memory: the kernel's OOM killer chose it)"
    elif not because and number in _MEANINGS:
        because = f" ({_MEANINGS[number]})"
    known = {one.value: one.name for one in signal.Signals}
    return f"killed by {known.get(number, f'signal {number}')}{because}"


def oom_kill_count() -> int:
    """Processes the kernel has killed for memory so far; 0 where it does not tell.

    /proc/vmstat counts kills by a cgroup's limit and by the machine's own shortage alike, but those of other
    cgroups too: it is evidence only together with a SIGKILL that we did not send, and within seconds.
    """
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counters.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
