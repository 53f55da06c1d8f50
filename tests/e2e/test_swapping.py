"""Several models and room for one: every request is answered, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from tests.e2e.conftest import Start
from tests.router_process import RouterProcess
from tests.waiting import until

pytestmark = pytest.mark.e2e

ONE_AT_A_TIME = ("--models-max", "1")


class Watch:
    """Counts the children that are there at a time, while it is open."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router
        self.most = 0

    async def __aenter__(self) -> Watch:
        self._task = asyncio.get_running_loop().create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self.most = max(self.most, len(await asyncio.to_thread(self._router.children)))
            await asyncio.sleep(0.02)


async def test_three_models_take_turns_and_leave_nothing_behind(router: Start):
    names = ("one", "two", "three")
    async with router(*names, args=ONE_AT_A_TIME) as up:
        async with Watch(up) as watch:
            for name in (*names, *names):
                status, answer = await up.chat(name)
                assert (status, answer["model"]) == (200, name)
                (running,) = [m["id"] for m in (await up.get("/models"))["data"] if m["instances"]]
                assert running == name
        assert watch.most == 1
        assert await up.stop(signal.SIGTERM) == 0
        assert not up.children()
        assert not up.sockets()


async def test_two_models_with_ten_clients_each_are_twenty_answers(router: Start):
    async with router("one", "two", args=ONE_AT_A_TIME) as up, Watch(up) as watch:
        clients = [up.events(name, max_tokens=24) for name in ("one", "two") for _ in range(10)]
        answers = await asyncio.gather(*clients)
        for number, events in enumerate(answers):
            *chunks, done = events
            assert done == "[DONE]"
            assert [chunk for chunk in map(json.loads, chunks) if "error" in chunk] == []
            assert json.loads(chunks[0])["model"] == ("one" if number < 10 else "two")
            assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
        assert watch.most == 1


async def test_one_load_serves_all_who_asked_for_it(router: Start):
    async with router("one") as up:
        answers = await asyncio.gather(*(up.chat("one") for _ in range(10)))
        assert [status for status, _ in answers] == [200] * 10
        assert up.output.count("start one#") == 1


async def test_a_client_that_leaves_ends_its_generation(router: Start):
    async with router("one") as up:
        body = {"model": "one", "stream": True, "max_tokens": 100_000, "ignore_eos": True, "messages": []}
        async with up.client.post("/v1/chat/completions", json=body) as answer:
            await answer.content.readany()
        await until(lambda: up.get("/v1/models/one"), holds=lambda found: not found["instances"][0]["leases"])
        assert (await up.chat("one"))[0] == 200
