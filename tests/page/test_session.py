"""A session in the page: from its first call to its last, live."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect

from examples.workloads.apps import WORKLOADS
from examples.workloads.client import App
from examples.workloads.texts import Texts
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.scripted_server import refuses
from tests.page.browser import monitored_page
from tests.page.gateway import LiveGateway, live_gateway

NAMES = {"inputs": "inputs", "tool": "tool or client", "queue": "queue", "memory": "memory"}
"""Names of causes in the page, by their names in the API; the others are the same."""


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as gateway:
        await gateway.send("POST", "/sessions", {"id": "s"})
        yield gateway


async def rows(page: Page) -> dict[str, str]:
    """Return the phases of each visible call of the timeline, by the call's name."""
    script = """rows => Object.fromEntries(rows.filter(row => !row.hidden).map(row =>
        [row.querySelector('.name').textContent, row.querySelector('.cell-bar').getAttribute('aria-label')]))"""
    found: dict[str, str] = await page.locator(".timeline .rows-body .row").evaluate_all(script)
    return found


def _long_phases(call: dict[str, Any]) -> list[str]:
    """Return the names of the phases of a call that took long enough to be shown."""
    return [NAMES.get(cause, cause) for cause, ms in call["spent_ms"].items() if ms > 0.6]


def _shown_phases(row: str) -> list[str]:
    """Return the names of the phases in the label of a row."""
    return [re.sub(r" [0-9.]+ (ms|s)$", "", phase) for phase in row.split(", ")]


async def test_an_application_is_watched_from_the_first_call_to_the_last(browser: Browser, tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path / "tiny", window=16384)
    server = await asyncio.to_thread(
        GatewayHarness, "--model", str(tiny), "--kv-tokens", "131072", "--kernels", "torch", "--journal", "memory"
    )
    try:
        async with monitored_page(browser, server.address) as monitor, aiohttp.ClientSession() as http:
            app = App(http, f"{server.address}/v1", "tiny", "deferred", session="app")
            async with http.post(f"{server.address}/v1/sessions", json={"id": "app"}) as answer:
                assert answer.status == 201
            page = await monitor.open("#/session/app/timeline")
            await expect(page.locator(".session-view")).to_have_attribute("data-connection", "live")
            await WORKLOADS["map_reduce"](app, Texts(1, scale=0.1))
            async with http.get(f"{server.address}/v1/sessions/app/graph") as answer:
                graph = await answer.json()
            total = len(graph["calls"])
            assert total > 3
            await expect(page.locator(".figures")).to_contain_text(f"{total} of {total} done")
            missing = {"": "the rows were not read"}
            for _ in range(50):
                await asyncio.sleep(
                    0.2
                )  # the page loads the last figures after the last event, and shows no sign of it
                shown = await rows(page)
                missing = {
                    call["output"]: f"{call['spent_ms']}, {shown.get(call['output'])}"
                    for call in graph["calls"]
                    if not set(_long_phases(call)) <= set(_shown_phases(shown.get(call["output"], "")))
                }
                if not missing:
                    break
            assert not missing
            assert set(shown) == {call["output"] for call in graph["calls"]}
            last = page.locator(".session-view")
            assert int(await last.get_attribute("data-last-event") or 0) == graph["last_event_id"]
            await page.goto(f"{server.address}/ui#/")
            await expect(page.locator(".kv").first).to_contain_text("blocks")
            await app.close()
    finally:
        await asyncio.to_thread(server.stop)


