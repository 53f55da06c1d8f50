"""The document that tells programs what there is."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest

from router.admin import FAMILIES
from router.admin.dialect import ANTHROPIC_PATHS
from router.admin.route import Access, Route
from tests.admin.conftest import Api

ROUTES = tuple(route for family in FAMILIES for route in family.ROUTES)


@pytest.fixture
async def document(api: Api) -> Any:
    await api.start(api_keys=("secret",))
    answer = await api.get("/openapi.json")
    assert answer.status == 200, "it needs no key"
    return answer.json()


def plain(route: Route) -> str:
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)


async def test_every_route_is_in_it_with_a_word_about_it(document: Any):
    for route in ROUTES:
        methods = (
            ("get", "post", "put", "patch", "delete") if route.method == "*" else (route.method.lower(),)
        )
        for method in methods:
            operation = document["paths"][plain(route)][method]
            assert operation["summary"], f"{method} {route.path} needs a summary in its Route"
            assert bool(operation["security"]) is (route.access is not Access.PUBLIC)


async def test_nothing_else_is_in_it(document: Any):
    told = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert len(told) == sum(5 if route.method == "*" else 1 for route in ROUTES), "none of them twice"


async def test_each_operation_has_an_id_of_its_own(document: Any):
    ids = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(set(ids)) == len(ids)


async def test_its_schemas_are_schemas_and_its_references_lead_somewhere(document: Any):
    components = document["components"]["schemas"]
    for name, schema in components.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name
    found = references(document)
    assert "#/components/schemas/Failed" in found
    assert {one.rpartition("/")[2] for one in found} <= components.keys()


def references(value: Any) -> set[str]:
    match value:
        case dict():
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        case list():
            return set().union(*map(references, value))
        case _:
            return set()


async def test_errors_are_told_in_the_shape_that_they_have(document: Any):
    for path, methods in document["paths"].items():
        shape = "AnthropicFailed" if path in ANTHROPIC_PATHS else "Failed"
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": f"#/components/schemas/{shape}"}


async def test_a_body_that_is_taken_is_told_with_what_is_wrong_about_others(document: Any):
    operation = document["paths"]["/models/load"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    shape = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert "model" in shape["required"]
    assert {"200", "400", "401", "403", "404", "413", "503"} <= operation["responses"].keys()
