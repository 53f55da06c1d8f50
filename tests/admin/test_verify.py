"""POST /models/verify-repo: what there is, and what would be fetched, before anything is."""

from __future__ import annotations

from tests.admin.test_downloads import MODEL, Q4, Q8, REPO, ended, fetching, hub

__all__ = ["fetching", "hub"]


async def test_a_repository_is_told_with_all_that_can_be_had_of_it(fetching, hub):
    repo = hub.add(REPO, {Q4: MODEL, Q8: MODEL + b"x", "mmproj-F16.gguf": MODEL[:2000]})
    repo.listed = [{"rfilename": "../../evil-Q8_0.gguf", "size": 1, "blobId": "0" * 40}]
    body = (await fetching.post("/models/verify-repo", json={"repo": f"{REPO}:Q8_0"})).json()
    assert (body["exists"], body["accessible"], body["gated"], body["problem"]) == (True, True, False, None)
    assert body["commit"] == repo.commit and body["left_out"] == ["../../evil-Q8_0.gguf"]
    sizes = [(one["name"], one["model"], one["size"], one["is_default"]) for one in body["quantizations"]]
    assert sizes == [
        ("Q4_K_M", f"{REPO}:Q4_K_M", len(MODEL), True),
        ("Q8_0", f"{REPO}:Q8_0", len(MODEL) + 1, False),
    ]
    fetch = body["fetch"]
    assert [one["path"] for one in fetch["files"]] == ["mmproj-F16.gguf", Q8]
    assert fetch["models"] == [f"{REPO}:Q8_0"] and fetch["problem"] is None
    assert fetch["missing_bytes"] == fetch["total_bytes"] == len(MODEL) + 2001
    assert hub.content_requests() == [] and (await fetching.get("/models/downloads")).json()["data"] == []


async def test_what_is_there_is_not_counted_as_missing(fetching, hub):
    hub.add(REPO, {Q4: MODEL, Q8: MODEL + b"x"})
    await ended(fetching, (await fetching.post("/models/download", json={"repo": REPO})).json()["id"])
    body = (await fetching.post("/models/verify-repo", json={"repo": REPO})).json()
    assert body["fetch"]["missing_bytes"] == 0
    assert [one["is_present"] for one in body["quantizations"]] == [True, False]


async def test_one_that_is_not_there_is_an_answer_and_no_error(fetching):
    answer = await fetching.post("/models/verify-repo", json={"repo": "org/none"})
    body = answer.json()
    assert (answer.status, body["exists"], body["problem"]["code"]) == (200, False, "repo_not_found")


async def test_a_gated_one_says_what_to_do(fetching, hub):
    hub.add(REPO, {Q4: MODEL}, gated=True, needs_token="hf_right")
    body = (await fetching.post("/models/verify-repo", json={"repo": REPO})).json()
    assert (body["exists"], body["gated"], body["accessible"]) == (True, True, False)
    assert "set HF_TOKEN" in body["problem"]["message"] and body["fetch"]["total_bytes"] == len(MODEL)


async def test_a_quantisation_that_there_is_not_is_a_problem_of_the_answer(fetching, hub):
    hub.add(REPO, {Q4: MODEL})
    body = (await fetching.post("/models/verify-repo", json={"repo": REPO, "quantization": "Q2_K"})).json()
    assert body["fetch"] is None and body["problem"]["code"] == "nothing_to_fetch"


async def test_a_hub_that_cannot_be_reached_is_an_error(fetching, hub):
    hub.faults.api_status = 503
    answer = await fetching.post("/models/verify-repo", json={"repo": REPO})
    assert (answer.status, answer.error["code"]) == (502, "hub_misbehaves")
