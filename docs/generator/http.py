"""Every path of the HTTP interface, from what it tells programs of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from docs.generator.markdown import MADE, code, table
from router.admin import application
from router.admin.openapi import DOCUMENT
from router.config import ServerConfig

#: Answered with by every path: said once.
_EVERYWHERE = frozenset({"401", "403"})


def http_page() -> str:
    document = msgspec.json.decode(application(ServerConfig())[DOCUMENT].text)
    families: dict[str, list[tuple[str, str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            families.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    schemas = document["components"]["schemas"]
    pages = "\n".join("".join(_family(name, ones, schemas)) for name, ones in families.items())
    return f"""{MADE}# HTTP interface

`GET /openapi.json` tells the same to programs. Where `server.api_keys` are set, every path but `/health` and
`/openapi.json` needs one, as `Authorization: Bearer KEY` or `x-api-key: KEY`; paths marked *admin* one of
`server.admin_keys`, where there are any. Errors have OpenAI's shape,
`{{"error": {{"message", "type", "code", "param"}}}}`, and a `Retry-After` where waiting helps; on Anthropic's
paths they have Anthropic's. While the router stops, every path answers 503 `shutting_down`.

{pages}"""


def _family(name: str, ones: list[tuple[str, str, Any]], schemas: Any) -> Iterator[str]:
    """Paths that take and answer the same are told of together."""
    alike: dict[str, list[tuple[str, str, Any]]] = {}
    for one in ones:
        alike.setdefault("".join(_operation(one[2], schemas)) + _admin(one[2]), []).append(one)
    yield f"## {name}\n\n"
    for same in alike.values():
        summaries = {operation["summary"] for _, _, operation in same}
        if len(summaries) == 1:
            yield f"**{summaries.pop()}**{_admin(same[0][2])}\n\n"
        yield "".join(f"    {method} {path}\n" for method, path, _ in same) + "\n"
        yield from _operation(same[0][2], schemas)


def _operation(operation: Any, schemas: Any) -> Iterator[str]:
    about = re.sub(r"\n\nNeeds an admin key.*", "", operation.get("description", ""), flags=re.DOTALL)
    if about and not about.startswith("Needs an admin key"):
        yield f"{about}\n\n"
    queries = (one for one in operation["parameters"] if one["in"] == "query")
    rows = [(code(f"?{one['name']}="), one["description"]) for one in queries]
    rows += _fields(operation, schemas)
    if rows:
        yield table(("takes", ""), rows) + "\n"
    failures = [
        (status, answer["description"])
        for status, answer in operation["responses"].items()
        if int(status) >= 400 and status not in _EVERYWHERE and answer["description"] != "shutting_down"
    ]
    if failures:
        yield table(("status", "code"), failures) + "\n"


def _fields(operation: Any, schemas: Any) -> Iterator[tuple[str, str]]:
    content = operation.get("requestBody", {}).get("content", {})
    body = content.get("application/json", {}).get("schema", {})
    shape = schemas.get(str(body.get("$ref", "")).rpartition("/")[2], body)
    for field, kind in shape.get("properties", {}).items():
        required = ", required" if field in shape.get("required", ()) else ""
        yield code(field), _kind(kind) + required


def _admin(operation: Any) -> str:
    return " (*admin*)" if "Needs an admin key" in operation.get("description", "") else ""


def _kind(schema: Any) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    return str(schema.get("type", schema.get("$ref", "anything").rpartition("/")[2]))
