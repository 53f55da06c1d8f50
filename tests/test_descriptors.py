"""Running out of file descriptors: it is told from other errors, and costs none."""

from __future__ import annotations

import asyncio
import errno
import gc
from pathlib import Path

import pytest

from router.descriptors import check_left, is_out_of_files
from router.engines.llama_server import list_devices
from router.errors import StartupError
from router.memory.devices.probe import Probe, ProbeFailed
from router.memory.estimate.fit_params import ask
from tests.scarcity import few_descriptors, open_descriptors


def test_an_error_for_want_of_descriptors_is_told_from_others():
    assert is_out_of_files(OSError(errno.EMFILE, "here"))
    assert is_out_of_files(OSError(errno.ENFILE, "everywhere"))
    assert not is_out_of_files(PermissionError(errno.EACCES, "not ours"))
    assert not is_out_of_files(ValueError("24"))
    assert not is_out_of_files(None)


def test_what_is_left_is_counted_and_given_back():
    before = open_descriptors()
    with few_descriptors(4):
        with pytest.raises(OSError, match="Too many open files") as caught:
            check_left(6)
        assert is_out_of_files(caught.value)
        check_left(3)
    assert open_descriptors() == before


@pytest.mark.parametrize("what", ["list-devices", "llama-fit-params", "probe"])
def test_a_process_that_cannot_be_started_for_want_of_descriptors_costs_none(what: str, tmp_path: Path):
    """uvloop keeps some of those it opened for a start that fails."""
    uvloop = pytest.importorskip("uvloop")

    true, marker = Path("/bin/true"), tmp_path / "ran"

    async def start() -> bool:
        marker.unlink(missing_ok=True)
        try:
            match what:
                case "list-devices":
                    await list_devices(true)
                case "llama-fit-params":
                    await ask(["/bin/touch", str(marker)], {})
                    return marker.exists()
                case "probe":
                    probe = await Probe.spawn([str(true)], {})
                    probe.kill()
                    await probe.wait(5.0)
        except (ProbeFailed, StartupError):
            return False
        return True

    async def tried() -> tuple[int, dict[int, str]]:
        assert await start(), "it starts where there are enough"
        await asyncio.sleep(0.05)  # the loop closes the ends of pipes in its next turns
        before, started = open_descriptors(), 0
        for free in range(24):
            with few_descriptors(free):
                started += await start()
        await asyncio.sleep(0.05)
        gc.collect()
        return started, {fd: what for fd, what in open_descriptors().items() if fd not in before}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        started, left = runner.run(tried())
    assert left == {}
    assert 0 < started < 24
