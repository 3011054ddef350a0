"""The page with hostile values, and with a server that answers garbage."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, expect

from gateway.api import live_page
from tests.fakes.in_process_gateway import gateway_before
from tests.fakes.scripted_server import ScriptedServer, refuses, says
from tests.page.browser import monitored_page
from tests.page.gateway import LiveGateway, live_gateway

HTML = "<img src=x onerror=alert(1)><script>alert(2)</script><a href='javascript:alert(3)'>&amp;</a>"
STRANGE = "a\x00b\x1b[31m\x7f\x85 user\u202egnp.exe \u2066x\u2069 \ufeff"
SHOWN = "a␀b␛[31m␡\\x85 user\\u202egnp.exe \\u2066x\\u2069 \\ufeff"


@pytest.fixture
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as gateway:
        await gateway.send("POST", "/sessions", {"id": "s", "metadata": {HTML[:60]: HTML + STRANGE}})
        yield gateway


async def test_values_are_shown_as_text(browser: Browser, gateway: LiveGateway) -> None:
    gateway.server.script = [says(HTML, STRANGE)]
    await gateway.submit("s", {"evil": "x"})
    await gateway.wait("s", "evil")
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/timeline")
        await page.locator(".timeline .row", has_text="evil").click()
        await expect(page.locator(".value")).to_have_text(HTML + SHOWN)
        await page.goto(f"{gateway.address}/ui#/sessions")
        await expect(page.locator(".sessions .note").first).to_contain_text("onerror=alert(1)")
        assert await page.locator("main img, main script, main a[href^=javascript]").count() == 0


async def test_a_value_of_a_megabyte_is_cut_and_the_rest_can_be_seen(browser: Browser, gateway: LiveGateway) -> None:
    value = "".join(f"{number:07d}\n" for number in range(1 << 17))
    await gateway.send("PUT", "/sessions/s/variables/large", {"value": value})
    await gateway.submit("s", {"reads": "About <<large>>"})
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open("#/session/s/graph")
        await page.locator(".node", has_text="large").click()
        box = page.locator(".panel .value-box")
        await expect(box).to_contain_text("1,048,576 characters, the first 10,000 are shown")
        length = "element => element.textContent.length"
        assert await box.locator(".value").evaluate(length) == 10_000
        await box.get_by_role("button", name="Show 10,000 more").click()
        await expect(box).to_contain_text("the first 20,000 are shown")
        assert (await box.locator(".value").text_content()) == value[:20_000]


async def test_errors_of_engines_and_names_of_models_are_text(browser: Browser) -> None:
    async with ScriptedServer(HTML) as server, gateway_before(server) as (client, _):
        server.script = [refuses(400, HTML + STRANGE)]
        address = str(client.make_url("")).rstrip("/")
        body = {
            "model": "fake",
            "messages": [{"role": "user", "content": "x"}],
            "semantic": {"session": "s", "output": "out", "defer": True},
        }
        async with client.post("/v1/sessions", json={"id": "s"}) as answer:
            assert answer.status == 201
        async with client.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
        async with monitored_page(browser, address) as monitor:
            page = await monitor.open("#/session/s/timeline")
            await page.locator(".timeline .row", has_text="out").click()
            await expect(page.locator(".panel .message")).to_contain_text("<script>alert(2)</script>")
            await expect(page.locator(".panel .message")).to_contain_text("\\u202egnp.exe")
            assert await page.locator("main img, main script").count() == 0


@pytest.mark.parametrize(
    "place",
    [
        f"#/session/{HTML}/graph",
        "#/session/%3Cimg src=x onerror=alert(1)%3E/graph",
        "#/session/%E0%A4%A/graph",
        "#/session//graph",
        "#/session/..%2F..%2Fstatus/graph",
        "#/session/s/__proto__",
        "#/constructor/x/y/z",
        "#" + "/" * 5_000,
        "#/session/" + "x" * 20_000 + "/timeline",
    ],
)
async def test_addresses_of_every_kind(browser: Browser, gateway: LiveGateway, place: str) -> None:
    async with monitored_page(browser, gateway.address) as monitor:
        page = await monitor.open(place)
        await expect(page.locator("main .view")).to_be_visible()
        await expect(page.locator("#connection")).to_contain_text("ready")
        assert await page.locator("main img, main script").count() == 0


Answer = Callable[[web.Request], Any]


@asynccontextmanager
async def server_with(answer: Answer) -> AsyncIterator[str]:
    """Yield the address of a server with the page's files, whose API answers as a test says."""
    app = web.Application()
    app.add_routes(live_page.routes)
    app.router.add_route("*", "/v1/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


GARBAGE = [
    *(
        b"",
        b"null",
        b"7",
        b"[]",
        b'"x"',
        b"{",
        b"<html>",
        b"\xff\xfe",
        b'{"data":[null,1,{}],"calls":[[]],"engines":{}}',
    ),
    json.dumps(
        {
            "time": "now",
            "state": {"a": 1},
            "engines": [None, {"name": {"x": 1}, "models": "m", "kv_blocks": -5, "kv_blocks_in_use": 1e308}],
            "counters": {"requests": "x", "tokens": [1], "missed_tokens": {"__proto__": 5, "constructor": 7}},
            "waiting": {"inputs": -3},
            "data": [{"id": "x" * 5_000, "usage": [], "metadata": {"a": {}}, "created_at": -1e300}],
            "last_event_id": -1,
            "calls": [{"id": "a", "state": "__proto__", "created": 1e308, "finished": -1e308, "inputs": ["a", "b", 5]}],
            "variables": [{"name": "b"}, {"name": 5}],
        }
    ).encode(),
]


@pytest.mark.parametrize("place", ["#/", "#/sessions", "#/session/s/graph", "#/session/s/timeline"])
async def test_a_server_that_answers_garbage_breaks_nothing(browser: Browser, place: str) -> None:
    served, asked = [200, b""], asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        asked.set()
        return web.Response(body=served[1], status=served[0], content_type="application/json")

    async with server_with(answer) as address, monitored_page(browser, address) as monitor:
        for status in (200, 500):
            for body in GARBAGE:
                served[:] = [status, body]
                asked.clear()
                await monitor.page.goto("about:blank")
                page = await monitor.open(place)
                await expect(page.locator("main .view")).to_be_visible()
                async with asyncio.timeout(10):
                    await asked.wait()
                await page.locator("#nav a").first.click()
                await expect(page.locator(".cards")).to_be_visible()
                await monitor.check()


def event(id: int, name: str, data: Any) -> bytes:
    return f"id: {id}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def test_a_hundred_thousand_events_are_bounded(browser: Browser) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/events"):
            return web.json_response({"last_event_id": 0, "calls": [], "variables": []})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for first in range(1, 100_001, 1_000):
            numbers = range(first, first + 1_000)
            pieces = [
                event(n, "call", {"id": f"call_{n % 30_000}", "state": "queued", "output": f"o{n}", "at": 1.7e9 + n})
                for n in numbers
            ]
            await response.write(b"".join(pieces))
        await asyncio.sleep(60)
        return response

    async with server_with(answer) as address, monitored_page(browser, address) as monitor:
        page = await monitor.open("#/session/s/timeline")
        view = page.locator(".session-view")
        await expect(view).to_have_attribute("data-events", "100000", timeout=60_000)
        assert await page.locator(".timeline .row").count() < 100
        await expect(page.locator(".banner")).to_contain_text("could not be understood")
        await page.get_by_role("link", name="Graph").click()
        await expect(page.locator(".node")).not_to_have_count(0)
        assert await page.locator(".node, .edge").count() < 4_000


