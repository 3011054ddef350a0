"""Draw the pictures of the documents: a review application and a graph of forms on the default model, while they run."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
from playwright.async_api import Browser, async_playwright

from tests.fakes.gateway_harness import MODEL, GatewayHarness
from tests.page.browser import monitored_page, running_browser

_SIZE = {"width": 1460, "height": 720}
_SESSION = "bird-report"
_STYLE = "You write for a magazine about birds. Be brief, be friendly, and use simple words. " * 8
_FORMS = "bird-guide"
_CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Delhi", "Tokyo", "Paris", "Quito", "Accra", "Seoul", "Perth", "Boston")
_THEMES = ("songs", "nests", "food", "flight", "flocks", "colours", "cities", "winters")


def review() -> dict[str, tuple[str, int]]:
    """Return the calls of the application: the prompt of each output, and the length of its answer in tokens."""
    parts = {f"part_{index}": (f"Write about the {theme} of mynas.", 40) for index, theme in enumerate(_THEMES, 1)}
    reviews = {f"review_{index}": (f"You are reviewer {index}. Review this: <<summary>>", 48) for index in range(1, 4)}
    return {
        **parts,
        "summary": ("Join these parts: " + " ".join(f"<<{name}>>" for name in parts), 96),
        **reviews,
        "facts": ("Compare <<summary>> with what the search found: <<search_result>>", 40),
        "title": ("Write a title for this text: <<summary>>", 12),
        "report": (
            "Write about mynas for our readers. Use <<title>> <<summary>> <<facts>> "
            + " ".join(f"<<{name}>>" for name in reviews),
            160,
        ),
    }


async def draw(browser: Browser, address: str, http: aiohttp.ClientSession, folder: Path) -> None:
    """Run the application, and take the pictures while it runs."""

    async def send(method: str, path: str, body: Any = None) -> None:
        async with http.request(method, f"{address}/v1{path}", json=body) as answer:
            assert answer.status < 300, await answer.text()

    async def wait(name: str) -> None:
        await send("GET", f"/sessions/{_SESSION}/variables/{name}?wait=true")

    await send("POST", "/sessions", {"id": _SESSION, "metadata": {"app": "review"}})
    await send("PUT", f"/sessions/{_SESSION}/variables/search_result", {"value": None})
    async with (
        monitored_page(browser, address, viewport=_SIZE) as light,
        monitored_page(browser, address, viewport={**_SIZE, "height": 890}, color_scheme="dark") as dark,
        monitored_page(browser, address, viewport={**_SIZE, "height": 450}) as first,
    ):
        await first.open()
        for output, (prompt, tokens) in review().items():
            body = {
                "model": MODEL,
                "messages": [{"role": "system", "content": _STYLE}, {"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "temperature": 0.7,
                "seed": 11,
                "ignore_eos": True,
                "semantic": {"session": _SESSION, "output": output, "defer": True},
            }
            await send("POST", "/chat/completions", body)
        await light.open(f"#/session/{_SESSION}/graph")
        await dark.open(f"#/session/{_SESSION}/timeline")
        await wait("title")
        await asyncio.sleep(1.0)
        await first.page.screenshot(path=folder / "page-overview.png")
        await send("PUT", f"/sessions/{_SESSION}/variables/search_result", {"value": "Mynas copy other birds."})
        await wait("facts")
        await light.page.locator(".node[aria-label^=report]").click()
        await light.page.locator(".value", has_text=" ").wait_for()
        await asyncio.sleep(3.0)
        for name, monitor in (("graph", light), ("timeline", dark)):
            await monitor.page.screenshot(path=folder / f"page-{name}.png")


def forms() -> dict[str, Any]:
    """Return a graph with a map over twelve cities, and a repeat that revises the result."""

    def ask(text: str, tokens: int, output: str | None = None) -> dict[str, Any]:
        semantic = {} if output is None else {"semantic": {"output": output}}
        sampling = {"max_tokens": tokens, "temperature": 0.7, "seed": 11, "ignore_eos": True}
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], **sampling, **semantic}

    repeat = {
        "calls": [
            ask("Name a problem of this text: <<draft>>", 24, "problem"),
            ask("Write it again: <<draft>> Problem: <<problem>>", 160, "revised"),
        ],
        "start": {"draft": "<<birds>>"},
        "carry": {"draft": "<<revised>>"},
        "until": {"value": "<<problem>>", "equals": "none"},
        "max": 2,
        "on_max": "last",
    }
    element = ask("Which birds live in <<city>>?", 40)
    return {
        "session": _FORMS,
        "calls": [
            {"map": {"over": list(_CITIES), "as": "city", "call": element}, "output": "birds"},
            {"repeat": repeat, "outputs": ["revised"]},
            ask("Write a title: <<revised>>", 12, "title"),
        ],
        "outputs": ["title"],
    }


async def draw_forms(browser: Browser, address: str, http: aiohttp.ClientSession, folder: Path) -> None:
    """Run the graph of forms, and take the picture while the repeat runs."""
    async with http.post(f"{address}/v1/sessions", json={"id": _FORMS}) as answer:
        assert answer.status == 201, await answer.text()

    async def run() -> None:
        async with http.post(f"{address}/v1/graphs", json=forms()) as answer:
            assert answer.status == 200, await answer.text()

    async with monitored_page(browser, address, viewport={"width": 1728, "height": 560}) as monitor:
        await monitor.open(f"#/session/{_FORMS}/graph")
        running = asyncio.create_task(run())
        await monitor.page.locator('.node[aria-label^="problem@2: "]').wait_for()
        await monitor.page.get_by_role("button", name="Zoom out").click()
        await asyncio.sleep(1.0)  # until the figures of the calls are loaded
        await monitor.page.screenshot(path=folder / "page-forms.png")
        await running


async def main() -> None:
    """Write the pictures into the folder of the command line."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as profile, GatewayHarness("--journal", "memory") as gateway:
        async with (
            async_playwright() as playwright,
            running_browser(playwright, Path(profile)) as browser,
            aiohttp.ClientSession() as http,
        ):
            await draw(browser, gateway.address, http, folder)
            await draw_forms(browser, gateway.address, http, folder)


if __name__ == "__main__":
    asyncio.run(main())
