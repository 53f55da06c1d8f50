"""Eviction policies as data: a rank (lowest leaves first, None = never for another's sake) and the idle
time after which one leaves.

A policy is an entry in `POLICIES`. Pinned models are never ranked and never expire: that is decided before
a policy is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.scheduler.types import ModelName


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a policy may know of an instance: the end of its last use, what a reload costs, how likely it
    is wanted again.
    """

    model: ModelName
    last_used: float
    load_seconds: float
    requests_per_second: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Policy:
    """`ttl`: idle seconds after which a model leaves by itself (None = never), unless the model or a
    request says otherwise. `additive`: ranks are costs that add up, so the cheapest *sum* is sought
    instead of the lowest first.
    """

    name: str
    rank: Callable[[Candidate, float], float | None]
    ttl: float | None = None
    additive: bool = False

    @property
    def evicts(self) -> bool:
        """Whether anybody ever leaves for another's sake."""
        return self.rank is not _never

    @property
    def refuses_when_full(self) -> bool:
        """Whether a newcomer without room is refused at once: nobody leaves for it and nobody leaves by
        itself.
        """
        return not self.evicts and self.ttl is None


#: How far ahead a model's return is considered, in seconds: a swap avoided later than that is worth nothing
#: now.
REUSE_HORIZON_SECONDS: Final = 600.0


def _never(_: Candidate, __: float) -> float | None:
    return None


def _least_recently_used(candidate: Candidate, _: float) -> float:
    return candidate.last_used


def _cost_of_losing(candidate: Candidate, now: float) -> float:
    """Expected seconds of reloading: load time x probability that it is wanted again within the horizon
    (Poisson arrivals).

    The form of Greedy-Dual-Size-Frequency (FaasCache, ASPLOS'21); bytes enter where victims are chosen, as
    cost per byte freed."""
    reuse = -math.expm1(-candidate.requests_per_second * REUSE_HORIZON_SECONDS)
    return candidate.load_seconds * reuse


POLICIES: Final[Mapping[str, Callable[[float], Policy]]] = MappingProxyType(
    {
        "lru": lambda _: Policy("lru", _least_recently_used),
        "no-evict": lambda _: Policy("no-evict", _never),
        "ttl": lambda ttl: Policy("ttl", _never, ttl=ttl),
        "lru-ttl": lambda ttl: Policy("lru-ttl", _least_recently_used, ttl=ttl),
        "cost": lambda _: Policy("cost", _cost_of_losing, additive=True),
    }
)


def make_policy(name: str, ttl: float = 300.0) -> Policy:
    """The policy of that name. Raises KeyError for an unknown one: the configuration has checked it."""
    return POLICIES[name](ttl)
