"""The page in a real browser: laptop and phone, light and dark."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.report.browser import BROWSERS, browser_path
from tests.report.conftest import MakePage

SIZES = {"laptop": (1280, 800), "phone": (390, 844)}
Scheme = Literal["light", "dark"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = browser_path()
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page in the browser; what it said on its console, and what it asked the network for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))


@pytest.mark.parametrize("size", SIZES)
def test_page_in_a_browser(
    size: str, browser: Browser, make_page: MakePage, served: Path, tmp_path: Path
) -> None:
    make_page(artifact=str(served))
    url = (tmp_path / "page.html").as_uri()
    width, height = SIZES[size]
    pictures = {}
    for scheme in get_args(Scheme):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        opened = Opened(page)
        page.goto(url)
        assert opened.said == []
        assert opened.asked == [url]
        assert overflowing(page) == []
        assert page.evaluate("document.querySelectorAll('figure svg').length") >= 8
        paper = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert (min(paper) > 200) if scheme == "light" else (max(paper) < 60)
        pictures[scheme] = page.screenshot(full_page=True)
        page.close()
    assert pictures["light"] != pictures["dark"]


def overflowing(page: Page) -> list[str]:
    """Elements that reach beyond the window, but for what scrolls on its own."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll') || e.classList.contains('scroll'))
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.tagName + '.' + e.className)"""
    )
    width: int = page.evaluate("document.documentElement.scrollWidth")
    window: int = page.evaluate("innerWidth")
    return found if width <= window else [*found, f"the page is {width} wide"]


def test_a_page_that_is_too_wide_is_found(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_content("<p>narrow</p>")
    assert overflowing(page) == []
    page.set_content("<p style='width: 500px' class=wide>wide</p>")
    assert "P.wide" in overflowing(page)
    page.close()
