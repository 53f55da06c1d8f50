"""One child from birth to death. It knows nothing of models: a command line, a socket, a log, an end.

    async with asyncio.TaskGroup() as tasks:
        process = await Process.spawn("qwen3-8b#4", Command(argv, socket, log, cwd, env), tasks)
        await process.ready(Health())          # or LoadFailed
        exit = await process.stop(grace_seconds=5)

Whoever awaits may be cancelled at any moment: the process's own task ends the child, with all that it forked.
"""

from router.process.child import SOCKET_PATH_MAX_BYTES, Command, NotAlive, Process
from router.process.exits import Exit
from router.process.identity import (
    Identity,
    Progress,
    argv_hash,
    find_marked,
    identify,
    progress,
)
from router.process.log import LogFile, LogReader
from router.process.output import Output, output_of
from router.process.probe import Health, get_answer, get_status, get_status_at

__all__ = [
    "SOCKET_PATH_MAX_BYTES",
    "Command",
    "Exit",
    "Health",
    "Identity",
    "LogFile",
    "LogReader",
    "NotAlive",
    "Output",
    "Process",
    "Progress",
    "argv_hash",
    "find_marked",
    "get_answer",
    "get_status",
    "get_status_at",
    "identify",
    "output_of",
    "progress",
]
