"""A headless Chromium, as the Debian package `chromium` installs it: a page as a person sees it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium (Debian: chromium)")

_ARGS = (
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def page_of(
    url: str,
    *,
    scheme: Literal["light", "dark"] = "light",
    size: tuple[int, int] = (1280, 900),
) -> AsyncIterator[Page]:
    """The page in a browser of its own. Whatever it says to its console as an error fails the test."""
    async with chromium() as browser:
        width, height = size
        page = await browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.set_default_timeout(20_000)
        await page.goto(url)
        yield page
        assert not [one for one in complaints if "status of 4" not in one and "ERR_" not in one], complaints


async def picture(page: Page, name: str, *, whole: bool = True) -> None:
    """Kept where LLAMA_ROUTER_PICTURES says, for people to look at: the `whole` page, or what is on the
    screen."""
    if folder := os.environ.get("LLAMA_ROUTER_PICTURES"):
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=whole)
