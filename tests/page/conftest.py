"""Fixtures of the tests of the live page in a browser. scripts/test-page runs them, and sets MYNA_PAGE."""

import os
from collections.abc import AsyncIterator

import pytest

if "MYNA_PAGE" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
else:
    from playwright.async_api import Browser, async_playwright, expect

    from tests.page.browser import running_browser

    expect.set_options(timeout=30_000)  # milliseconds; 5 s are too few to connect again on a busy machine

    @pytest.fixture(scope="session")
    async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
        """Yield a headless browser."""
        async with (
            async_playwright() as playwright,
            running_browser(playwright, tmp_path_factory.mktemp("profile")) as browser,
        ):
            yield browser
