"""gateway/api/semantic/events.py: every change of a session, resumable without a gap."""

import asyncio
import json
from typing import Any

import pytest

from tests.fakes.in_process_gateway import ScriptedGateway
from tests.gateway.api.semantic.session_client import SessionClient


def parsed(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Return id, name and data of each event."""
    blocks = [
        dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if "data" in block
    ]
    return [(int(block["id"]), block["event"], json.loads(block["data"])) for block in blocks]


async def watch(session: SessionClient, **headers: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Return the events until the session ends."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.http.get(f"/v1/sessions/{session.id}/events", headers=named) as answer:
        assert answer.status == 200
        return parsed(await answer.text())


async def test_events_report_every_change_until_the_session_ends(scripted_gateway: ScriptedGateway) -> None:
    session = SessionClient(scripted_gateway[0])
    await session.create()
    whole = asyncio.create_task(watch(session))
    await session.put("x", value=None)
    await session.put("x", value="1")
    await session.ask("<<x>>", "out")
    await session.get("out", "?wait=true")
    behind = asyncio.create_task(watch(session, Last_Event_ID="2"))
    await asyncio.sleep(0.05)
    await session.send("DELETE", "/variables/out")
    await session.send("DELETE")
    events = await whole
    ids = [id for id, _, _ in events]
    assert ids == sorted(set(ids))
    states = [(data["name"], data["state"]) for _, kind, data in events if kind == "variable" and data["name"] == "x"]
    assert states == [("x", "declared"), ("x", "ready")]
    call_states = [data["state"] for _, kind, data in events if kind == "call"]
    assert call_states[0] == "waiting"
    assert call_states[-1] == "done"
    assert ("variable", "deleted") in [(kind, data["state"]) for _, kind, data in events]
    assert events[-1][1:] == ("session", {"at": events[-1][2]["at"], "state": "deleted"})
    assert await behind == [event for event in events if event[0] > 2], "no gap and no repetition"


@pytest.mark.parametrize("position", ["-1", "x", "1.5", "9" * 20])
async def test_an_invalid_position_is_refused(scripted_gateway: ScriptedGateway, position: str) -> None:
    session = SessionClient(scripted_gateway[0])
    await session.create()
    status, refused = await session.send("GET", "/events", headers={"Last-Event-ID": position})
    assert status == 400
    assert "Last-Event-ID" in refused["error"]["message"]


async def test_an_unknown_session_has_no_events(scripted_gateway: ScriptedGateway) -> None:
    assert (await SessionClient(scripted_gateway[0]).send("GET", "/events"))[0] == 404
