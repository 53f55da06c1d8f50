"""Few file descriptors, in the process of the test itself."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

_FOLDER = Path("/proc/self/fd")


def open_descriptors() -> dict[int, str]:
    """What each of them is."""
    found = {}
    for entry in _FOLDER.iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found[int(entry.name)] = str(entry.readlink())
    return {fd: target for fd, target in found.items() if not target.endswith("/fd")}


@contextlib.contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """So many can still be opened."""
    used = open_descriptors().keys()
    limit = 0
    while limit - sum(fd < limit for fd in used) < free:
        limit += 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def at_each_moment(look: Callable[[], object]) -> list[object]:
    """What `look` returns or raises where its first, its second, ... opened file or folder is one too many;
    and last, where all are allowed.
    """
    found: list[object] = []
    while True:
        left = len(found)

        def allowed(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == -1:
                    raise OSError(errno.EMFILE, "Too many open files", args[0])
                return call(*args, **kwargs)

            return counted

        with contextlib.ExitStack() as patched:
            for module, name in ((builtins, "open"), (io, "open"), (os, "listdir"), (os, "scandir")):
                patched.enter_context(patch.object(module, name, allowed(getattr(module, name))))
            try:
                found.append(look())
            except Exception as error:  # noqa: BLE001 - it is what the test looks at
                found.append(error)
        if left >= 0:
            return found
