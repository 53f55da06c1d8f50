"""The status page in a real browser against a real router: every button pressed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Page, expect

from tests.e2e.browser import needs_chromium, page_of, picture
from tests.e2e.conftest import Start
from tests.hub_stub import HubStub
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess

pytestmark = needs_chromium

TWO = "[scheduler]\nmodels_max = 2\n"
#: With such a context an answer takes longer than any test needs.
LONG = 65536
TALKATIVE = f"[child]\nctx_size = {LONG}\n"


@pytest.fixture
async def hub() -> AsyncIterator[HubStub]:
    async with HubStub().running() as stub:
        yield stub


def card(page: Page, model: str) -> Any:
    return page.locator(f'#model-list > li[data-model="{model}"]')


async def press(page: Page, model: str, button: str) -> None:
    await card(page, model).locator(f'button[data-do="{button}"]').click()


async def is_in_state(page: Page, model: str, value: str) -> None:
    await expect(card(page, model)).to_have_attribute("data-value", value, timeout=20_000)


def talkative(router: RouterProcess, model: str) -> RouterProcess:
    make_llama(router.models / f"{model}.gguf", name=model, n_ctx_train=LONG)
    return router


async def load(router: RouterProcess, model: str) -> None:
    async with router.client.post("/models/load?wait=1", json={"model": model}) as answer:
        assert answer.status == 200


@asynccontextmanager
async def endless(router: RouterProcess, model: str) -> AsyncIterator[aiohttp.ClientResponse]:
    asked = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    body = {**asked, "max_tokens": 100_000, "ignore_eos": True}
    async with router.client.post("/v1/chat/completions", json=body) as answer:
        await answer.content.readany()
        yield answer


async def test_a_model_is_loaded_pinned_and_unloaded_by_its_buttons(router: Start):
    async with router("alpha", "beta", config=TWO) as serving, page_of(serving.url) as page:
        await expect(page.locator("#connection")).to_have_text("live")
        await press(page, "alpha", "load")
        await is_in_state(page, "alpha", "loaded")
        await press(page, "alpha", "pin")
        await expect(card(page, "alpha").locator(".state")).to_have_text("loaded, pinned")
        await press(page, "alpha", "pin")
        await expect(card(page, "alpha").locator(".state")).to_have_text("loaded")
        await press(page, "alpha", "why")
        await expect(page.locator("#why-text")).to_contain_text("alpha#1 is loaded")
        await page.click("#why-close")
        await press(page, "alpha", "log")
        await expect(page.locator("#log-text")).to_contain_text("llama", timeout=20_000)
        await page.click("#log-close")
        await press(page, "alpha", "unload")
        await is_in_state(page, "alpha", "unloaded")
        await expect(card(page, "alpha").locator(".last")).to_contain_text("because an operator said so")
        await press(page, "beta", "load")
        await is_in_state(page, "beta", "loaded")
        page.once("dialog", lambda dialog: dialog.accept())
        await page.click("#unload-all")
        await expect(page.locator("#toast")).to_have_text("unload all models: done")
        await is_in_state(page, "beta", "unloaded")


async def test_who_leaves_for_whom_is_seen_while_it_happens(router: Start):
    async with router("alpha", "beta", "gamma", config=TWO) as serving, page_of(serving.url) as page:
        for model in ("alpha", "beta", "gamma"):
            await press(page, model, "load")
            await is_in_state(page, model, "loaded")
        await is_in_state(page, "alpha", "unloaded")
        await expect(card(page, "alpha").locator(".last")).to_contain_text("leaves to make room for gamma")
        await expect(page.locator("#timeline")).to_contain_text("gamma loads on host")
        await expect(page.locator("#timeline")).to_contain_text("after alpha left")
        await expect(page.locator("#lanes svg")).to_have_attribute(
            "aria-label", "Which models were in memory in the last 1\u00a0min 0\u00a0s: alpha, beta, gamma"
        )
        bar = page.locator(".device .bar")
        await expect(bar).to_have_attribute("aria-label", re.compile("gamma .* free "))
        await expect(page.locator(".device .past polyline")).to_have_count(1, timeout=20_000)


async def test_a_request_in_flight_is_cancelled_and_a_busy_model_unloaded_now(router: Start):
    alpha = talkative(router(config=TALKATIVE), "alpha")
    async with alpha as serving, page_of(serving.url) as page:
        async with endless(serving, "alpha") as answer:
            row = page.locator("#request-list > li")
            await expect(row).to_contain_text("alpha · /v1/chat/completions · answering")
            await expect(card(page, "alpha").locator(".facts")).to_contain_text("1 request")
            await row.locator('button[data-do="cancel"]').click()
            rest = await asyncio.wait_for(answer.content.read(), 20)
            assert b"an operator has ended this request" in rest
            await expect(row).to_have_count(0)
        async with endless(serving, "alpha") as answer:
            page.once("dialog", lambda dialog: dialog.accept())
            await press(page, "alpha", "force")
            rest = await asyncio.wait_for(answer.content.read(), 20)
            assert b"error" in rest
            await is_in_state(page, "alpha", "unloaded")


async def test_a_model_is_tried_stopped_and_forgotten_in_the_chat(router: Start):
    both = talkative(router("alpha", config=TALKATIVE), "beta")
    async with both as serving, page_of(serving.url) as page:
        await expect(page.locator("#chat-model option")).to_have_count(2)
        await page.select_option("#chat-model", "beta")
        await page.fill("#chat-text", "Hello?")
        await page.press("#chat-text", "Enter")
        line = page.locator("#chat-log p").nth(1)
        await expect(line.locator(".who")).to_have_text("beta")
        await expect(line.locator("span").last).not_to_be_empty()
        await page.click("#chat-stop")
        await expect(page.locator("#chat-note")).to_have_text("stopped")
        await expect(page.locator("#request-list > li")).to_have_count(0)
        await is_in_state(page, "beta", "loaded")
        await page.click("#chat-clear")
        await expect(page.locator("#chat-log p")).to_have_count(0)


async def test_a_model_is_downloaded_tried_cancelled_and_forgotten(
    router: Start, folder: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
):
    make_llama(folder / "gamma-Q8_0.gguf", name="gamma", seed=3)
    model = (folder / "gamma-Q8_0.gguf").read_bytes()
    hub.add("org/gamma-GGUF", {"gamma-Q8_0.gguf": model})
    hub.add("org/endless-GGUF", {"endless-Q8_0.gguf": model + b"x"})
    for name, value in hub.environ(folder).items():
        monkeypatch.setenv(name, value)
    async with router("alpha") as serving, page_of(serving.url) as page:
        await page.fill("#download-repo", "org/gamma-GGUF")
        await page.fill("#download-quantization", "Q8_0")
        await page.click('#download-form button[type="submit"]')
        row = page.locator('#download-list > li[data-repo="org/gamma-GGUF"]')
        await expect(row).to_contain_text("org/gamma-GGUF: finished", timeout=30_000)
        fetched = "org/gamma-GGUF:Q8_0"
        await expect(card(page, fetched)).to_be_visible()
        await press(page, fetched, "load")
        await is_in_state(page, fetched, "loaded")
        await row.locator('button[data-do="forget"]').click()
        await expect(row).to_have_count(0)

        hub.faults.hold_after = 1000
        await page.fill("#download-repo", "org/endless-GGUF")
        await page.fill("#download-quantization", "")
        await page.click('#download-form button[type="submit"]')
        row = page.locator('#download-list > li[data-repo="org/endless-GGUF"]')
        await expect(row).to_contain_text("downloading", timeout=30_000)
        await row.locator('button[data-do="cancel"]').click()
        await expect(row).to_contain_text("cancelled", timeout=20_000)

        await page.fill("#download-repo", "org/nothing-here")
        await page.click('#download-form button[type="submit"]')
        await expect(page.locator("#toast")).to_contain_text("Could not download org/nothing-here")


async def test_a_list_is_narrowed_by_name_and_by_what_is_in_memory(router: Start):
    async with router("alpha", "beta") as serving, page_of(serving.url) as page:
        await page.fill("#filter", "BET")
        await expect(card(page, "alpha")).to_be_hidden()
        await expect(card(page, "beta")).to_be_visible()
        await page.fill("#filter", "nothing like it")
        await expect(page.locator("#no-models")).to_be_visible()
        await page.fill("#filter", "")
        await page.check("#only-loaded")
        await expect(card(page, "alpha")).to_be_hidden()
        await load(serving, "alpha")
        await expect(card(page, "alpha")).to_be_visible()


async def test_without_the_admin_key_nothing_is_shown_and_with_it_everything(router: Start):
    keys = '[server]\nadmin_keys = ["sesame"]\n'
    async with router("alpha", config=keys) as serving, page_of(serving.url) as page:
        await expect(page.locator("#key-dialog")).to_be_visible()
        await expect(page.locator("#model-list > li")).to_have_count(0)
        await page.fill("#key-value", "wrong")
        await page.click('#key-form button[value="use"]')
        await expect(page.locator("#key-dialog")).to_be_visible()
        await page.fill("#key-value", "sesame")
        await page.click('#key-form button[value="use"]')
        await expect(page.locator("#connection")).to_have_text("live")
        await press(page, "alpha", "load")
        await is_in_state(page, "alpha", "loaded")


async def test_the_page_finds_back_after_the_router_was_gone(router: Start, unused_tcp_port: int):
    serving = router("alpha", "beta", args=("--port", str(unused_tcp_port)))
    async with serving, page_of(serving.url) as page:
        await press(page, "alpha", "load")
        await is_in_state(page, "alpha", "loaded")
        await serving.stop()
        await expect(page.locator("#connection")).to_have_attribute("data-kind", "lost")
        await serving.start_again()
        await expect(page.locator("#connection")).to_have_text("live", timeout=30_000)
        await is_in_state(page, "alpha", "unloaded")
        await expect(page.locator("#timeline li")).to_have_count(0)
        await press(page, "beta", "load")
        await is_in_state(page, "beta", "loaded")


@pytest.mark.parametrize(
    ("name", "scheme", "size"),
    [
        ("desktop", "light", (1280, 900)),
        ("desktop-dark", "dark", (1280, 900)),
        ("phone", "light", (390, 844)),
    ],
)
async def test_nothing_is_wider_than_the_screen_and_everybody_can_use_it(
    router: Start, name: str, scheme: Any, size: tuple[int, int]
):
    models = ("alpha", "a-rather-long-name-of-a-model-with-its-quantisation-Q4_K_M")
    many = talkative(router(*models, config=TWO + TALKATIVE), "beta")
    async with many as serving, page_of(serving.url, scheme=scheme, size=size) as page:
        for model in ("alpha", "beta"):
            await load(serving, model)
            await is_in_state(page, model, "loaded")
        async with endless(serving, "beta"):
            await expect(page.locator("#request-list > li")).to_have_count(1)
            await picture(page, name)
            # axe-core: contrast, names and roles, as WCAG 2 asks for them.
            found = (await Axe().run(page)).response["violations"]
            assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= size[0]


async def test_everything_is_reached_and_done_by_keyboard(router: Start):
    async with router("alpha") as serving, page_of(serving.url) as page:
        await expect(card(page, "alpha")).to_be_visible()
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.className") == "skip"
        for _ in range(30):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.dataset.do") == "load":
                break
        await page.keyboard.press("Enter")
        await is_in_state(page, "alpha", "loaded")
        # The pressed button is gone; the focus is not.
        focused = await page.evaluate("document.activeElement.closest('li')?.dataset.model")
        assert focused == "alpha"
