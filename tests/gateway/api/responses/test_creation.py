"""gateway/api/responses/creation.py: when the first events of a response are sent."""

import asyncio
import json
from typing import Any

from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import Behaviour, refuses, says
from tests.gateway.api.responses.test_routes import EVENT, ask


def waits(go_on: asyncio.Event, then: Behaviour) -> Behaviour:
    """Return a behaviour that sends nothing until the test lets it continue: the prompt is processed."""

    async def behave(request: Any, body: dict[str, Any]) -> Any:
        await go_on.wait()
        return await then(request, body)

    return behave


async def read_events(content: Any, count: int) -> list[Any]:
    """Return the next events."""
    events = []
    while len(events) < count:
        line = await asyncio.wait_for(content.readline(), 10)
        if line.startswith(b"data: "):
            events.append(EVENT.validate_python(json.loads(line.removeprefix(b"data: "))))
    return events


async def test_the_response_is_created_before_its_prompt_is_processed(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    go_on = asyncio.Event()
    server.script = [waits(go_on, says("one"))]
    async with client.post("/v1/responses", json={"model": "fake", "input": "x", "stream": True}) as answer:
        created, in_progress = await read_events(answer.content, 2)
        assert (created.type, in_progress.type) == ("response.created", "response.in_progress")
        assert created.response.status == "in_progress"
        go_on.set()
        later = await read_events(answer.content, 7)
    assert [event.sequence_number for event in (created, in_progress, *later)] == list(range(9))
    assert later[-1].type == "response.completed"
    assert later[-1].response.id == created.response.id


async def test_an_error_after_that_is_an_event(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    go_on = asyncio.Event()
    overflow = refuses(400, "This model's maximum context length is 9 tokens", code="context_length_exceeded")
    server.script = [waits(go_on, overflow), overflow]
    async with client.post("/v1/responses", json={"model": "fake", "input": "x", "stream": True}) as answer:
        assert answer.status == 200
        await read_events(answer.content, 2)
        go_on.set()
        text = await answer.text()
    *_, last = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["message"].endswith("This model's maximum context length is 9 tokens")
    assert not unfinished()
    quick = await ask(client, 400, stream=True)
    assert quick["error"]["message"].endswith("9 tokens"), "an early error has a status of its own"
