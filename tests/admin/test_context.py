"""A name means the same model in every operation, and one that could mean several does nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from router.admin.openai import INFERENCE_PATHS
from router.config import SchedulerConfig
from tests.admin.conftest import Api
from tests.admin.hub_cache import OverCache, known_of, put

REPO = "org/Flash-GGUF"
FILES = (
    "Flash-Compact.gguf", "Flash-I-Compact.gguf", "Flash-Q4_K_XL.gguf", "Flash-UD-Q4_K_XL.gguf",
    "base-Q4_K_M.gguf", "instruct-Q4_K_M.gguf", "small/x-Q8_0.gguf", "large/x-Q8_0.gguf",
)  # fmt: skip
FORM = '--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{}\r\n--b--\r\n'

#: Every operation that takes the name of a model: method, path with {name}, body with "MODEL" in it.
OPERATIONS: list[tuple[str, str, Any]] = [
    *(("POST", path, {"model": "MODEL"}) for path in INFERENCE_PATHS),
    ("POST", "/v1/audio/transcriptions", FORM),
    ("POST", "/models/load", {"model": "MODEL"}),
    ("POST", "/models/unload", {"model": "MODEL"}),
    ("POST", "/models/pin", {"model": "MODEL"}),
    ("POST", "/models/unpin", {"model": "MODEL"}),
    ("DELETE", "/models?model={name}", None),
    ("GET", "/models/log?model={name}", None),
    ("GET", "/v1/models/{name}", None),
    ("GET", "/explain?model={name}", None),
    ("GET", "/vram?model={name}", None),
    ("GET", "/vram/plan?model={name}", None),
    ("GET", "/metrics?model={name}", None),
    ("GET", "/props?model={name}&autoload=1", None),
    ("GET", "/slots?model={name}", None),
    ("GET", "/lora-adapters?model={name}", None),
    ("POST", "/lora-adapters?model={name}", []),
    ("POST", "/slots/0?model={name}&action=erase", {}),
    ("POST", "/upstream/{name}/tokenize", {}),
    ("GET", "/upstream/{name}/props?autoload=1", None),
]


@pytest.fixture
async def router(api: Api, tmp_path: Path, monkeypatch: Any, models_dir: Path) -> OverCache:
    """One whose cache has FILES, and nothing else."""
    over = OverCache(api, tmp_path, monkeypatch, {})
    for file in FILES:
        put(over.cache, REPO, file, models_dir / "tiny.gguf")
    await over.start()
    return over


async def asked(api: Api, operation: tuple[str, str, Any], name: str) -> Any:
    method, path, body = operation
    target = path.format(name=quote(name, safe=":"))
    if body is FORM:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        return await api.call(method, target, data=FORM.format(name).encode(), headers=headers)
    if body is None:
        return await api.call(method, target)
    filled = {key: name if value == "MODEL" else value for key, value in body.items()} if body else body
    return await api.call(method, target, json=filled)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each[0]} {each[1]}")
async def test_a_name_that_several_models_could_have_is_refused_with_them(router: OverCache, operation):
    before = await router.names()
    for name, candidates in (
        (f"{REPO}:Q4_K_M", [f"{REPO}:base-Q4_K_M", f"{REPO}:instruct-Q4_K_M"]),
        (f"{REPO}:q8_0", [f"{REPO}:large-x-Q8_0", f"{REPO}:small-x-Q8_0"]),
    ):
        answer = await asked(router.api, operation, name)
        error = answer.json()["error"]  # in the shape of its path
        assert (answer.status, error["code"], error["candidates"]) == (409, "model_ambiguous", candidates)
        assert all(candidate in error["message"] for candidate in candidates)
    pool = router.api.pool
    assert not (pool.instances or pool.acquired or pool.unloads or pool.pins or pool.explained)
    assert await router.names() == before and len(before) == len(FILES)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each[0]} {each[1]}")
async def test_the_name_of_a_folder_or_repository_of_several_models_is_refused_with_them(
    api: Api, tmp_path: Path, monkeypatch: Any, models_dir: Path, operation
):
    over = OverCache(api, tmp_path, monkeypatch, {})
    for file in ("Flash-Q4_0.gguf", "Flash-Q8_0.gguf"):
        put(over.cache, REPO, file, models_dir / "tiny.gguf")
        (over.folder / "author/repo").mkdir(parents=True, exist_ok=True)
        (over.folder / "author/repo" / file).write_bytes((models_dir / "tiny.gguf").read_bytes())
    await over.start()
    for name, candidates in (
        (REPO, [f"{REPO}:Q4_0", f"{REPO}:Q8_0"]),
        ("author/repo", ["author/repo/Flash-Q4_0", "author/repo/Flash-Q8_0"]),
        ("author", ["author/repo/Flash-Q4_0", "author/repo/Flash-Q8_0"]),
    ):
        answer = await asked(api, operation, name)
        error = answer.json()["error"]
        assert (answer.status, error["code"], error["candidates"]) == (409, "model_ambiguous", candidates)
    assert not (api.pool.instances or api.pool.acquired or api.pool.unloads or api.pool.pins)
    assert len(await over.names()) == 4


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Compact", "COMPACT"),
        ("I-Compact", "I-COMPACT"),
        ("i-compact", "I-COMPACT"),
        ("Q4_K_XL", "Q4_K_XL"),
        ("q4_k_xl", "Q4_K_XL"),
        ("UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("Instruct-Q4_K_M", "instruct-Q4_K_M"),
        ("large/x-Q8_0", "large-x-Q8_0"),
    ],
)
async def test_a_name_means_its_own_file_whatever_lies_beside_it(router: OverCache, name, model):
    await router.api.post("/v1/chat/completions", json={"model": f"{REPO}:{name}"})
    assert [each.model for each in router.api.pool.acquired] == [f"{REPO}:{model}"]
    shown = (await router.api.get(f"/v1/models/{REPO}:{model}")).json()
    answer = await router.api.call("DELETE", f"/models?model={REPO}:{quote(name, safe='')}")
    assert (answer.status, answer.json()["files"]) == (200, [shown["path"]])
    assert sorted(await router.names()) == sorted(
        f"{REPO}:{each}"
        for each in ("COMPACT", "I-COMPACT", "Q4_K_XL", "UD-Q4_K_XL", "base-Q4_K_M", "instruct-Q4_K_M",
                     "small-x-Q8_0", "large-x-Q8_0")
        if each != model
    )  # fmt: skip


@pytest.mark.parametrize("gone", ["Flash-I-Compact.gguf", "Flash-UD-Q4_K_XL.gguf"])
async def test_what_is_not_there_is_not_answered_by_a_file_of_a_shorter_name(router: OverCache, gone):
    label = gone.removeprefix("Flash-").removesuffix(".gguf")
    await router.api.call("DELETE", f"/models?model={REPO}:{label}")
    for path in ("/v1/chat/completions", "/models/load", "/models/pin"):
        answer = await router.api.post(path, json={"model": f"{REPO}:{label}"})
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert (await router.api.call("DELETE", f"/models?model={REPO}:{label}")).status == 404
    assert len(await router.names()) == len(FILES) - 1


# --- requests that name no model ---

WITHOUT: list[tuple[str, str, bytes, str]] = [
    *(("POST", path, b'{"input":"x" ,  "n":1}', "application/json") for path in INFERENCE_PATHS),
    ("POST", "/v1/chat/completions", b'{"model":null,"input":"x"}', "application/json"),
    ("POST", "/v1/chat/completions", b'{"model":"" }', "application/json"),
    ("POST", "/v1/chat/completions?model=", b"{ }", "application/json"),
    ("POST", "/v1/audio/transcriptions", FORM.replace('"model"', '"n"').encode(),
     "multipart/form-data; boundary=b"),
    ("POST", "/lora-adapters", b"[ ]", "application/json"),
    ("POST", "/slots/0?action=erase", b"", "application/json"),
    ("POST", "/props", b"{}", "application/json"),
]  # fmt: skip


def over_two(api: Api, tmp_path: Path, monkeypatch: Any, models_dir: Path) -> OverCache:
    """`chat`, and `other`, which is hidden."""
    over = OverCache(api, tmp_path, monkeypatch, {"other": {"hidden": True}})
    for name in ("chat", "other"):
        (over.folder / f"{name}.gguf").write_bytes((models_dir / "tiny.gguf").read_bytes())
    return over


async def ask_without(api: Api, request: tuple[str, str, bytes, str]) -> Any:
    method, path, body, kind = request
    return await api.call(method, path, data=body, headers={"Content-Type": kind})


@pytest.mark.parametrize("request_", WITHOUT, ids=lambda each: f"{each[1]} {each[2]!r:.30}")
async def test_a_request_that_names_no_model_gets_the_only_one_and_passes_as_it_is(
    api: Api, tmp_path: Path, monkeypatch: Any, models_dir: Path, request_
):
    await over_two(api, tmp_path, monkeypatch, models_dir).start()
    for _ in range(2):  # the second takes the fast path
        answer = await ask_without(api, request_)
        assert (answer.status, answer.body) == (200, request_[2])
    assert {each.model for each in api.pool.acquired} <= {"chat"}
    assert list({one.model for one in api.pool.instances.values()}) == ["chat"]


@pytest.mark.parametrize("path", ["/slots", "/lora-adapters", "/slots?model="])
async def test_so_does_a_look_that_names_none(
    api: Api, tmp_path: Path, monkeypatch: Any, models_dir: Path, path
):
    await over_two(api, tmp_path, monkeypatch, models_dir).start()
    refused = await api.get(path)
    assert refused.error["code"] == "model_not_loaded" and "chat is not loaded" in refused.error["message"]


@pytest.mark.parametrize("request_", WITHOUT, ids=lambda each: f"{each[1]} {each[2]!r:.30}")
async def test_of_several_models_none_is_guessed(api: Api, request_):
    await api.start()
    error = (answer := await ask_without(api, request_)).json()["error"]
    assert (answer.status, error["code"]) == (400, "invalid_request")
    assert "name a model" in error["message"] and "there are: tiny, " in error["message"]
    assert "hidden" not in error["message"] and not api.pool.acquired


@pytest.mark.parametrize("request_", WITHOUT, ids=lambda each: f"{each[1]} {each[2]!r:.30}")
async def test_of_several_models_the_configured_one_is_taken(api: Api, request_):
    await api.start(default_model="small")
    answer = await ask_without(api, request_)
    assert (answer.status, answer.body) == (200, request_[2])
    assert [each.model for each in api.pool.acquired] == ["tiny"]


async def test_a_default_that_there_is_not_is_told_as_that(api: Api):
    await api.start(default_model="gone")
    answer = await api.post("/v1/chat/completions", json={})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["message"].startswith("server.default_model: model 'gone' not found")
    assert (await api.post("/v1/chat/completions", json={"model": "tiny"})).status == 200


# --- patterns ---


async def test_a_pattern_is_a_name_in_every_operation_and_listed_as_a_pattern(
    api: Api, tmp_path: Path, monkeypatch: Any, models_dir: Path
):
    over = OverCache(api, tmp_path, monkeypatch, {
        "chat": {"aliases": ["claude-sonnet-*", "fast"]}, "other": {"aliases": ["claude-sonnet-4"]},
    })  # fmt: skip
    for name in ("chat", "other"):
        (over.folder / f"{name}.gguf").write_bytes((models_dir / "tiny.gguf").read_bytes())
    await over.start()
    for name, model in (("claude-sonnet-4-20250514", "chat"), ("claude-sonnet-4", "other")):
        answer = await api.post("/v1/chat/completions", json={"model": name})
        assert (answer.status, answer.json()) == (200, {"model": name})
        assert api.pool.acquired[-1].model == model
        assert (await api.get(f"/v1/models/{name}")).json()["id"] == model
        await api.get(f"/explain?model={name}")
        assert api.pool.explained[-1][0] == model
        assert (await api.post(f"/upstream/{name}/tokenize", json={})).status == 200
        assert api.pool.acquired[-1].model == model
    rows = (await api.get("/v1/models")).json()["data"]
    assert [(row["id"], row["aliases"], row["alias_patterns"]) for row in rows] == [
        ("chat", ["fast"], ["claude-sonnet-*"]), ("other", ["claude-sonnet-4"], []),
    ]  # fmt: skip
    refused = await api.post("/v1/chat/completions", json={"model": "claude-opus-4"})
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")


async def test_groups_of_models_that_exclude_each_other_take_names_as_requests_do(
    tmp_path: Path, monkeypatch: Any, models_dir: Path
):
    cache = tmp_path / "hub"
    for file in FILES:
        put(cache, REPO, file, models_dir / "tiny.gguf")
    scheduler = SchedulerConfig(exclusive=((f"{REPO}:i-compact", f"{REPO}:Q4_K_M"),))
    _, known = known_of(tmp_path / "own", cache, {}, monkeypatch, scheduler)
    excluded = {name for name, one in known.definitions.by_name.items() if one.model.exclusive}
    assert excluded == {f"{REPO}:{each}" for each in ("I-COMPACT", "base-Q4_K_M", "instruct-Q4_K_M")}
