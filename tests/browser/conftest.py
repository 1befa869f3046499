"""A real headless Chromium, where there is one: `-m browser` runs these tests, and they say why where they cannot."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A browser of playwright: the system's Chromium, or the one that `playwright install chromium` fetched."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        found = next((path for name in _NAMES if (path := shutil.which(name))), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("no Chromium: install the system's package, or run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file in a fresh window; afterwards no console message and no request to anywhere may have happened."""
    contexts, problems = [], []

    def open_file(path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, calm: bool = True) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce" if calm else "no-preference",
            offline=True,
        )
        context.set_default_timeout(120_000)  # milliseconds: a busy machine is no failure
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        own = path.as_uri()
        page.on("request", lambda r: None if r.url.startswith((own, "data:", "blob:")) else problems.append(r.url))
        page.goto(own)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert problems == []
