"""Speed of the live page in a headless Chromium: `python -m bench.page`. It needs the extra `page` and Chromium.

It prints, as JSON, for several numbers of calls, of a map-reduce and of forms that are folded: the time to open each
view of a session that is loaded, the time from the address to the first row, the times between frames while the
timeline scrolls, and the size of the page's heap.
"""

import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, async_playwright

from gateway.api import live_page
from tests.page.browser import running_browser

CALLS = (200, 2_000, 10_000)
_FRAMES = 120
"""Number of frames over which the timeline scrolls."""
_OPEN = """async (name) => {
    const frame = () => new Promise(requestAnimationFrame);
    const tab = [...document.querySelectorAll('.tabs a')].find((link) => link.textContent === name);
    const drawn = name === 'Graph' ? '.node' : '.timeline .rows-body .row';
    const began = performance.now();
    tab.click();
    while (!document.querySelector(drawn)) await frame();
    return performance.now() - began;
}"""
_SCROLL = """async (frames) => {
    const rows = document.querySelector('.timeline');
    const step = (rows.scrollHeight - rows.clientHeight) / frames;
    const times = [];
    let last = await new Promise(requestAnimationFrame);
    for (let index = 0; index < frames; index += 1) {
        rows.scrollTop += step;
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    return times;
}"""


def graph_of(calls: int) -> dict[str, Any]:
    """Return the graph of a map-reduce in layers of a hundred maps, with one reduce each, that ended some time ago."""
    described, variables = [], []
    for index in range(calls):
        group, place = divmod(index, 101)
        is_reduce = place == 100
        name = f"reduce_{group}" if is_reduce else f"map_{group}_{place}"
        inputs = [f"map_{group}_{number}" for number in range(100)] if is_reduce else []
        if not is_reduce and group:
            inputs = [f"reduce_{group - 1}"]
        begin = 1.7e9 + group * 3.0
        described.append(
            {
                "id": f"call_{index:016x}",
                "model": "model",
                "state": "done",
                "waiting_on": [],
                "inputs": inputs,
                "output": name,
                "slots": [],
                "prompt_tokens": 800,
                "cached_tokens": 512,
                "missed_tokens": {"never_seen": 280, "part_of_a_block": 8},
                "completion_tokens": 60,
                "created": begin,
                "finished": begin + 1.0 + place * 0.015,
                "spent_ms": {"inputs": 300.0, "queue": 100.0, "prompt": 200.0, "answer": 400.0 + place * 15.0},
            }
        )
        variables.append({"name": name, "state": "ready", "producer": described[-1]["id"], "consumers": []})
    return {"last_event_id": 9 * calls, "calls": described, "variables": variables, "edges": []}


def forms_of(calls: int) -> dict[str, Any]:
    """Return the same calls as elements of maps, each with a reader."""
    graph = graph_of(calls)
    described = graph["calls"]
    for first in range(0, calls, 101):
        head, *elements = described[first : first + 101]
        if not elements or not elements[-1]["output"].startswith("reduce"):
            continue
        head |= {"form": "map", "model": "", "inputs": [], "output": f"all_{first}"}
        for index, element in enumerate(elements[:-1]):
            element |= {"parent": head["id"], "inputs": [], "output": f"all_{first}.{index}"}
            head["inputs"].append(element["output"])
        elements[-1]["inputs"] = [head["output"]]
    return graph


async def measure(browser: Browser, described: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one session, in milliseconds and MiB."""
    graph = json.dumps(described)

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/graph"):
            return web.Response(text=graph, content_type="application/json")
        return web.json_response({}, status=503 if request.path.endswith("/events") else 200)

    app = web.Application()
    app.add_routes(live_page.routes)
    app.router.add_get("/v1/{path:.*}", answer)
    async with TestServer(app) as server:
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await page.goto(str(server.make_url("/ui#/session/s/timeline")))
        await page.wait_for_selector(".timeline .rows-body .row")
        first = await page.evaluate("performance.now()")
        opened = {"Graph": [], "Timeline": []}  # type: dict[str, list[float]]
        for _ in range(5):
            for name, times in opened.items():
                times.append(await page.evaluate(_OPEN, name))
        frames = await page.evaluate(_SCROLL, _FRAMES)
        heap = await page.evaluate("performance.memory.usedJSHeapSize")
        await page.close()
    frames.sort()
    return {
        "first_row_ms": round(first),
        "open_graph_ms": round(statistics.median(opened["Graph"]), 1),
        "open_timeline_ms": round(statistics.median(opened["Timeline"]), 1),
        "frame_median_ms": round(statistics.median(frames), 1),
        "frame_p99_ms": round(frames[int(len(frames) * 0.99)], 1),
        "heap_mib": round(heap / 2**20, 1),
    }


async def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as profile:
        async with async_playwright() as playwright, running_browser(playwright, Path(profile)) as browser:
            found = {
                f"{calls} {name}": await measure(browser, graph(calls))
                for name, graph in (("calls", graph_of), ("calls in forms", forms_of))
                for calls in CALLS
            }
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    asyncio.run(main())
