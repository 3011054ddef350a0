"""API keys in the page: typed once, kept in memory, and never able to see another key's sessions."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.page.browser import monitored_page
from tests.page.gateway import LiveGateway, live_gateway


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway(api_key=["first-key", "second-key"]) as gateway:
        await gateway.send("POST", "/sessions", {"id": "of-first"}, "first-key")
        await gateway.submit("of-first", {"private": "a private prompt"}, "first-key")
        yield gateway


async def enter(page: Page, key: str) -> None:
    """Type an API key into the dialog."""
    await page.get_by_role("textbox", name="API key").fill(key)
    await page.get_by_role("button", name="Connect").click()


async def test_the_key_is_typed_once_and_stored_nowhere(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open()
        await expect(page.get_by_role("dialog")).to_contain_text("This server needs an API key.")
        await enter(page, "first-key")
        await expect(page.locator("#connection")).to_contain_text("ready")
        await page.get_by_role("link", name="Sessions").click()
        await page.locator(".sessions .row", has_text="of-first").click()
        await expect(page.locator(".node-title")).to_have_text(["private"])
        assert not [request for request in monitor.requests if "key" in request and "group_by" not in request]
        stored = await page.evaluate(
            "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state])"
        )
        assert "first-key" not in stored
        assert "first-key" not in await page.content()
        await page.reload()
        await expect(page.get_by_role("dialog")).to_be_visible()


async def test_a_wrong_key_is_asked_for_again(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open()
        await enter(page, "wrong-key")
        await expect(page.get_by_role("dialog")).to_contain_text(
            "The server refused the key: Incorrect API key provided."
        )
        await enter(page, "first-key")
        await expect(page.locator("#connection")).to_contain_text("ready")


async def test_a_key_with_characters_that_no_header_can_have_is_refused(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open()
        await enter(page, "schlüssel…")
        await expect(page.get_by_role("alert")).to_contain_text("printable ASCII")


async def test_a_key_does_not_see_the_session_of_another(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/of-first/graph")
        await enter(page, "second-key")
        await expect(page.locator(".banner")).to_contain_text("there is no session 'of-first'")
        await expect(page.locator(".node")).to_have_count(0)
        await page.get_by_role("navigation", name="Views", exact=True).get_by_role("link", name="Sessions").click()
        await expect(page.locator(".empty")).to_contain_text("This API key has no sessions.")
        assert "private" not in await page.content()
        await page.get_by_role("button", name="API key").click()
        await enter(page, "first-key")
        await expect(page.locator(".sessions .row", has_text="of-first")).to_be_visible()


async def test_a_server_without_keys_asks_for_none(browser: Browser) -> None:
    async with live_gateway() as gateway, monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open()
        await expect(page.locator("#connection")).to_contain_text("ready")
        await expect(page.get_by_role("dialog")).to_have_count(0)
