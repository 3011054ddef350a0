"""Use the page with a keyboard, a screen reader, on a small screen, in the dark, and with thousands of calls."""

import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.page.browser import monitored_page
from tests.page.gateway import LiveGateway, live_gateway

PLACES = ["#/", "#/sessions", "#/session/s/graph", "#/session/s/timeline"]


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as gateway:
        await gateway.send("POST", "/sessions", {"id": "s"})
        parts = {f"part_{index}": f"Part {index}" for index in range(5)}
        await gateway.submit("s", {**parts, "whole": "Join " + " ".join(f"<<{name}>>" for name in parts)})
        await gateway.wait("s", "whole")
        yield gateway


async def focused(page: Page) -> str:
    """Return a description of the focused element."""
    script = """() => {
        const element = document.activeElement;
        return element.getAttribute('aria-label') || element.textContent.trim() || element.tagName;
    }"""
    described: str = await page.evaluate(script)
    return described


async def tab_to(page: Page, name: str, most: int = 40) -> None:
    """Press Tab until the element with this text or label is focused."""
    for _ in range(most):
        await page.keyboard.press("Tab")
        if re.search(name, await focused(page)):
            return
    raise AssertionError(f"Tab does not reach {name}")


async def test_everything_can_be_reached_with_the_keyboard(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open()
        await page.keyboard.press("Tab")
        assert await focused(page) == "Skip to the content"
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
        await page.keyboard.press("Shift+Tab")
        await tab_to(page, "^Sessions$")
        await page.keyboard.press("Enter")
        await expect(page.locator(".sessions .row", has_text="s").last).to_be_visible()
        await tab_to(page, "^Sessions$")
        await page.keyboard.press("Enter")
        await expect(page.locator(".session-id")).to_have_text("s")

        await tab_to(page, "press Enter to unfold")
        await page.keyboard.press("Enter")
        await expect(page.locator(".node")).to_have_count(6)
        await expect(page.locator(".node:focus .node-title")).to_have_text("part_0")
        await page.keyboard.press("ArrowDown")
        await expect(page.locator(".node:focus .node-title")).to_have_text("part_1")
        await page.keyboard.press("ArrowRight")
        await expect(page.locator(".node:focus .node-title")).to_have_text("whole")
        await page.keyboard.press("ArrowLeft")
        await page.keyboard.press("f")
        await expect(page.locator(".node")).to_have_count(2)
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("Enter")
        await expect(page.locator(".panel h2")).to_have_text("whole")
        await expect(page.locator(".panel h2")).to_be_focused()
        await tab_to(page, "^part_0$")
        await page.keyboard.press("Enter")
        await expect(page.locator(".panel h2")).to_have_text("part_0")
        await tab_to(page, "Delete the variable")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await focused(page) == "Cancel", "the safe button is focused first"
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        assert await focused(page) == "Delete the variable"
        await page.keyboard.press("Escape")
        await expect(page.locator(".panel")).to_be_hidden()
        await expect(page.locator(".node:focus .node-title")).to_have_text("whole")

        await page.locator(".tabs a", has_text="Timeline").focus()
        await page.keyboard.press("Enter")
        await tab_to(page, "Timeline of calls")
        grid = page.locator(".timeline")
        for key, row in (("End", 7), ("ArrowUp", 6), ("Home", 2), ("ArrowDown", 3)):
            await page.keyboard.press(key)
            await expect(page.locator(".row[aria-selected=true]")).to_have_attribute("aria-rowindex", str(row))
            active = await grid.get_attribute("aria-activedescendant")
            await expect(page.locator(f"#{active}")).to_have_attribute("aria-rowindex", str(row))
        await page.keyboard.press("Enter")
        await expect(page.locator(".panel h2")).to_have_text("part_1")


async def test_the_accessibility_tree_names_everything(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        for place in PLACES:
            page = await monitor.open(place)
            await expect(page.locator("#connection")).to_contain_text("ready")
            script = """() => [...document.querySelectorAll('button, a, input, select, [role=button], [tabindex="0"]')]
                .filter((element) => element.checkVisibility())
                .filter((element) => !(element.getAttribute('aria-label') || element.getAttribute('aria-labelledby')
                    || element.textContent.trim() || element.labels?.length))
                .map((element) => element.outerHTML)"""
            assert await page.evaluate(script) == [], "controls without a name"
            assert await page.locator("h1").count() == 1
        tree = await page.locator("main").aria_snapshot()
        assert 'grid "Timeline of calls"' in tree
        assert re.search(r'columnheader "Duration"', tree)
        assert re.search(r'gridcell "whole, done"', tree)
        await page.goto(f"{gateway.address}/ui#/session/s/graph")
        await expect(page.locator(".node")).to_have_count(2)
        tree = await page.locator("main").aria_snapshot()
        assert 'group "Graph of calls"' in tree
        assert re.search(r'button "part_#: 5 done, 5 similar calls, press Enter to unfold, on the critical path"', tree)
        await page.goto(f"{gateway.address}/ui#/")
        tables = page.get_by_role("table", name="Engines with their state, load and KV cache")
        await expect(tables).to_have_count(1)
        await expect(page.locator("#announcer")).to_have_attribute("aria-live", "polite")


@pytest.mark.parametrize("place", PLACES)
async def test_a_narrow_screen_scrolls_only_down(browser: Browser, gateway: LiveGateway, place: str) -> None:
    async with monitored_page(browser, gateway.address, viewport={"width": 360, "height": 700}) as monitor:
        page = await monitor.open(place)
        await expect(page.locator("#connection")).to_contain_text("ready")
        await expect(page.locator("main .view")).to_be_visible()
        if "graph" in place:
            await page.locator(".node", has_text="whole").click()
            await expect(page.locator(".panel h2")).to_have_text("whole")
        widths = await page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert max(widths) == 360, widths


async def test_the_colours_follow_the_system(browser: Browser, gateway: LiveGateway) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        async with monitored_page(browser, gateway.address, color_scheme=scheme) as monitor:
            page = await monitor.open("#/session/s/graph")
            await expect(page.locator(".node").first).to_be_visible()
            script = """() => ['body', '.node-title', '.tabs a[aria-current]', '.figures dt', '.legend'].map((selector) => {
                const style = getComputedStyle(document.querySelector(selector));
                return [style.backgroundColor, selector === '.node-title' ? style.fill : style.color];
            })"""
            seen[scheme] = await page.evaluate(script)
    assert seen["light"] != seen["dark"]
    for (background, _), *others in seen.values():
        for _, colour in others:
            assert contrast(background, colour) >= 4.5, (background, colour)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


async def test_nothing_moves_if_the_reader_prefers_that(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address, reduced_motion="reduce") as monitor:
        page = await monitor.open()
        await expect(page.locator(".stack span").first).to_be_attached()
        script = """() => [...document.querySelectorAll('*')].filter((element) => {
            const style = getComputedStyle(element);
            return style.animationName !== 'none' || style.transitionDuration !== '0s';
        }).length"""
        assert await page.evaluate(script) == 0


async def test_two_thousand_calls_take_few_elements(browser: Browser) -> None:
    async with live_gateway() as gateway:
        calls = [
            {
                "model": "fake",
                "messages": [{"role": "user", "content": f"Part {index}"}],
                "semantic": {"output": f"part_{index}", "defer": True},
            }
            for index in range(1_999)
        ]
        reads = " ".join(f"<<part_{index}>>" for index in range(1_999))
        last = {"model": "fake", "messages": [{"role": "user", "content": reads}], "semantic": {"output": "whole"}}
        await gateway.send("POST", "/sessions", {"id": "s"})
        await gateway.send("POST", "/graphs", {"session": "s", "calls": [*calls, last], "outputs": ["whole"]})
        async with monitored_page(browser, gateway.address) as monitor:
            page = await monitor.open("#/session/s/timeline")
            await expect(page.locator(".figures")).to_contain_text("2,000 of 2,000 done")
            await expect(page.locator(".timeline")).to_have_attribute("aria-rowcount", "2001")
            rows = page.locator(".timeline .rows-body .row")
            assert 10 < await rows.count() < 80
            await page.locator(".timeline").focus()
            await page.keyboard.press("End")
            await expect(page.locator(".row:not([hidden])", has_text="whole")).to_be_visible()
            assert await rows.count() < 80
            await page.get_by_role("link", name="Graph").click()
            await expect(page.locator(".node")).to_have_count(2)
            await page.get_by_role("button", name="Unfold all").click()
            await expect(page.locator(".node")).not_to_have_count(2)
            assert await page.locator(".node").count() < 120
            assert await page.evaluate("document.querySelectorAll('*').length") < 5_000
            opened = await page.evaluate(
                """async () => {
                    const tab = [...document.querySelectorAll('.tabs a')].find((a) => a.textContent === 'Timeline');
                    const began = performance.now();
                    tab.click();
                    while (!document.querySelector('.timeline .rows-body .row')) {
                        await new Promise(requestAnimationFrame);
                    }
                    return performance.now() - began;
                }"""
            )
            print(f"the timeline of 2,000 calls opened in {opened:.0f} ms")