async def test_each_wait_has_the_cause_that_the_api_says(browser: Browser, gateway: LiveGateway) -> None:
    gateway.conductor.hold("GENERATES")
    gateway.conductor.hold("PREFILLS")
    await gateway.send("PUT", "/sessions/s/variables/result", {"value": None})
    await gateway.submit(
        "s",
        {
            "generates": "GENERATES",
            "prefills": "PREFILLS",
            "reads": "About <<generates>>",
            "asks_tool": "With <<result>>",
        },
    )
    gateway.conductor.say("GENERATES", "begun")
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/timeline")
        expected = {"generates": "answer", "prefills": "prompt", "reads": "inputs", "asks_tool": "tool or client"}
        async with asyncio.timeout(15):
            while True:
                shown = {name: text.rpartition("waits for ")[2] for name, text in (await rows(page)).items()}
                api = {call["output"]: call["waits_for"] for call in (await gateway.graph("s"))["calls"]}
                if shown == expected == {name: NAMES.get(cause, cause) for name, cause in api.items()}:
                    break
                await asyncio.sleep(0.05)
        gateway.conductor.end("GENERATES", " and done")
        gateway.conductor.end("PREFILLS", "done")
        await gateway.send("PUT", "/sessions/s/variables/result", {"value": "42"})
        await expect(page.locator(".figures")).to_contain_text("4 of 4 done")
        phases = page.locator(".timeline .row", has_text="asks_tool").locator(".cell-bar")
        await expect(phases).to_have_attribute("aria-label", re.compile("^tool or client "))
        tokens = page.locator(".timeline .row", has_text="generates").locator(".cell-tokens")
        await expect(tokens).to_have_text("40 cached, 60 missed")


async def test_a_value_is_shown_while_it_is_made_and_watching_changes_nothing(
    browser: Browser, gateway: LiveGateway
) -> None:
    gateway.conductor.hold("STORY")
    await gateway.submit("s", {"story": "STORY"})
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/timeline")
        await page.locator(".row", has_text="story").click()
        value = page.locator(".panel .value")
        gateway.conductor.say("STORY", "Once ", "upon ")
        await expect(value).to_have_text("Once upon ")
        gateway.conductor.say("STORY", "a time")
        await expect(value).to_have_text("Once upon a time")
        assert (await gateway.graph("s"))["calls"][0]["state"] == "decode"
        gateway.conductor.end("STORY", ".")
        await expect(page.locator(".panel .badge")).to_contain_text("done")
        await expect(value).to_have_text("Once upon a time.")
        observed = [request for request in monitor.requests if "/variables/story" in request]
        assert observed == ["GET /v1/sessions/s/variables/story?observe=true"], "it is not a subscriber"
        await page.keyboard.press("Escape")
        await expect(page.locator(".panel")).to_be_hidden()


async def test_a_failure_shows_the_call_that_failed_first(browser: Browser, gateway: LiveGateway) -> None:
    gateway.server.script = [refuses(400, "the <b>first</b> cause")]
    await gateway.submit("s", {"first": "One", "second": "Two <<first>>", "third": "Three <<second>>"})
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/timeline")
        await page.locator(".row", has_text="third").click()
        failure = page.locator(".panel .failure")
        await expect(failure).to_contain_text("upstream_failed because first has failed")
        await expect(failure).to_contain_text("through 1 call in between")
        await expect(failure).to_contain_text("the <b>first</b> cause")
        await failure.get_by_role("button", name="first").click()
        await expect(page.locator(".panel h2")).to_have_text("first")
        await expect(failure).to_contain_text("engine_refused")


async def test_a_variable_and_a_session_are_deleted_after_a_question(browser: Browser, gateway: LiveGateway) -> None:
    gateway.conductor.hold("LONG")
    await gateway.submit("s", {"long": "LONG"})
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/timeline")
        await page.locator(".row", has_text="long").click()
        await page.get_by_role("button", name="Delete the variable").click()
        await page.get_by_role("button", name="Cancel").click()
        assert (await gateway.graph("s"))["calls"][0]["state"] != "cancelled"
        await page.get_by_role("button", name="Delete the variable").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.locator(".panel .badge")).to_contain_text("cancelled")
        assert (await gateway.graph("s"))["calls"][0]["state"] == "cancelled"
        await page.get_by_role("button", name="Delete the session").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(page.locator(".banner")).to_have_text("This session was deleted.")
        assert (await gateway.send("GET", "/sessions"))["data"] == []


