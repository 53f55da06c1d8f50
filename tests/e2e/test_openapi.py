"""The router held against its own description: what programs derive from `/openapi.json` is what they get."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.test_app import binary

#: They end only with their client, or replace the process that is looked at.
NOT_ASKED = {"/status/sse", "/models/sse", "/models/log", "/restart"}
#: What llama-server answers is not ours to describe.
NOT_OURS = {"openai", "loaded", "upstream"}
EXAMPLES = 15
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@pytest.fixture
async def up() -> AsyncIterator[RouterProcess]:
    """Whatever it is asked to fetch, there is nobody to fetch it from."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        folder = Path(name)
        config = '[server]\napi_keys = ["user"]\nadmin_keys = ["admin"]\naccess_log = false\n'
        env = {"HF_ENDPOINT": "http://127.0.0.1:1"}
        made = RouterProcess(folder, binary(folder), config=config, env=env)
        for model in ("tiny", "other"):
            make_llama(made.models / f"{model}.gguf", sparse=True)
        async with made:
            yield made


async def test_every_answer_is_one_that_the_document_tells_of(up: RouterProcess):
    async with up.client.get("/openapi.json") as answer:
        document = json.loads(await answer.read())
    asked = await asyncio.to_thread(ask_everything, up.url, document)
    assert asked > 25, "of the paths that there are"
    assert up.process.poll() is None
    assert "Traceback" not in up.output


def ask_everything(url: str, document: Any) -> int:
    """Every operation of the router's own, many times, with what its description allows. Returns how many
    there are."""
    asked = 0
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        if operation.path in NOT_ASKED or NOT_OURS & set(operation.tags or ()):
            continue
        asked += 1

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def holds(case: schemathesis.Case) -> None:
            for named in (case.query, case.path_parameters, case.body):
                # By a name that is known, half of the time.
                if isinstance(named, dict) and "model" in named and len(str(named)) % 2:
                    named["model"] = "tiny"
            response = case.call(base_url=url, headers={"x-api-key": "admin"}, timeout=20)
            case.validate_response(response, checks=CHECKS)  # type: ignore[arg-type]

        holds()
    return asked
