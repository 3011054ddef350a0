"""Anthropic's client for JavaScript, against an engine of our own."""

import asyncio
from pathlib import Path

from tests.ecosystem.agents.workshop import Workshop
from tests.fakes.gateway_harness import MODEL, GatewayHarness


async def test_messages_streams_tools_and_errors(workshop: Workshop) -> None:
    program = workshop.install(Path(__file__).with_name("anthropic_sdk.mjs"))
    gateway = await asyncio.to_thread(GatewayHarness)
    try:
        printed = await workshop.run("node", str(program), MODEL, env={"ANTHROPIC_BASE_URL": gateway.address})
    finally:
        await asyncio.to_thread(gateway.stop)
    assert printed.endswith("done\n")
