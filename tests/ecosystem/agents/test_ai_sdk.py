"""The AI SDK in JavaScript: several steps over the Responses API, in which it sends back ids of stored items."""

import json
from pathlib import Path

from tests.ecosystem.agents.workshop import MODEL, Workshop, gateway_of
from tests.fakes.capable_model import CapableModel


async def test_steps_with_tools(workshop: Workshop) -> None:
    model = CapableModel(
        {"Task one": [("lookup", {"bird": "myna"}), ("lookup", {"bird": "kiwi"}), "One talks, the other walks."]}
    )
    program = workshop.install(Path(__file__).with_name("ai_sdk.mjs"))
    async with gateway_of(model) as gateway:
        printed = json.loads(await workshop.run("node", str(program), f"{gateway.address}/v1", MODEL, env={}))
    steps = [
        {"text": "", "calls": ["myna"], "results": ["talks"]},
        {"text": "", "calls": ["kiwi"], "results": ["walks"]},
        {"text": "One talks, the other walks.", "calls": [], "results": []},
    ]
    assert printed == {"whole": steps, "streamed": steps, "text": "One talks, the other walks."}
