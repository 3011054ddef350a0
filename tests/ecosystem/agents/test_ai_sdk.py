"""The AI SDK in JavaScript: several steps over the Responses API, in which it sends back ids of stored items."""

import json
from pathlib import Path

from tests.ecosystem.agents.workshop import MODEL, Workshop, gateway_of
from tests.ecosystem.documented import settings_of_agent
from tests.fakes.capable_model import CapableModel


async def test_the_program_of_the_documentation_runs(workshop: Workshop) -> None:
    async with gateway_of(CapableModel({"Hello!": ["Good morning."]})) as gateway:
        program = workshop.folder / "documented.mjs"
        program.write_text(settings_of_agent("js", gateway.address, MODEL))
        assert await workshop.run("node", str(workshop.install(program)), env={}) == "Good morning.\n"


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
