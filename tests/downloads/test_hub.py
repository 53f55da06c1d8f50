"""What is asked of a hub, and what is said of an answer that is none."""

from __future__ import annotations

import os

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError

from router.downloads import DownloadSpec
from router.downloads.errors import HubMisbehaves
from router.downloads.hub import MAX_RETRY_AFTER_SECONDS, endpoint, translated
from tests.hub_stub import Mirror

MODEL = b"GGUF" + os.urandom(5000)
REPO = "org/tiny-GGUF"
Q4 = "tiny-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ("7", 7.0),
        ("9" * 400, MAX_RETRY_AFTER_SECONDS),
        ("1e9", None),
        ("-5", None),
        ("nan", None),
        ("", None),
    ],
)
def test_a_hub_that_is_busy_says_for_how_long_within_bounds(after, seconds):
    request = httpx2.Request("GET", "https://hub/x")
    response = httpx2.Response(429, headers={"Retry-After": after}, request=request)
    failed = translated(HfHubHTTPError("busy", response=response), REPO, "main").failed
    assert (failed.code, failed.retry, failed.retry_after_seconds) == ("hub_limited", "later", seconds)


@pytest.mark.parametrize(
    ("page", "kind", "login"),
    [
        (b"<!DOCTYPE html><html>log in</html>", "text/html", None),
        (b"<!DOCTYPE html><html>log in</html>", "application/json", None),
        (b"<!DOCTYPE html><html>log in</html>", "text/html", "/login"),
        (b"", "text/html", None),
        (b'{"id": "org/tiny-GGUF", "sha": "', "application/json", None),
        (b"[]", "application/json", None),
        (b"null", "application/json", None),
        (b'"log in"', "application/json", None),
        (b'{"login": "https://portal"}', "application/json", None),
        (b'{"id": 5, "sha": 6, "siblings": []}', "application/json", None),
        (b'{"id": "org/x", "sha": "' + b"a" * 40 + b'", "siblings": 5}', "application/json", None),
        (b'{"id": "org/x", "sha": "' + b"a" * 40 + b'", "siblings": [{}]}', "application/json", None),
        (b'{"id": "org/x", "siblings": []}', "application/json", None),
        (b"\xff\xfe\x00", "application/json", None),
        (b"", "text/html", "/api/models/org/again"),
        (b"", "text/html", "ftp://portal/"),
    ],
)
async def test_an_answer_that_no_hub_gives_is_the_hubs_fault(kit, page, kind, login):
    kit.hub.add(REPO, {Q4: MODEL})
    faults = kit.hub.faults
    faults.portal, faults.page, faults.page_type, faults.login = frozenset({"api"}), page, kind, login
    with pytest.raises(HubMisbehaves, match=r"http://127\.0\.0\.1:") as raised:
        await kit.downloads.start(DownloadSpec(REPO))
    assert raised.value.status == 502
    assert not kit.downloads.jobs()


@pytest.mark.parametrize("size", [-1, 2.5, "12", None, [], True])
async def test_a_file_without_a_size_is_left_out(kit, size):
    repo = kit.hub.add(REPO, {Q4: MODEL})
    repo.listed = [{"rfilename": "b-Q8_0.gguf", "size": size, "blobId": "0" * 40}]
    assert [file.path for file in (await kit.downloads.look(REPO, "main")).files] == [Q4]


async def test_a_name_that_is_no_text_is_left_out(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL})
    repo.listed = [{"rfilename": "\ud800.gguf", "size": 5, "blobId": "0" * 40}]
    listing = await kit.downloads.look(REPO, "main")
    assert [file.path for file in listing.files] == [Q4] and listing.left_out == ("?.gguf",)


async def test_sizes_that_the_list_does_not_tell_are_asked_for(kit):
    kit.hub.add(REPO, {Q4: MODEL, "b-Q8_0.gguf": MODEL * 2}, mirror=Mirror(None, frozenset()))
    listing = await kit.downloads.look(REPO, "main")
    assert {file.path: file.size for file in listing.files} == {Q4: len(MODEL), "b-Q8_0.gguf": len(MODEL) * 2}


async def test_a_mirror_that_tells_no_size_at_all_is_told_of(kit):
    kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(None, frozenset(), head_length=False))
    with pytest.raises(HubMisbehaves, match="tells the size of no GGUF file"):
        await kit.downloads.look(REPO, "main")


def test_the_address_of_the_hub_is_told_without_a_password():
    assert "@" not in endpoint()
