"""Stop a child process that is stuck while requests wait for it: sample its progress here, judge it in
`router.supervisor.stall`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from typing import Final

from router.engines.llama_server import PROGRESS_PATH
from router.hosts.local import LocalHost
from router.process import Process, get_answer, progress
from router.scheduler.types import InstanceId
from router.supervisor.stall import InstanceTraffic, ProgressSample, Stall, Traffic

log = logging.getLogger("router.stalls")

#: A stall is known within this part of its bound; no child is looked at more rarely or more often than that.
LOOKS_PER_BOUND: Final = 10.0
LONGEST_PAUSE_SECONDS: Final = 10.0
SHORTEST_PAUSE_SECONDS: Final = 0.02
PROBE_SECONDS: Final = 1.0


async def watch_for_stalls(traffic: Traffic, host: LocalHost, bound_seconds: Callable[[], float]) -> None:
    """For as long as the router lives. `bound_seconds` is asked every time, as a reload may change it; 0 is
    off.
    """
    stalls: dict[InstanceId, Stall] = {}
    while True:
        bound = bound_seconds()
        pause = min(LONGEST_PAUSE_SECONDS, max(SHORTEST_PAUSE_SECONDS, bound / LOOKS_PER_BOUND))
        await asyncio.sleep(pause if bound else LONGEST_PAUSE_SECONDS)
        waiting = {name: flow for name, flow in traffic.flows.items() if flow.requests > flow.held}
        for gone in stalls.keys() - waiting.keys():
            del stalls[gone]
        if bound:
            looks = {name: _look(stalls, name, flow, host, bound, pause) for name, flow in waiting.items()}
            done = await asyncio.gather(*looks.values(), return_exceptions=True)
            for name, error in zip(looks, done, strict=True):
                if isinstance(error, Exception):  # the others are watched all the same
                    log.error("cannot watch %s for a stall", name, exc_info=error)


async def _look(
    stalls: dict[InstanceId, Stall],
    instance: InstanceId,
    flow: InstanceTraffic,
    host: LocalHost,
    bound_seconds: float,
    pause_seconds: float,
) -> None:
    process = host.process_of(instance)
    if process is None:  # on its way out
        return
    stall = stalls.get(instance)
    # Its slots are asked only once nothing else has moved for a while: a child at work is left in peace.
    asks = stall is not None and stall.fruitless_seconds >= bound_seconds / 4
    try:
        signs = await _signs(process, flow, asks=asks)
    except OSError:  # no file left to look with: nothing that could be held against it
        return
    now = asyncio.get_running_loop().time()
    if stall is None:
        stalls[instance] = Stall(signs, now)
        return
    stall.look(signs, now, longest_step_seconds=2 * (pause_seconds + PROBE_SECONDS))
    verdict = stall.verdict(bound_seconds)
    if verdict is not None and host.process_of(instance) is process:
        log.warning("%s is %s; it is ended, and its next request starts it anew", instance, verdict)
        flow.verdict = verdict
        del stalls[instance]
        await host.give_up(instance, verdict)


async def _signs(process: Process, flow: InstanceTraffic, *, asks: bool) -> ProgressSample:
    answer = None
    if asks:
        answer = await get_answer(process.socket, PROGRESS_PATH, timeout_seconds=PROBE_SECONDS)
    done = progress(process.pid)
    return ProgressSample(
        begun=flow.begun,
        moved_bytes=flow.moved_bytes,
        log_bytes=process.log.size(),
        cpu_seconds=done.cpu_seconds,
        io_bytes=done.io_bytes,
        major_faults=done.major_faults,
        slots=None if answer is None else hashlib.sha256(answer).digest(),
        is_between_requests=answer is not None and not _has_work(answer),
    )


def _has_work(answer: bytes) -> bool:
    """Whether a slot works; an answer that is not understood proves nothing."""
    try:
        return any(slot["is_processing"] for slot in json.loads(answer))
    except (ValueError, KeyError, TypeError):
        return True
