"""The packages, the states of an instance and the path of a request, from the code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

import router
from router.admin.openai import infer
from router.cli.reference.markdown import MADE, code, table
from router.hosts.local import LocalHost
from router.http.express import Express
from router.http.front import Front
from router.proxy.answer import Answer
from router.proxy.express import Exchange
from router.proxy.forward import Proxy
from router.proxy.upstream import ask_now, connect
from router.scheduler.scheduler import Scheduler
from router.scheduler.types import TRANSITIONS, State
from router.supervisor.pool import Pool

_Step = tuple[Callable[..., Any], str]

#: A request for a ready model, from the client's bytes to llama-server and back.
_WARM: Final[tuple[_Step, ...]] = (
    (Front.data_received, "collects the bytes of one request"),
    (Express.look, "reads the head; anything unusual goes to aiohttp's server"),
    (Express.begin, "checks key and model, reads `model`, `keep_alive` and `max_tokens` of the body"),
    (Pool.take, "takes a lease"),
    (Scheduler.take, "finds a ready instance with a free lease"),
    (Exchange.begin, "sends the request on a kept or a new connection"),
    (ask_now, "opens a Unix socket and writes to it in one step"),
    (Exchange.received, "passes the answer on, chunk by chunk; a short one in one step"),
    (Answer.received, "follows the framing of a longer answer, with backpressure in both directions"),
    (Front.answered, "frees the client's connection for its next request"),
    (Pool.give_back, "gives the lease back"),
    (Scheduler.give_back, "notes how long the lease was held"),
)
#: A request for a model that is not loaded.
_COLD: Final[tuple[_Step, ...]] = (
    (Front.data_received, "passes the bytes to aiohttp's server"),
    (infer, "the handler: reads the fields of the body and resolves the model"),
    (
        Proxy.forward,
        "sends early head and heartbeats, retries once before the first byte",
    ),
    (Pool.lease, "passes Acquire to the scheduler and waits for its Grant"),
    (Scheduler.handle, "decides: Stop victims, Start when their memory is measured free, Grant when ready"),
    (LocalHost.start, "reserves, starts llama-server and waits until it is ready"),
    (connect, "opens a connection to its Unix socket"),
    (Answer.received, "passes the answer on, chunk by chunk"),
    (Scheduler.handle, "takes Release, once, however the request ended"),
)


def architecture_page() -> str:
    about = inspect.getdoc(router) or ""
    packages = about[about.index("    __main__ >") : about.index("One request:")].rstrip()
    return f"""{MADE}# Architecture

llama-router is a connection pool whose connections are processes and whose limit is memory.

## Packages

A package imports only from those below it. `bin/check` holds that (`[tool.importlinter]` in
[pyproject.toml](../pyproject.toml)).

{packages}

Where this differs from one package per duty: `gguf` and `presets` lie below `engines` and `memory`, because
both read a model's header and settings; `process` lies below `memory`, because the estimate runs
`llama-fit-params`; `metrics` lies above `proxy`, because it reads the figures of each request.

## States of an instance

```mermaid
stateDiagram-v2
    [*] --> {State.PLANNED.name}
{_diagram()}```

{table(("state", "meaning"), _states())}
## A request for a ready model

Down and up again, in the order of the calls:

{_steps(_WARM)}
## A request for a model that is not loaded

{_steps(_COLD)}"""


def _diagram() -> str:
    return "".join(
        f"    {state.name} --> {'[*]' if after is None else after.name}\n"
        for state, targets in TRANSITIONS.items()
        for after in sorted(targets, key=lambda target: (target is None, target.name if target else ""))
    )


def _states() -> Iterable[tuple[str, str]]:
    yield State.PLANNED.name, "memory is reserved while the instances that make place for it exit"
    yield State.STARTING.name, "the process runs and loads the model"
    yield State.READY.name, "it answers requests"
    yield State.DRAINING.name, "it takes no new lease, and is stopped when the last one has ended"
    yield State.STOPPING.name, "SIGTERM was sent; SIGKILL follows after the grace"


def _steps(steps: Iterable[_Step]) -> str:
    rows = ((str(number), code(_name(step)), about) for number, (step, about) in enumerate(steps, start=1))
    return table(("", "function", "what it does"), rows)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__.removeprefix('router.')}.{function.__qualname__}"
