"""Tests of gateway/tools/connection.py: calls, cancellation, places, changes of tools, and new connections."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.tools.protocol import TIMEOUT, TOO_LARGE, UNAVAILABLE, ToolFailed, UnknownTool
from tests.fakes.tool_servers import RunningToolServers, free_port, http_tool_server, real, table

pytestmark = pytest.mark.waits


def lines_of(counter: Path) -> list[str]:
    return counter.read_text().split() if counter.exists() else []


async def wait_for_lines(counter: Path, lines: list[str]) -> None:
    """Wait until the server has written these lines, in any order."""
    async with asyncio.timeout(30):
        while sorted(lines_of(counter)) != sorted(lines):
            await asyncio.sleep(0.01)


async def test_a_cancelled_call_is_cancelled_in_the_server_and_frees_its_place(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    async with RunningToolServers(s=real(counter, parallel=1)) as servers:
        call = asyncio.create_task(servers.text("s", "count", seconds=3600))
        await wait_for_lines(counter, ["begin"])
        call.cancel()
        await asyncio.wait({call}, timeout=30)
        assert call.cancelled()
        assert await servers.text("s", "add", a=1, b=2) == "3"
        await wait_for_lines(counter, ["begin", "cancelled"])


async def test_a_call_over_its_time_limit_is_cancelled_in_the_server(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    async with RunningToolServers(s=real(counter, seconds=1.0)) as servers:
        await servers.describe("s")
        with pytest.raises(ToolFailed) as caught:
            await servers.text("s", "count", seconds=3600)
        assert caught.value.code == TIMEOUT
        await wait_for_lines(counter, ["begin", "cancelled"])


async def test_places_are_shared_between_tenants(tmp_path: Path) -> None:
    counter, order = tmp_path / "counter", list[str]()
    async with RunningToolServers(s=real(counter, parallel=2)) as servers:
        await servers.describe("s")

        async def call(tenant: str) -> None:
            await servers.text("s", "count", tenant, seconds=0.05)
            order.append(tenant)

        await asyncio.gather(*(call(tenant) for tenant in ["a"] * 10 + ["b"] * 2))
    assert "b" in order[:6]


async def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    async with RunningToolServers(s=real(tmp_path / "counter")) as servers:
        for _ in range(2):
            assert await servers.text("s", "add", a=1, b=2) == "3"
            with pytest.raises(ToolFailed, match="it ended with exit status 3") as caught:
                await servers.text("s", "die")
            assert caught.value.code == UNAVAILABLE
            assert servers.is_pure("s", "add")


async def test_all_calls_that_run_fail_if_the_server_dies(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    async with RunningToolServers(s=real(counter)) as servers:
        calls = [asyncio.create_task(servers.text("s", "count", seconds=3600)) for _ in range(3)]
        await wait_for_lines(counter, ["begin"] * 3)
        with pytest.raises(ToolFailed):
            await servers.text("s", "die")
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
        assert {getattr(error, "code", None) for error in found} == {UNAVAILABLE}


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_new_tools_are_found(tmp_path: Path, transport: str) -> None:
    with http_tool_server(tmp_path / "counter") as url:
        settings = real(tmp_path / "counter") if transport == "stdio" else table(url=url)
        async with RunningToolServers(s=settings) as servers:
            with pytest.raises(UnknownTool):
                await servers.describe("s", "grown")
            assert await servers.text("s", "grow") == "grown"
            async with asyncio.timeout(30):
                while "grown" not in [tool.name for tool in await servers.describe("s")]:
                    await asyncio.sleep(0.05)
            assert await servers.text("s", "grown") == "new"


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_results_of_all_kinds_over_http(tmp_path: Path, options: tuple[str, ...]) -> None:
    with http_tool_server(tmp_path / "counter", *options) as url:
        async with RunningToolServers(s=table(url=url, result_bytes=10_000)) as servers:
            assert await servers.text("s", "add", a=1, b=2) == "3"
            assert await servers.text("s", "several") == "one\ntwo"
            assert await servers.text("s", "picture") == "[image: image/png, 8 bytes]"
            result = await servers.call("s", "fail", {}, tenant="")
            assert result.is_error
            for size in (20_000, 6_000_000):
                with pytest.raises(ToolFailed) as caught:
                    await servers.text("s", "large", size=size)
                assert caught.value.code == TOO_LARGE


async def test_a_cancelled_call_over_http_is_cancelled_in_the_server(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    with http_tool_server(counter) as url:
        async with RunningToolServers(s=table(url=url)) as servers:
            call = asyncio.create_task(servers.text("s", "count", seconds=3600))
            await wait_for_lines(counter, ["begin"])
            call.cancel()
            await asyncio.wait({call}, timeout=30)
            await wait_for_lines(counter, ["begin", "cancelled"])


async def test_a_server_over_http_may_be_gone_for_a_while(tmp_path: Path) -> None:
    port = free_port()
    async with RunningToolServers(s=table(url=f"http://127.0.0.1:{port}/mcp")) as servers:
        with pytest.raises(ToolFailed, match="cannot be reached") as caught:
            await servers.text("s", "add", a=1, b=2)
        assert caught.value.code == UNAVAILABLE
        for _ in range(2):
            with http_tool_server(tmp_path / "counter", port=port):
                async with asyncio.timeout(60):
                    while True:
                        with suppress(ToolFailed):
                            assert await servers.text("s", "add", a=1, b=2) == "3"
                            break
                        await asyncio.sleep(0.1)


async def test_calls_that_wait_end_when_the_gateway_closes(tmp_path: Path) -> None:
    servers = RunningToolServers(s=real(tmp_path / "counter", parallel=1))
    async with servers:
        await servers.describe("s")
        calls = [asyncio.create_task(servers.text("s", "count", seconds=3600)) for _ in range(3)]
        await wait_for_lines(tmp_path / "counter", ["begin"])
    found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert {getattr(error, "code", None) for error in found} == {UNAVAILABLE}
    with pytest.raises(ToolFailed, match="shutting down"):
        await servers.text("s", "add", a=1, b=2)
