"""The packages, the states of an instance and the path of a request, from the code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

import router
from docs.generator.markdown import MADE, code, table
from router.admin.openai import infer
from router.hosts.local import LocalHost
from router.http.connection import ClientConnection
from router.http.inference import ProxiedRoutes
from router.proxy.answer import Answer
from router.proxy.request import ProxiedRequest
from router.proxy.upstream import open_upstream
from router.scheduler.scheduler import Scheduler
from router.scheduler.types import TRANSITIONS, State
from router.supervisor.pool import Pool

_Step = tuple[Callable[..., Any], str]

#: A request for a ready model, from the client's bytes to llama-server and back.
_WARM: Final[tuple[_Step, ...]] = (
    (ClientConnection.data_received, "finds the head of a request in the bytes that came, and its body"),
    (ProxiedRoutes.begin, "where its path is proxied: checks Host, Origin and key"),
    (infer, "reads `model`, `stream`, `keep_alive` and `max_tokens` of the body, and resolves the model"),
    (ProxiedRequest.start, "QUEUED: asks the pool"),
    (Pool.acquire_nowait, "takes a lease, as its instance is ready"),
    (ProxiedRequest.received, "STREAMING: passes the answer on; a short one in one step"),
    (Answer.received, "follows the framing of a longer answer, with backpressure in both directions"),
    (Pool.release, "gives the lease back"),
    (ClientConnection.answered, "DONE: the connection goes on with its next request"),
)
#: A request for a model that is not loaded: the same, but for its wait.
_COLD: Final[tuple[_Step, ...]] = (
    (ClientConnection.data_received, "as above, as far as `ProxiedRequest.start`"),
    (Pool.acquire, "measures, passes Acquire to the scheduler, and waits for its Grant"),
    (Scheduler.handle, "decides: Stop victims, Start when their memory is measured free, Grant when ready"),
    (LocalHost.start, "reserves, starts llama-server and waits until it is ready"),
    (ProxiedRequest.heartbeat, "begins a stream meanwhile, and tells its client what it waits for"),
    (open_upstream, "SENDING: opens a Unix socket and writes to it in one step"),
    (ProxiedRequest.lost, "if the instance dies before its answer began: QUEUED again, once"),
    (Answer.received, "STREAMING, as above"),
    (Pool.release, "passes Release to the scheduler, once, however the request ended"),
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
