"""Requests that are with an instance, for as long as a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from router.supervisor.stall import InstanceTraffic, Traffic


@contextmanager
def passage(traffic: Traffic, instance: str) -> Iterator[InstanceTraffic]:
    flow = traffic.enter(instance)
    number = flow.begun
    try:
        yield flow
    finally:
        traffic.leave(flow, instance, number)
