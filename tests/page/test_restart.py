"""The page while the gateway restarts: no event is lost or counted twice."""

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser, expect

from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.scripted_server import ScriptedServer
from tests.page.browser import monitored_page
from tests.page.gateway import Conductor


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def events_after(http: aiohttp.ClientSession, address: str, last: int) -> list[tuple[int, str, Any]]:
    """Return id, name and data of the events of the session so far, after the event `last`."""
    found = []
    headers = {"Last-Event-ID": str(last)}
    async with http.get(f"{address}/v1/sessions/s/events", headers=headers) as answer:
        buffer = b""
        while True:
            try:
                buffer += await asyncio.wait_for(answer.content.readany(), 1.0)
            except TimeoutError:
                break
    for block in buffer.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "id" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["crash", "stop"])
async def test_events_resume_after_a_restart(browser: Browser, tmp_path: Path, end: signal.Signals) -> None:
    port, conductor = free_port(), Conductor()
    conductor.hold("SECOND")
    conductor.hold("THIRD")
    async with ScriptedServer() as server, aiohttp.ClientSession() as http:
        server.always = conductor.answer
        journal = str(tmp_path / "journal")
        options = ("--port", str(port), "--journal", journal, "--engine", f"openai={server.url}", "--drain", "0")
        gateway = await asyncio.to_thread(GatewayHarness, *options)
        try:
            address = f"http://127.0.0.1:{port}"

            async def ask(output: str, prompt: str) -> None:
                body = {
                    "model": "fake",
                    "messages": [{"role": "user", "content": prompt}],
                    "temperature": 0,
                    "semantic": {"output": output, "defer": True},
                }
                headers = {"X-Semantic-Session": "s"}
                async with http.post(f"{address}/v1/chat/completions", json=body, headers=headers) as answer:
                    assert answer.status == 200, await answer.text()

            await ask("first", "FIRST")
            async with monitored_page(browser, address) as monitor:
                page = await monitor.open("#/session/s/timeline")
                view = page.locator(".session-view")
                await expect(page.locator(".figures")).to_contain_text("1 of 1 done")
                await expect(view).to_have_attribute("data-connection", "live")
                begin = int(await view.get_attribute("data-last-event") or 0)
                counted = int(await view.get_attribute("data-events") or 0)
                await ask("second", "SECOND")
                await ask("third", "THIRD <<second>>")
                conductor.say("SECOND", "be", "gun")
                await expect(page.locator(".timeline .row", has_text="second")).to_contain_text("◐")
                await asyncio.to_thread(gateway.stop, end)
                await expect(page.locator(".banner")).to_contain_text("Connection lost")
                gateway = await asyncio.to_thread(GatewayHarness, *options)
                await expect(view).to_have_attribute("data-connection", "live")
                conductor.end("SECOND", "begun again")
                conductor.end("THIRD", "done")
                await ask("fourth", "FOURTH")
                await expect(page.locator(".figures")).to_contain_text("4 of 4 done")
                await expect(page.locator(".banner")).to_be_hidden()
                sent = await events_after(http, address, begin)
                assert sent[-1][0] > begin
                await expect(view).to_have_attribute("data-last-event", str(sent[-1][0]))
                seen = int(await view.get_attribute("data-events") or 0) - counted
                assert seen == len(sent), "each event once"
                async with http.get(f"{address}/v1/sessions/s/graph") as answer:
                    graph = await answer.json()
                script = (
                    """rows => rows.filter(row => !row.hidden).map(row => row.querySelector('.name').textContent)"""
                )
                names = await page.locator(".timeline .rows-body .row").evaluate_all(script)
                assert names == [call["output"] for call in graph["calls"]]
        finally:
            await asyncio.to_thread(gateway.stop)
