"""Clients of the soak: each request with the fate it met, held against the one it ought to meet."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

#: No request may stay without an answer for longer: a stall is known after 3 s, a load takes less than one.
DEADLINE_SECONDS: Final = 45.0
LONGEST_ANSWER_TOKENS: Final = 40
#: What a right request may be told instead of its answer while children die, change and are stopped.
TOLD: Final = {
    429: {"queue_full"},
    502: {"upstream_failed"},
    503: {
        "load_failed", "unloaded", "shutting_down", "no_room", "wait_timeout", "unavailable", "host_full",
    },
}  # fmt: skip
_BROKEN: Final = (aiohttp.ClientError, ConnectionError, OSError)


@dataclass(slots=True)
class Ledger:
    """Every request's fate, once. `wrong` tells what should not have happened."""

    fates: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    #: The words of refusals, without their numbers.
    told: Counter[str] = field(default_factory=Counter)
    #: The router was killed, or had no files left, in these spans of time.monotonic(); the last may be open.
    gaps: list[tuple[float, float]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return self.fates.total()

    def is_in_gap(self, begun: float, ended: float) -> bool:
        return any(start <= ended and begun <= end for start, end in self.gaps)

    def has_killed(self, begun: float, ended: float) -> bool:
        """Whether a child was killed or frozen meanwhile, or a moment before."""
        return any(begun - 1.0 <= at <= ended for at in self.kills)


@dataclass(frozen=True, slots=True)
class Client:
    """One of many; it asks until `until` (time.monotonic())."""

    url: str
    models: Sequence[str]
    ledger: Ledger
    luck: random.Random

    async def run(self, until: float) -> None:
        kinds: list[Callable[[aiohttp.ClientSession], Awaitable[str]]] = [
            *[self._answer] * 4, *[self._stream] * 4, *[self._hang_up] * 2, self._nonsense, self._broken,
        ]  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
        async with aiohttp.ClientSession(self.url, timeout=timeout) as session:
            while time.monotonic() < until:
                await self._enter(self.luck.choice(kinds), session)
                await asyncio.sleep(self.luck.expovariate(20))

    async def _enter(
        self,
        kind: Callable[[aiohttp.ClientSession], Awaitable[str]],
        session: aiohttp.ClientSession,
    ) -> None:
        begun = time.monotonic()
        try:
            fate = await kind(session)
        except TimeoutError:
            fate = "!lost: no answer in time"
        except _BROKEN as error:
            fate = f"!the connection broke: {error!r}"
        ended = time.monotonic()
        if fate.startswith("!the connection") and self.ledger.is_in_gap(begun, ended):
            fate = "cut or refused while the router was down"
            await asyncio.sleep(0.1)
        elif fate.startswith("!the connection") and self.ledger.has_killed(begun, ended):
            fate = "closed: its child was killed in the middle of an answer that is no stream"
        if fate.startswith("!"):
            self.ledger.wrong.append(f"{kind.__name__}: {fate[1:]} ({ended - begun:.1f} s)")
            fate = "WRONG OR LOST"
        self.ledger.fates[fate] += 1

    def _asked(self, **more: Any) -> dict[str, Any]:
        tokens = self.luck.randint(1, LONGEST_ANSWER_TOKENS)
        said = [{"role": "user", "content": "hello " * self.luck.randint(1, 50)}]
        asked = {"model": self.luck.choice(self.models), "messages": said, "max_tokens": tokens}
        return {**asked, "ignore_eos": True, **more}

    def _refused(self, status: int, body: Any) -> str:
        self.ledger.told[re.sub(r"[0-9a-f]*\d[0-9a-f.]*", "N", body["error"]["message"])[:160]] += 1
        return _told(status, body)

    async def _answer(self, session: aiohttp.ClientSession) -> str:
        asked = self._asked()
        async with session.post("/v1/chat/completions", json=asked) as answer:
            body = await answer.json()
            if answer.status != 200:
                return self._refused(answer.status, body)
        usage = body["usage"]["completion_tokens"]
        if body["model"] != asked["model"] or usage != asked["max_tokens"]:
            return f"!another answer: {body['model']} with {usage} tokens for {asked}"
        return "answered right"

    async def _stream(self, session: aiohttp.ClientSession) -> str:
        asked = self._asked(stream=True)
        async with session.post("/v1/chat/completions", json=asked) as answer:
            if answer.status != 200:
                return self._refused(answer.status, await answer.json())
            text = (await answer.read()).decode()
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event.startswith("data: ")]
        if not events:
            return "!a stream without an event"
        if events[-1] != "[DONE]":
            last = json.loads(events[-1])
            if "error" not in last:
                return "!a stream that ended as if it were complete"
            code = last["error"]["code"]
            known = {code for codes in TOLD.values() for code in codes}
            return f"told in the stream: {code}" if code in known else f"!told in the stream: {code}"
        chunks = [json.loads(event) for event in events[:-1]]
        said = sum(bool(choice["delta"].get("content")) for c in chunks for choice in c.get("choices", ()))
        if str(asked["model"]).startswith("fake") and said != asked["max_tokens"]:
            return f"!a stream of {said} tokens for {asked}"
        if any(chunk["model"] != asked["model"] for chunk in chunks) or said > asked["max_tokens"]:
            return f"!another stream: {said} tokens of {chunks[0]['model']} for {asked}"
        finished = [choice.get("finish_reason") for c in chunks for choice in c.get("choices", ())]
        return "streamed right" if any(finished) else "!a stream without its last chunk"

    async def _hang_up(self, session: aiohttp.ClientSession) -> str:
        """At a random moment: before the load, in it, before the first token, between two."""
        patience = self.luck.choice([0.0, 0.01, 0.05, 0.2, 0.5])
        try:
            async with asyncio.timeout(patience):
                await self._stream(session)
        except (TimeoutError, *_BROKEN):
            pass
        return "left by its client"

    async def _nonsense(self, session: aiohttp.ClientSession) -> str:
        sent, status, code = self.luck.choice(
            [
                (json.dumps(self._asked(model="nobody")), 404, "model_not_found"),
                (json.dumps(self._asked(keep_alive="tomorrow")), 400, "invalid_request"),
                ('{"model": ', 400, "invalid_request"),
                ('{"messages": []}', 400, "invalid_request"),
            ]
        )
        async with session.post("/v1/chat/completions", data=sent.encode()) as answer:
            body = await answer.json()
        if (answer.status, body["error"]["code"]) != (status, code):
            return f"!a wrong request was answered {answer.status} {body}"
        return f"refused as it ought to be: {status} {code}"

    async def _broken(self, session: aiohttp.ClientSession) -> str:
        async with session.post("/v1/chat/completions", json=self._asked(model="broken")) as answer:
            body = await answer.json()
        if answer.status != 503:
            return f"!a model that cannot load was answered {answer.status} {body}"
        told = _told(answer.status, body)
        return told if told.startswith("!") else "refused as it ought to be: 503, a model that cannot load"


def _told(status: int, body: Any) -> str:
    code = body.get("error", {}).get("code")
    return f"told: {status} {code}" if code in TOLD.get(status, ()) else f"!told: {status} {body}"
