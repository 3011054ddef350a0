"""Forms in the page: folded and unfolded, live, in the graph and the timeline."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, Locator, Page, expect

from tests.fakes.scripted_server import chunk, stream
from tests.fakes.tool_servers import real
from tests.page.browser import monitored_page
from tests.page.gateway import LiveGateway, live_gateway

ELEMENTS = 12


def ask(text: str, output: str | None = None) -> dict[str, Any]:
    semantic = {} if output is None else {"semantic": {"output": output}}
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **semantic}


@asynccontextmanager
async def submitted(gateway: LiveGateway, calls: list[dict[str, Any]], output: str) -> AsyncIterator[None]:
    """Run a graph in session `s` during the body."""
    await gateway.send("POST", "/sessions", {"id": "s"})
    body = {"session": "s", "calls": calls, "outputs": [output]}
    running = asyncio.create_task(gateway.send("POST", "/graphs", body))
    try:
        yield
        async with asyncio.timeout(30):
            await running
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def form(page: Page, output: str) -> Locator:
    """Return the node of a form."""
    return page.locator(f'.node.form[aria-label^="{output},"]')


async def test_a_map_is_folded_once_it_is_large_and_can_be_unfolded(browser: Browser) -> None:
    async with live_gateway() as gateway:
        for word in ("LIST", "KEEP"):
            gateway.conductor.hold(word)
        elements = [f"KEEP {index}" if index == 11 else f"go {index}" for index in range(ELEMENTS)]
        pieces = [json.dumps(element) + ("," if index < 11 else "]") for index, element in enumerate(elements)]
        calls = [
            ask("LIST", "plan"),
            {"map": {"over": "<<plan>>", "call": ask("Explain <<item>>")}, "output": "results"},
            ask("Join <<results>>", "whole"),
        ]
        tall = {"width": 1280, "height": 1800}  # nodes outside of the view are not in the document
        async with (
            submitted(gateway, calls, "whole"),
            monitored_page(browser, gateway.address, viewport=tall) as monitor,
        ):
            page = await monitor.open("#/session/s/graph")
            await expect(page.locator(".node")).to_have_count(3)
            gateway.conductor.say("LIST", "[", *pieces[:3])
            await expect(page.locator(".node")).to_have_count(6)
            await expect(form(page, "results")).to_have_attribute("aria-expanded", "true")
            await expect(form(page, "results")).to_have_attribute("aria-label", re.compile("3/3 done"))

            gateway.conductor.end("LIST", *pieces[3:])
            await expect(page.locator(".node")).to_have_count(3)
            node = form(page, "results")
            await expect(node).to_have_attribute("aria-expanded", "false")
            sums = r"^results, map: 11/12 done; 12 calls: 1 running, 11 done; 1\.1[34]k tokens, waits for (prompt|answer), "
            await expect(node).to_have_attribute("aria-label", re.compile(sums + "press Enter to unfold"))
            texts = await node.locator("text").all_text_contents()
            assert texts[1:3] == ["map results", "11/12 done"]
            assert re.fullmatch(r"1\.1[34]k tokens · (prompt|answer)", texts[3])
            await expect(page.locator(".toolbar .note")).to_have_text("1 form folded")

            await node.click()
            await expect(page.locator(".node")).to_have_count(3 + ELEMENTS)
            await expect(page.locator(".node:focus .node-title")).to_have_text("results.0")
            await expect(node).to_have_attribute("aria-expanded", "true")
            await page.keyboard.press("f")
            await expect(page.locator(".node")).to_have_count(3)
            await expect(node).to_be_focused()
            await page.keyboard.press("Enter")
            await expect(page.locator(".node")).to_have_count(3 + ELEMENTS)
            await node.locator(".node-toggle").click()
            await expect(page.locator(".node")).to_have_count(3)

            gateway.conductor.end("KEEP", "late")
            await expect(node).to_have_attribute("aria-label", re.compile("12/12 done; 12 calls: 12 done; "))
            await expect(node).to_have_class(re.compile("state-done"))
            critical = page.locator(".node.critical .node-title")
            await expect(page.locator(".figures")).to_contain_text("15 of 15 done")
            assert sorted(await critical.all_text_contents()) == ["map results", "plan", "whole"]
            tokens = page.locator(".figures div", has_text="Prompt tokens").locator("dd")
            await expect(tokens).to_have_text("1.40k")  # 14 calls: those of a form are counted once


async def test_the_timeline_folds_forms_with_mouse_and_keyboard(browser: Browser) -> None:
    async with live_gateway() as gateway:
        gateway.conductor.hold("KEEP")
        elements = [f"KEEP {index}" if index == 11 else f"go {index}" for index in range(ELEMENTS)]
        inner = {
            "repeat": {
                "calls": [ask("Improve <<draft>>", "better")],
                "carry": {"draft": "<<better>>"},
                "start": {"draft": "<<item>>"},
                "until": {"value": "<<better>>", "matches": "answer|late"},
                "max": 2,
            },
            "outputs": ["better"],
        }
        calls = [{"map": {"over": elements, "call": inner}, "output": "all"}, ask("Join <<all>>", "whole")]
        async with submitted(gateway, calls, "whole"), monitored_page(browser, gateway.address) as monitor:
            page = await monitor.open("#/session/s/timeline")
            rows = page.locator(".timeline .rows-body .row:not([hidden])")
            await expect(rows).to_have_count(2)
            row = rows.filter(has_text="all").first
            await expect(row).to_have_attribute("aria-expanded", "false")
            await expect(row.locator(".row-kind")).to_have_text("map")
            await expect(row.locator(".cell-tokens")).to_contain_text(re.compile(r"11/12 done, 1\.1[34]k tokens, "))
            bar = row.locator(".cell-bar")
            await expect(bar).to_have_attribute("aria-label", re.compile("11/12 done; 24 calls: .*waits for "))
            await row.locator(".row-toggle").click()
            await expect(page.locator(".timeline")).to_have_attribute("aria-rowcount", str(1 + 2 + 3 * ELEMENTS))
            await expect(rows.filter(has_text="all.0").first).to_have_attribute("aria-level", "2")
            await expect(page.locator(".panel")).to_be_hidden()
            grid = page.locator(".timeline")
            await grid.focus()
            await page.keyboard.press("ArrowDown")
            await page.keyboard.press("ArrowLeft")
            await expect(grid).to_have_attribute("aria-rowcount", str(1 + 2 + 3 * ELEMENTS - 2))
            await page.keyboard.press("ArrowRight")
            await page.keyboard.press("ArrowDown")
            await expect(page.locator(".row[aria-selected=true]")).to_have_attribute("aria-level", "3")
            await page.keyboard.press("ArrowLeft")
            await expect(page.locator(".row[aria-selected=true] .row-kind")).to_have_text("repeat")
            await page.keyboard.press("ArrowLeft")
            await expect(grid).to_have_attribute("aria-rowcount", "3")
            await expect(page.locator(".row[aria-selected=true] .row-kind")).to_have_text("map")
            await page.keyboard.press("Enter")
            await expect(page.locator(".panel .facts")).to_contain_text("map: 11/12 done; 24 calls")
            await page.locator(".panel .facts").get_by_role("button", name="all.11", exact=True).click()
            await expect(page.locator(".panel .facts")).to_contain_text("repeat: round 1")
            await page.get_by_role("searchbox").fill("all.7")
            await expect(rows).to_have_count(3)
            await page.get_by_role("searchbox").fill("")
            await expect(rows).to_have_count(2)
            gateway.conductor.end("KEEP", "late")
            await expect(row).to_have_class(re.compile("state-done"))


async def test_nested_forms_fold_in_their_parent(browser: Browser) -> None:
    async with live_gateway() as gateway:
        inner = {"map": {"over": ["x", "y"], "as": "part", "call": ask("Say <<item>> <<part>>")}}
        calls = [{"map": {"over": ["a", "b"], "call": inner}, "output": "all"}]
        async with submitted(gateway, calls, "all"), monitored_page(browser, gateway.address) as monitor:
            page = await monitor.open("#/session/s/graph")
            await expect(page.locator(".node")).to_have_count(7)
            await page.locator(".node", has_text="all.0.0").first.focus()
            await page.keyboard.press("f")
            await expect(page.locator(".node")).to_have_count(5)
            await expect(form(page, "all.0")).to_be_focused()
            await page.keyboard.press("f")
            await expect(page.locator(".node")).to_have_count(1)
            await expect(form(page, "all")).to_be_focused()
            await page.keyboard.press("Enter")
            await expect(page.locator(".node")).to_have_count(5), "the inner form is still folded"
            await page.get_by_role("button", name="Fold all", exact=True).click()
            await expect(page.locator(".node")).to_have_count(1)
            await page.get_by_role("button", name="Unfold all").click()
            await expect(page.locator(".node")).to_have_count(7)


async def test_an_agent_shows_its_turns_and_the_tool_that_runs(browser: Browser, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    os.mkfifo(counter)  # the tool waits until the test reads what it notes
    settings = tmp_path / "tools.json"
    settings.write_text(json.dumps({"servers": {"t": real(counter).model_dump(exclude_defaults=True)}}))
    async with live_gateway(tool_servers=settings) as gateway:

        async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            if any(message["role"] == "tool" for message in body["messages"]):
                return await gateway.conductor.answer(request, body)
            called = {"index": 0, "id": "x", "type": "function", "function": {"name": "count", "arguments": "{}"}}
            first = chunk(body, None)
            first["choices"][0]["delta"]["tool_calls"] = [called]
            return await stream(request, [first, chunk(body, None, "tool_calls")])

        gateway.server.always = answer
        agent = {"model": "fake", "messages": [{"role": "user", "content": "Count."}], "tools": ["t/count"]}
        calls = [{"agent": agent, "output": "answer"}]
        async with submitted(gateway, calls, "answer"), monitored_page(browser, gateway.address) as monitor:
            page = await monitor.open("#/session/s/graph")
            tool = page.locator('.node[aria-label^="answer@1.0, tool t/count:"]')
            await expect(tool).to_have_attribute("aria-label", re.compile("tool or client"))
            await expect(tool).to_have_class(re.compile("state-running"))
            await expect(tool.locator(".node-title")).to_have_text("t/count")
            agent_node = form(page, "answer")
            await expect(agent_node).to_have_attribute(
                "aria-label", re.compile("2 turns, 1 tool call; .*tool or client")
            )
            order = [
                await page.locator(f'.node[aria-label^="{name}"]').bounding_box()
                for name in ("answer@1:", "answer@1.0,", "answer@2:", "answer,")
            ]
            places = [box["x"] for box in order if box is not None]
            assert places == sorted(set(places))
            assert len(places) == 4
            await page.get_by_role("link", name="Timeline").click()
            bar = page.locator(".timeline .row", has_text="answer@1.0").locator(".cell-bar")
            await expect(bar).to_have_attribute("aria-label", re.compile("waits for tool or client$"))
            reader = os.open(counter, os.O_RDWR | os.O_NONBLOCK)
            try:
                await expect(page.locator(".figures")).to_contain_text("4 of 4 done")
            finally:
                os.close(reader)
            await expect(page.locator(".figures div", has_text="Tool calls").locator("dd")).to_have_text("1")
            await expect(bar).to_have_attribute("aria-label", re.compile("tool or client [0-9]"))
        session = await gateway.send("GET", "/sessions/s")
        assert session["usage"]["tool_calls"] == 1


async def test_a_value_that_is_skipped_and_its_reader(browser: Browser) -> None:
    async with live_gateway() as gateway:
        branch = {"if": {"value": "no", "equals": "yes"}, "then": [ask("Go", "answer")], "default": "nothing"}
        async with submitted(gateway, [branch, ask("Read <<answer>>", "end")], "end"):
            pass
        async with monitored_page(browser, gateway.address) as monitor:
            page = await monitor.open("#/session/s/graph")
            await expect(page.locator(".node.state-done")).to_have_count(2)
            await page.locator(".node", has_text="end").click()
            await page.locator(".panel .facts").get_by_role("button", name="answer", exact=True).click()
            await expect(page.locator(".panel .badge")).to_contain_text("skipped")
            await expect(page.locator(".panel .value")).to_have_text("nothing")


async def test_forms_follow_the_colours_of_the_system(browser: Browser) -> None:
    async with live_gateway() as gateway:
        calls = [{"map": {"over": [str(index) for index in range(9)], "call": ask("x <<item>>")}, "output": "all"}]
        async with submitted(gateway, calls, "all"):
            pass
        seen = []
        for scheme in ("light", "dark"):
            async with monitored_page(browser, gateway.address, color_scheme=scheme) as monitor:
                page = await monitor.open("#/session/s/graph")
                await expect(form(page, "all")).to_be_visible()
                script = "selector => getComputedStyle(document.querySelector(selector)).fill"
                seen.append(
                    [await page.evaluate(script, part) for part in (".node-arrow", ".node-box", ".node-detail")]
                )
        assert not set(seen[0]) & set(seen[1])


async def test_two_thousand_calls_of_forms_take_few_elements(browser: Browser) -> None:
    async with live_gateway() as gateway:
        elements = [str(index) for index in range(660)]
        inner = {"map": {"over": ["x", "y"], "as": "part", "call": ask("Say <<item>> <<part>>")}}
        calls = [{"map": {"over": elements, "call": inner, "max_items": 1_000}, "output": "all"}]
        async with submitted(gateway, calls, "all"):
            pass
        async with monitored_page(browser, gateway.address) as monitor:
            page = await monitor.open("#/session/s/graph")
            await expect(page.locator(".figures")).to_contain_text("1,981 of 1,981 done")
            await expect(page.locator(".node")).to_have_count(1)
            await form(page, "all").click()
            await expect(page.locator(".node")).not_to_have_count(1)
            assert await page.locator(".node").count() < 150
            assert await page.evaluate("document.querySelectorAll('*').length") < 8_000
            await page.get_by_role("link", name="Timeline").click()
            await expect(page.locator(".timeline .rows-body .row:not([hidden])")).to_have_count(1)
            await page.get_by_role("button", name="Unfold all").click()
            await expect(page.locator(".timeline")).to_have_attribute("aria-rowcount", "1982")
            assert await page.locator(".timeline .rows-body .row").count() < 80


@pytest.mark.parametrize("place", ["#/session/s/graph", "#/session/s/timeline"])
async def test_forms_that_contain_each_other_break_nothing(browser: Browser, place: str) -> None:
    async with live_gateway() as gateway, monitored_page(browser, gateway.address) as monitor:
        await gateway.send("POST", "/sessions", {"id": "s"})
        calls = [
            {"id": f"c{index}", "output": f"v{index}", "form": "map", "parent": f"c{(index + 1) % 30}", "created": 1.0}
            for index in range(30)
        ]
        calls += [
            {"id": f"d{index}", "output": f"w{index}", "form": "if", "parent": f"d{index - 1}", "created": 1.0}
            for index in range(100)
        ]
        body = {"last_event_id": 1, "calls": calls, "variables": []}
        await monitor.page.route("**/v1/sessions/s/graph*", lambda route: route.fulfill(json=body))
        page = await monitor.open(place)
        await expect(page.locator(".node" if "graph" in place else ".timeline .row").first).to_be_visible()
        await page.get_by_role("button", name="Unfold all").click()
        await expect(page.locator(".figures")).to_contain_text("0 of 130 done")
