"""A headless Chromium that watches what a page does, for the tests of the live page."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, Playwright

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
_REPORTS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""
"""Script that collects violations of the content security policy."""


def find_chromium() -> str | None:
    """Return the path of an installed Chromium; None if there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    return None


@asynccontextmanager
async def running_browser(playwright: Playwright, profile: Path) -> AsyncIterator[Browser]:
    """Yield a headless browser. `profile`: folder for its files."""
    browser = await playwright.chromium.launch(
        executable_path=find_chromium(), args=FLAGS, env={"HOME": str(profile), "XDG_CONFIG_HOME": str(profile)}
    )
    try:
        yield browser
    finally:
        await browser.close()


class MonitoredPage:
    """A page, and everything that it did and should not do."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.errors: list[str] = []
        """Exceptions of the page's scripts."""
        self.elsewhere: list[str] = []
        """Requests to other servers."""
        self.requests: list[str] = []
        """Methods and paths of all requests."""
        self.dialogs: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._on_request(request.method, request.url))
        page.on("dialog", self._on_dialog)

    def _on_request(self, method: str, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "about"):
            self.requests.append(f"{method} {parts.path}" + (f"?{parts.query}" if parts.query else ""))
            if f"{parts.scheme}://{parts.netloc}" != self.address:
                self.elsewhere.append(url)

    async def _on_dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        await dialog.dismiss()

    async def open(self, place: str = "#/") -> Page:
        """Load the page at a place, and return it."""
        await self.page.goto(f"{self.address}/ui{place}")
        return self.page

    async def check(self) -> None:
        """Check that the page raised no error and asked no other server."""
        violations = await self.page.evaluate("window.violations")
        found = (self.errors, self.elsewhere, self.dialogs, violations)
        assert found == ([], [], [], []), "errors, requests to elsewhere, dialogs, violations of the policy"


@asynccontextmanager
async def monitored_page(browser: Browser, address: str, **options: Any) -> AsyncIterator[MonitoredPage]:
    """Yield a page of a new browser context, and check it at the end. `options`: those of the context."""
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    try:
        await context.add_init_script(_REPORTS)
        monitor = MonitoredPage(await context.new_page(), address)
        monitor.page.set_default_timeout(20_000)
        yield monitor
        await monitor.check()
    finally:
        await context.close()
