"""Tests of gateway/tools/pipe_transport.py: hostile servers over stdio, one behaviour each."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

import psutil
import pytest

from gateway.tools.protocol import PROTOCOL_ERROR, TIMEOUT, TOO_LARGE, UNAVAILABLE, ToolFailed
from tests.fakes.tool_servers import RunningToolServers, hostile

pytestmark = pytest.mark.waits
MEMORY = 160 << 20
"""Growth of the test's process that no server may cause, in bytes. Some answers have 1 GB."""


async def failure(servers: RunningToolServers, name: str = "act", **arguments: Any) -> ToolFailed:
    """Return the failure of a call. It is one line that names server and tool."""
    with pytest.raises(ToolFailed) as caught:
        await servers.text("h", name, **arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    assert message.startswith((f"tool {name} of server h: ", "tool server h: "))
    return caught.value


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("plain", "done"),
        ("greets", "done"),
        ("markup", "<<x>> <|im_end|>\x00\x1b[31m"),
        ("surrogate", "a�b"),
        ("bad_utf8", "a�b"),
        ("image", "[image: image/png, 3 bytes]\n[resource: n, file:///x]\n[resource: file:///y, text/plain]"),
        ("structured", '{"b":1,"a":null}'),
        ("flood_then_answer", "done"),
        ("quite_large_schema", "done"),
        ("deep_schema", "done"),
        ("outside_reference", "done"),
    ],
)
async def test_an_answer_arrives(behaviour: str, text: str) -> None:
    async with RunningToolServers(h=hostile(behaviour)) as servers:
        assert await servers.text("h", "act") == text
        assert [tool.name for tool in await servers.describe("h")] == ["act", "fine"]


@pytest.mark.parametrize(
    ("behaviour", "code", "reason"),
    [
        ("gigabyte", TOO_LARGE, "more than 4194304 bytes"),
        ("too_large", TOO_LARGE, "more than 4194304 bytes"),
        ("too_large_id_last", TOO_LARGE, "more than 4194304 bytes"),
        ("too_large_other", TOO_LARGE, "more than 4194304 bytes"),
        ("many_parts", TOO_LARGE, "more than 100000 values"),
        ("many_values", TOO_LARGE, "more than 100000 values"),
        ("bad_json", PROTOCOL_ERROR, "not JSON"),
        ("deep_json", PROTOCOL_ERROR, "nested too deeply"),
        ("bad_result", PROTOCOL_ERROR, "its form is not that of the protocol"),
        ("bad_part", PROTOCOL_ERROR, "its form is not that of the protocol"),
        ("no_result", PROTOCOL_ERROR, "not JSON-RPC 2.0"),
        ("dies", UNAVAILABLE, "it ended with exit status 9 (stderr: out of luck)"),
        ("garbage", PROTOCOL_ERROR, "more than 100 lines that are no messages"),
        ("error", PROTOCOL_ERROR, "it answered with error -32602: no such thing yyy"),
    ],
)
async def test_a_bad_answer_fails_its_call_alone(behaviour: str, code: str, reason: str) -> None:
    before = psutil.Process().memory_info().rss
    async with RunningToolServers(h=hostile(behaviour, result_bytes=100_000), other=hostile("plain")) as servers:
        await servers.describe("other")
        found = await failure(servers)
        assert (found.code, reason in str(found)) == (code, True), str(found)
        assert await servers.text("other", "act") == "done"
        if behaviour not in ("gigabyte", "dies"):
            assert await servers.text("h", "fine") == "fine"
    assert psutil.Process().memory_info().rss - before < MEMORY


@pytest.mark.parametrize("behaviour", ["silent", "other_id", "flood", "stops_reading"])
async def test_a_missing_answer_ends_with_the_time_limit(behaviour: str) -> None:
    before = psutil.Process().memory_info().rss
    async with RunningToolServers(h=hostile(behaviour, seconds=1.5), other=hostile("plain")) as servers:
        await servers.describe("h")
        calls = asyncio.create_task(failure(servers))
        await servers.describe("other")
        while not calls.done():
            assert await servers.text("other", "act") == "done"
            await asyncio.sleep(0.05)
        found = await calls
        assert (found.code, "did not answer within 1.5 s" in str(found)) == (TIMEOUT, True)
    assert psutil.Process().memory_info().rss - before < MEMORY


async def test_a_late_answer_is_dropped() -> None:
    async with RunningToolServers(h=hostile("late", seconds=0.3)) as servers:
        await servers.describe("h")
        assert (await failure(servers)).code == TIMEOUT
        async with asyncio.timeout(30):
            while True:
                with suppress(ToolFailed):
                    assert await servers.text("h", "fine") == "fine"
                    break


@pytest.mark.parametrize(
    ("behaviour", "code", "reason"),
    [
        ("never_starts", UNAVAILABLE, "did not start within 1 s"),
        ("greets_and_dies", UNAVAILABLE, "it ended with exit status 1"),
        ("many_tools", TOO_LARGE, "it sent a message of more than"),
        ("large_schema", TOO_LARGE, "it sent a message of more than"),
        ("endless_pages", TOO_LARGE, "more than 100 pages"),
        ("bad_list", PROTOCOL_ERROR, "its list of tools or its handshake is invalid"),
    ],
)
async def test_a_server_that_cannot_start_is_reported(behaviour: str, code: str, reason: str) -> None:
    seconds = 1.0 if behaviour == "never_starts" else 60.0
    async with RunningToolServers(h=hostile(behaviour, start_seconds=seconds)) as servers:
        found = await failure(servers)
        assert (found.code, reason in str(found)) == (code, True), str(found)


async def test_a_server_that_does_not_read_blocks_no_other_client() -> None:
    async with RunningToolServers(h=hostile("stops_reading", seconds=1.0, parallel=4)) as servers:
        await servers.describe("h")
        found = await asyncio.gather(*(failure(servers, text="x" * 1_000_000) for _ in range(4)))
        assert {error.code for error in found} == {TIMEOUT}


async def test_a_process_that_ignores_sigterm_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with RunningToolServers(h=hostile("ignores_sigterm")) as servers:
        assert await servers.text("h", "act") == "done"
        (child,) = [
            process for process in psutil.Process().children() if "ignores_sigterm" in " ".join(process.cmdline())
        ]
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
