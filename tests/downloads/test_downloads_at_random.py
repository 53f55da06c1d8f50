"""Whatever happens in whatever order, in the end the files are there, byte for byte, and nothing else is."""

from __future__ import annotations

import asyncio
import os
import random

import psutil
import pytest

from router.downloads import DownloadSpec
from tests.waiting import until

MIB = 1 << 20
REPO = "org/big-GGUF"
FILES = {
    "big-Q4_0-00001-of-00002.gguf": os.urandom(3 * MIB),
    "big-Q4_0-00002-of-00002.gguf": os.urandom(2 * MIB + 12345),
    "mmproj-F16.gguf": os.urandom(MIB // 2),
}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_after_random_faults_all_is_there_and_nothing_else(kit, seed):
    dice = random.Random(seed)
    kit.hub.add(REPO, FILES)
    faults = kit.hub.faults
    await kit.downloads.start(DownloadSpec(REPO))
    for _ in range(5):
        faults.hold_after = dice.choice([None, dice.randrange(1, 3 * MIB)])
        faults.ignores_range = dice.random() < 0.2
        faults.cuts = [dice.randrange(1, 2 * MIB) for _ in range(dice.randrange(2))]
        faults.statuses = [dice.choice([403, 500, 503]) for _ in range(dice.randrange(2))]
        await asyncio.sleep(dice.uniform(0.2, 1.5))  # how far it has come by then is left to chance
        match dice.choice(["kill", "cancel", "restart", "nothing"]):
            case "kill":
                for one in psutil.Process().children():
                    if "router.downloads.worker" in one.cmdline():
                        one.kill()
            case "cancel":
                for job in kit.downloads.jobs():
                    await kit.downloads.cancel(job.id)
            case "restart":
                await kit.close()
                await kit.open()
        faults.go.set()
        faults.go = asyncio.Event()
        if not kit.downloads.active():
            await kit.downloads.start(DownloadSpec(REPO))
    faults.hold_after, faults.ignores_range, faults.cuts, faults.statuses = None, False, [], []
    faults.go.set()
    await until(lambda: not kit.downloads.active())
    (job,) = kit.downloads.jobs()
    assert job.state == "finished", job.error
    assert kit.snapshot(REPO) == FILES
    blobs = {blob.name for blob in kit.repo(REPO).glob("blobs/*")}
    assert blobs == {file.etag for file in job.files}, "no part is left over"