async def test_a_stream_without_an_event_and_an_endless_event_are_given_up(browser: Browser) -> None:
    sent = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if not request.path.endswith("/events"):
            return web.json_response({"last_event_id": 0, "calls": [], "variables": []})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: ")
        while True:
            await response.write(b"x" * (1 << 20))
            sent += 1

    async with server_with(answer) as address, monitored_page(browser, address) as monitor:
        page = await monitor.open("#/session/s/graph")
        await expect(page.locator(".banner")).to_contain_text("an event is too large")
        assert sent < 64, "megabytes until the page closes the stream"


async def test_a_value_without_an_end_is_cut(browser: Browser) -> None:
    closed = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if "/variables/" in request.path:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            try:
                while True:
                    await response.write(
                        b"event: delta\ndata: " + json.dumps({"text": "y" * 100_000}).encode() + b"\n\n"
                    )
            finally:
                closed.set()
        if request.path.endswith("/events"):
            return web.Response(status=503)
        call = {"id": "c", "output": "v", "state": "decode", "created": 1.0}
        return web.json_response({"last_event_id": 1, "calls": [call], "variables": [{"name": "v"}]})

    async with server_with(answer) as address, monitored_page(browser, address) as monitor:
        page = await monitor.open("#/session/s/graph")
        await page.locator(".node").click()
        await expect(page.locator(".value-box")).to_contain_text(
            "the value is larger than this page shows", timeout=30_000
        )
        async with asyncio.timeout(20):
            await closed.wait()
        assert len(await page.locator(".value").text_content() or "") <= 10_000


async def test_a_call_with_many_values_opens_few_streams(browser: Browser) -> None:
    slots = [f"slot_{index}" for index in range(1_000)]
    open_streams = most = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal open_streams, most
        if "/variables/" in request.path:
            open_streams += 1
            most = max(most, open_streams)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(event(1, "delta", {"text": request.path.rpartition("/")[2]}))
            await asyncio.sleep(0.3)
            open_streams -= 1
            await response.write(event(2, "ready", {"value": "made"}))
            return response
        if request.path.endswith("/events"):
            return web.Response(status=503)
        call = {"id": "c", "output": "v", "slots": slots, "state": "done", "created": 1.0, "finished": 2.0}
        return web.json_response({"calls": [call], "variables": [{"name": name} for name in ["v", *slots]]})

    async with server_with(answer) as address, monitored_page(browser, address) as monitor:
        page = await monitor.open("#/session/s/graph")
        await page.locator(".node").click()
        await expect(page.locator(".value-box .value")).to_have_text(["made"] * 4)
        assert most <= 2
        await expect(page.locator(".panel")).to_contain_text("and 970 more")
        await page.locator(".facts").get_by_role("button", name="slot_7", exact=True).click()
        await expect(page.locator(".value-box .value")).to_have_text(["made"])
