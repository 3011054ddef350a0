"""Tests of gateway/tools/tool_servers.py: the interface of the tools, and servers at URLs of clients."""

import asyncio
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from gateway.config.tool_servers import ToolSettings
from gateway.config.url_pattern import parse_url_pattern
from gateway.tools import tool_servers
from gateway.tools.protocol import BadArguments, ToolFailed, Tools, UnknownTool, UrlRefused
from gateway.tools.tool_servers import ToolServers
from tests.fakes.tool_servers import RunningToolServers, real, table

pytestmark = pytest.mark.waits


def calls(server: str, tool: str, outcome: str) -> float:
    labels = {"server": server, "tool": tool, "outcome": outcome}
    return REGISTRY.get_sample_value("myna_tool_calls_total", labels) or 0.0


async def test_tools_are_described_checked_and_called(tmp_path: Path) -> None:
    async with RunningToolServers(s=real(tmp_path / "counter", tools=["add", "p*", "now", "fail"])) as servers:
        tools: Tools = servers
        assert not tools.is_pure("s", "add")  # it is not connected yet
        found = {tool.name: tool for tool in await tools.describe("s")}
        assert list(found) == ["add", "now", "put", "fail", "picture"]
        assert found["add"].description == "Add two numbers."
        assert set(found["add"].input_schema["properties"]) == {"a", "b"}
        assert [tools.is_pure("s", name) for name in ("add", "now", "put", "fail", "gone")] == [True, *[False] * 4]
        assert [tools.is_idempotent("s", name) for name in ("add", "now", "put", "fail")] == [True, True, True, False]
        with pytest.raises(UnknownTool, match="has no allowed tool 'environment'"):
            await tools.call("s", "environment", {}, tenant="")
        with pytest.raises(UnknownTool, match="there is no tool server 't'; servers: s"):
            await tools.describe("t")
        await tools.check("s", "add", {"a": 1, "b": 2})
        await tools.check("s", "add", {"a": 1, "b": "x"}, unknown=[("b",)])
        with pytest.raises(BadArguments, match="b: type: the value is not of type integer") as caught:
            await tools.check("s", "add", {"a": 1, "b": "x"})
        assert (caught.value.where, caught.value.code) == ("b", "invalid_value")
        with pytest.raises(BadArguments, match="more than"):
            await tools.check("s", "add", {"a": "x" * 5_000_000})
        before = calls("s", "add", "ok"), calls("s", "fail", "error"), calls("s", "(unknown)", "unknown_tool")
        result = await tools.call("s", "add", {"a": 1, "b": 2}, tenant="")
        assert (result.text, result.is_error, result.bytes) == ("3", False, 1)
        assert result.seconds > 0
        assert (await tools.call("s", "fail", {}, tenant="")).is_error
        with pytest.raises(UnknownTool):
            await tools.call("s", "x" * 100, {}, tenant="")
        after = calls("s", "add", "ok"), calls("s", "fail", "error"), calls("s", "(unknown)", "unknown_tool")
        assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 1]


async def test_large_arguments_are_checked_in_a_thread(tmp_path: Path) -> None:
    async with RunningToolServers(s=real(tmp_path / "counter")) as servers:
        with pytest.raises(BadArguments, match="b: type"):
            await servers.check("s", "add", {f"x{index}": index for index in range(100_000)} | {"a": 1, "b": "x"})


async def test_a_reference_server_is_called() -> None:
    command = [sys.executable, "-m", "mcp_server_time", "--local-timezone", "Etc/UTC"]
    async with RunningToolServers(time=table(command=command, tools=["get_current_time"])) as servers:
        assert [tool.name for tool in await servers.describe("time")] == ["get_current_time"]
        assert "Europe/Berlin" in await servers.text("time", "get_current_time", timezone="Europe/Berlin")


async def test_without_servers_nothing_is_started() -> None:
    servers = ToolServers(ToolSettings())
    servers.start()
    with pytest.raises(UnknownTool, match="this gateway has no tool servers"):
        await servers.describe("x")
    with pytest.raises(UrlRefused, match="does not allow this URL"):
        await servers.open_url("https://example.com/mcp", {}, tenant="")
    await servers.close()


async def test_servers_close_while_they_start(tmp_path: Path) -> None:
    servers = RunningToolServers(s=real(tmp_path / "counter"), t=real(tmp_path / "counter"))
    servers.start()
    await asyncio.wait_for(servers.close(), 60)


@pytest.mark.parametrize(
    ("url", "headers", "where"),
    [
        ("https://user@example.com/", {}, "server_url"),
        ("https://other.com/", {}, "server_url"),
        ("https://example.com/a/../b", {}, "server_url"),
        ("https://example.com/", {"Host": "x"}, "headers"),
        ("https://example.com/", {"A": "a\r\nb"}, "headers"),
    ],
)
async def test_urls_of_clients_are_refused(url: str, headers: dict[str, str], where: str) -> None:
    servers = RunningToolServers(parse_url_pattern("https://example.com/*"))
    with pytest.raises(UrlRefused) as caught:
        await servers.open_url(url, headers, tenant="")
    assert caught.value.where == where


async def test_urls_of_clients_belong_to_their_tenant_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_servers, "_MAX_TENANT_URL_SERVERS", 3)
    async with RunningToolServers(parse_url_pattern("http://127.0.0.1:9/*")) as servers:
        names = [await servers.open_url(f"http://127.0.0.1:9/{index}", {}, tenant="a") for index in range(5)]
        assert len(set(names)) == 5
        assert await servers.open_url("http://127.0.0.1:9/4", {}, tenant="a") == names[4]
        assert await servers.open_url("http://127.0.0.1:9/4", {}, tenant="b") not in names
        assert await servers.open_url("http://127.0.0.1:9/4", {"x": "y"}, tenant="a") not in names
        with pytest.raises(UnknownTool):
            await servers.describe(names[0])
        with pytest.raises(ToolFailed, match="cannot be reached"):
            await servers.describe(names[4])


async def test_unused_urls_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_servers, "_SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(tool_servers, "_URL_IDLE_SECONDS", 0.05)
    async with RunningToolServers(parse_url_pattern("http://127.0.0.1:9/*")) as servers:
        name = await servers.open_url("http://127.0.0.1:9/", {}, tenant="a")
        async with asyncio.timeout(30):
            while True:
                try:
                    await servers.describe(name)
                except UnknownTool:
                    break
                except ToolFailed:
                    await asyncio.sleep(0.1)
