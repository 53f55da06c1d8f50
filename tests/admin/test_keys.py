"""Who may do what."""

from __future__ import annotations

import pytest

from router.admin.keys import Keys
from router.admin.route import Access
from router.errors import Forbidden, RouterError, Unauthorized
from tests.admin.conftest import Api


def verdict(keys: Keys, presented: list[str], access: Access) -> type[RouterError] | None:
    try:
        keys.check(presented, access)
    except RouterError as error:
        return type(error)
    return None


@pytest.mark.parametrize(
    ("keys", "presented", "public", "inference", "admin"),
    [
        (Keys(), [], None, None, None),
        (Keys(), ["any"], None, None, None),
        (Keys(["k"]), [], None, Unauthorized, Unauthorized),
        (Keys(["k"]), ["x"], None, Unauthorized, Unauthorized),
        (Keys(["k"]), ["k"], None, None, None),
        (Keys(["k"]), ["x", "k"], None, None, None),
        (Keys(["k"], ["a"]), ["k"], None, None, Forbidden),
        (Keys(["k"], ["a"]), ["a"], None, None, None),
        (Keys([], ["a"]), [], None, None, Unauthorized),
        (Keys([], ["a"]), ["x"], None, None, Unauthorized),
        (Keys([], ["a"]), ["a"], None, None, None),
    ],
)
def test_a_key_opens_what_it_is_for(keys: Keys, presented: list[str], public, inference, admin):
    assert verdict(keys, presented, Access.PUBLIC) is public
    assert verdict(keys, presented, Access.INFERENCE) is inference
    assert verdict(keys, presented, Access.ADMIN) is admin


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"Authorization": "bearer  secret "},
        {"Authorization": "secret"},
        {"x-api-key": "secret"},
        {"Authorization": "Bearer stale", "x-api-key": "secret"},
    ],
)
async def test_a_key_may_be_presented_in_each_of_the_usual_ways(api: Api, headers: dict[str, str]):
    await api.start(api_keys=("secret",))
    assert (await api.get("/v1/models", headers=headers)).status == 200


async def test_without_a_key_nothing_is_told(api: Api):
    await api.start(api_keys=("secret",))
    for path in ("/v1/models", "/vram", "/explain?model=tiny", "/nothing-here"):
        answer = await api.get(path)
        assert (answer.status, answer.error["type"]) == (401, "authentication_error")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await api.post("/v1/completions", json={"model": "tiny"})).status == 401
    assert not api.pool.acquired


async def test_a_key_in_another_alphabet_is_just_wrong(api: Api):
    await api.start(api_keys=("schlüssel",))
    assert (await api.get("/v1/models", headers={"x-api-key": "schlussel"})).status == 401
    assert (await api.get("/v1/models", headers={"x-api-key": "schlüssel"})).status == 200


async def test_operations_need_the_admin_key_where_there_is_one(api: Api):
    await api.start(api_keys=("user",), admin_keys=("root",))
    user, root = {"Authorization": "Bearer user"}, {"Authorization": "Bearer root"}
    body = {"model": "tiny"}
    for path in ("/models/load?wait=1", "/models/unload"):
        refused = await api.post(path, json=body, headers=user)
        assert (refused.status, refused.error["type"]) == (403, "permission_error")
        assert (await api.post(path, json=body, headers=root)).status == 200
    assert (await api.get("/models?reload=1", headers=user)).status == 403
    assert (await api.get("/models", headers=user)).status == 200
    assert (await api.get("/models?reload=1", headers=root)).status == 200
    assert api.reloads == 1