async def test_the_graph_folds_like_calls_and_marks_the_critical_path(browser: Browser, gateway: LiveGateway) -> None:
    parts = {f"part_{index}": f"Part {index}" for index in range(6)}
    gateway.conductor.hold("Part 3")
    await gateway.submit("s", {**parts, "whole": "Join " + " ".join(f"<<{name}>>" for name in parts)})
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/graph")
        group = page.locator(".node.folded")
        await expect(group).to_have_attribute("aria-label", re.compile(r"part_#: 5 done, 1 waiting|5 done, 1 running"))
        assert await page.locator(".node").count() == 2
        await group.click()
        await expect(page.locator(".node")).to_have_count(7)
        critical = page.locator(".node.critical .node-title")
        assert sorted(await critical.all_text_contents()) == ["part_3", "whole"]
        gateway.conductor.end("Part 3", "late")
        await expect(page.locator(".node.state-done")).to_have_count(7)
        assert sorted(await critical.all_text_contents()) == ["part_3", "whole"]
        await page.get_by_role("button", name="Fold all", exact=True).click()
        await expect(page.locator(".node")).to_have_count(2)


async def test_calls_that_join_while_the_page_is_open_appear(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/graph")
        await expect(page.locator(".empty")).to_have_text("No calls yet.")
        await gateway.submit("s", {"first": "One"})
        await expect(page.locator(".node-title")).to_have_text(["first"])
        await gateway.submit("s", {"second": "Two <<first>>"})
        await expect(page.locator(".edge")).to_have_count(1)


async def test_sessions_are_listed_and_found(browser: Browser, gateway: LiveGateway) -> None:
    await gateway.send("POST", "/sessions", {"id": "other", "metadata": {"app": "Review"}})
    await gateway.submit("s", {"a": "One"})
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/sessions")
        names = page.locator(".sessions .rows-body .row:not([hidden]) .name")
        await expect(names).to_have_count(2)
        await page.get_by_role("searchbox").fill("app=rev")
        await expect(names).to_have_text(["other"])
        await page.get_by_role("searchbox").fill("")
        await expect(names).to_have_count(2)
        await page.locator(".sessions .row:not([hidden])", has_text="other").click()
        await expect(page.locator(".session-id")).to_have_text("other")


async def test_the_overview_has_engines_rates_waits_and_the_cache(browser: Browser, gateway: LiveGateway) -> None:
    gateway.conductor.hold("WAIT")
    await gateway.submit("s", {"a": "One", "b": "WAIT", "c": "Then <<b>>"})
    gateway.conductor.say("WAIT", "x")
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open()
        row = page.locator("table", has_text="Open contexts").locator("tbody tr")
        await expect(row).to_contain_text("there")
        await expect(row).to_contain_text("ready")
        waits = page.locator(".card", has_text="Unfinished calls")
        await expect(waits).to_contain_text("by cause of the wait: 1 inputs, 1 answer")
        await expect(page.locator(".card", has_text="Prompt cache").locator(".figure")).to_contain_text("%")
        await expect(page.locator(".card", has_text="Requests").locator(".figure")).not_to_have_text("–")
        await gateway.server.stop()
        gateway.conductor.end("WAIT")
        await expect(row.locator(".problem")).not_to_be_empty()
        await expect(row).to_contain_text("not ready")


async def test_the_spend_of_keys_is_shown_where_the_server_has_it(browser: Browser, gateway: LiveGateway) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open()
        await expect(page.locator("table", has_text="Open contexts")).to_be_visible()
        await expect(page.get_by_text("Keys and spend")).to_be_hidden()
    row = {
        "key": "key_1",
        "calls": 3,
        "tool_calls": 4,
        "prompt_tokens": 1500,
        "cached_tokens": 500,
        "completion_tokens": 20,
    }
    answer = {"object": "list", "data": [{**row, "reasoning_tokens": 0, "cost": 1.25}]}
    async with monitored_page(browser, gateway.address) as monitor:
        await monitor.page.route("**/v1/usage?group_by=key", lambda route: route.fulfill(json=answer))
        page = await monitor.open()
        table = page.get_by_role("table", name="Calls, tokens and cost of each API key")
        cells = table.locator("tbody tr").locator("th, td")
        await expect(cells).to_have_text(["key_1", "3", "4", "1.50k", "500", "20", "0", "1.25"])
