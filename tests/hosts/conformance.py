"""What every kind of host must do: checks to run against each of them, with whatever `Subject` brings along.

@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_it_is_a_host(subject, check):
    await check(subject)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import pytest

from router.engines import Launch
from router.errors import LoadFailed
from router.hosts import Address, Host, HostFull
from router.ids import Definition
from router.scheduler.types import InstanceId, Placement
from tests.deadline import DEADLINE_SECONDS
from tests.waiting import until


class Subject(Protocol):
    """A host with a device under a margin, and what is needed to see whether it tells the truth."""

    host: Host

    def placement(self, share: float) -> Placement:
        """Bytes on one device: this share of what may be had there when nothing runs (free less margin)."""

    def launch(self, placement: Placement, *, load_seconds: float = 0.0, fails: bool = False) -> Launch:
        """A child that takes the memory of its placement; or one that dies while it loads."""

    async def kill(self, instance: InstanceId) -> None:
        """Let it die by itself."""

    async def answers(self, address: Address) -> bool:
        """Whether a child answers there."""


Check = Callable[[Subject], Awaitable[None]]


async def _start(subject: Subject, instance: InstanceId, share: float = 0.3, **how: object) -> Address:
    placement = subject.placement(share)
    launch = subject.launch(placement, **how)  # type: ignore[arg-type]
    model = instance.partition("#")[0]
    return await subject.host.start(
        instance, model, placement, launch, definition=Definition.parse(f"definition of {model}")
    )


async def _free(subject: Subject) -> int:
    (device,) = subject.placement(1.0).footprint
    free = (await subject.host.measure()).free[device]
    assert free is not None
    return free


async def _until_free(subject: Subject, least: int) -> None:
    await until(lambda: _free(subject), holds=lambda free: free >= least)


async def devices_bear_the_name_of_their_host_and_are_measured(subject: Subject) -> None:
    devices = await subject.host.devices()
    assert devices
    assert all(device.host == subject.host.id for device in devices)
    assert all(device.total > 0 for device in devices)
    measured = await subject.host.measure()
    assert set(measured.free) == {device.id for device in devices}
    assert measured.used == {}


async def a_child_serves_from_start_to_stop(subject: Subject) -> None:
    address = await _start(subject, "a#1")
    assert await subject.answers(address)
    (record,) = await subject.host.instances()
    assert (record.instance, record.model, record.definition) == (
        "a#1",
        "a",
        Definition.parse("definition of a"),
    )
    assert record.placement == subject.placement(0.3)
    assert record.address == address
    assert record.ready
    await subject.host.stop("a#1", grace_seconds=10)
    assert not await subject.answers(address)
    assert await subject.host.instances() == ()
    assert (await subject.host.wait("a#1")).reason


async def what_a_child_uses_is_told_and_gone_with_it(subject: Subject) -> None:
    before = await _free(subject)
    await _start(subject, "a#1")
    measured = await subject.host.measure()
    (device,) = subject.placement(0.3).footprint
    assert measured.used["a#1"][device] > 0
    assert await _free(subject) < before
    await subject.host.stop("a#1", grace_seconds=10)
    await _until_free(subject, before)
    assert (await subject.host.measure()).used == {}


async def a_second_start_of_the_same_instance_is_the_first(subject: Subject) -> None:
    first, second = await asyncio.gather(
        _start(subject, "a#1", load_seconds=0.2), _start(subject, "a#1", load_seconds=0.2)
    )
    assert first == second
    assert len(await subject.host.instances()) == 1
    assert await _start(subject, "a#1") == first


async def a_load_that_fails_says_why_and_leaves_nothing(subject: Subject) -> None:
    before = await _free(subject)
    with pytest.raises(LoadFailed) as failed:
        await _start(subject, "a#1", fails=True, load_seconds=0.1)
    assert "a#1" in failed.value.message
    assert await subject.host.instances() == ()
    await _until_free(subject, before)
    ended = await subject.host.wait("a#1")
    assert ended.returncode != 0
    assert subject.host.log_tail("a#1") == ended.log_tail[-20:]


async def what_does_not_fit_is_refused_before_it_is_started(subject: Subject) -> None:
    with pytest.raises(HostFull, match="needs"):
        await _start(subject, "a#1", 1.1)
    assert await subject.host.instances() == ()
    assert (await subject.host.wait("a#1")).returncode is None
    await _start(subject, "a#2", 0.9)


async def of_two_that_do_not_fit_together_the_first_is_started(subject: Subject) -> None:
    first, second = await asyncio.gather(
        _start(subject, "a#1", 0.6, load_seconds=0.3),
        _start(subject, "b#1", 0.6, load_seconds=0.3),
        return_exceptions=True,
    )
    assert isinstance(first, Address)
    assert isinstance(second, HostFull)


async def of_two_that_fit_together_both_load_at_once(subject: Subject) -> None:
    await asyncio.gather(
        _start(subject, "a#1", 0.45, load_seconds=0.3), _start(subject, "b#1", 0.45, load_seconds=0.3)
    )
    assert {record.instance for record in await subject.host.instances()} == {"a#1", "b#1"}


async def a_cancelled_start_stops_its_child_and_gives_back_its_room(subject: Subject) -> None:
    before = await _free(subject)
    starting = asyncio.ensure_future(_start(subject, "a#1", 0.9, load_seconds=1e6))
    await until(subject.host.instances)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await subject.host.instances() == ()
    await _until_free(subject, before)
    await _start(subject, "a#2", 0.9)


async def a_child_may_be_stopped_while_it_loads(subject: Subject) -> None:
    starting = asyncio.ensure_future(_start(subject, "a#1", load_seconds=1e6))
    await until(subject.host.instances)
    await subject.host.stop("a#1", grace_seconds=10)
    with pytest.raises(LoadFailed):
        await starting
    assert await subject.host.instances() == ()


async def a_start_may_be_stopped_before_it_has_begun(subject: Subject) -> None:
    starting = asyncio.ensure_future(_start(subject, "a#1", load_seconds=1e6))
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        await subject.host.stop("a#1", grace_seconds=0)
        with pytest.raises(LoadFailed):
            await starting
    assert await subject.host.instances() == ()


async def a_death_is_told_to_all_who_wait(subject: Subject) -> None:
    address = await _start(subject, "a#1")
    waiting = [asyncio.ensure_future(subject.host.wait("a#1")) for _ in range(3)]
    await asyncio.sleep(0)
    await subject.kill("a#1")
    async with asyncio.timeout(DEADLINE_SECONDS):
        first, *others = await asyncio.gather(*waiting)
    assert [first, first] == others
    assert first.reason
    assert not await subject.answers(address)
    assert await subject.host.instances() == ()
    assert subject.host.log_tail("a#1", 3) == first.log_tail[-3:]


async def stopping_twice_or_stopping_nobody_is_nothing_special(subject: Subject) -> None:
    await _start(subject, "a#1")
    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*(subject.host.stop("a#1", grace_seconds=10) for _ in range(3)))
        await subject.host.stop("a#1", grace_seconds=10)
        await subject.host.stop("nobody#1", grace_seconds=10)
        assert (await subject.host.wait("nobody#1")).returncode is None
    assert subject.host.log_tail("nobody#1") == ()


async def a_measurement_is_given_again_only_while_nothing_has_changed(subject: Subject) -> None:
    first = await subject.host.measure()
    assert await subject.host.measure(max_age_seconds=1e6) is first
    await _start(subject, "a#1")
    second = await subject.host.measure(max_age_seconds=1e6)
    assert second.taken_at > first.taken_at
    assert "a#1" in second.used
    await subject.host.stop("a#1", grace_seconds=10)
    assert "a#1" not in (await subject.host.measure(max_age_seconds=1e6)).used


CHECKS: Final[tuple[Check, ...]] = (
    devices_bear_the_name_of_their_host_and_are_measured,
    a_child_serves_from_start_to_stop,
    what_a_child_uses_is_told_and_gone_with_it,
    a_second_start_of_the_same_instance_is_the_first,
    a_load_that_fails_says_why_and_leaves_nothing,
    what_does_not_fit_is_refused_before_it_is_started,
    of_two_that_do_not_fit_together_the_first_is_started,
    of_two_that_fit_together_both_load_at_once,
    a_cancelled_start_stops_its_child_and_gives_back_its_room,
    a_child_may_be_stopped_while_it_loads,
    a_start_may_be_stopped_before_it_has_begun,
    a_death_is_told_to_all_who_wait,
    stopping_twice_or_stopping_nobody_is_nothing_special,
    a_measurement_is_given_again_only_while_nothing_has_changed,
)
