"""gateway/api/serializers/messages.py: a call as a message, whole and streamed; reasons to stop, usage, failures."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from gateway.api.serializers.messages import MessageSerializer
from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import Behaviour, breaks_off, chunk, says, stream
from tests.gateway.api.anthropic.messages_client import ASKED, ask, events, send, text_of
from tests.gateway.api.test_reasoning import thinks

USAGE = {
    "prompt_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens": 9,
    "completion_tokens_details": {"reasoning_tokens": 5},
}
TOOL = {"name": "look", "input_schema": {"type": "object"}}


def ends(finish: str, *texts: str, **fields: Any) -> Behaviour:
    """Return an answer whose last event has these fields."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        last = [chunk(body, None, finish, **fields), {"choices": [], "usage": USAGE}]
        return await stream(request, [*(chunk(body, text) for text in texts), *last])

    return behave


def calls(*arguments: str, finish: str = "tool_calls") -> Behaviour:
    """Return an answer with a tool call, whose arguments arrive in pieces."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        found = []
        for number, piece in enumerate(arguments):
            function = {"name": "look", "arguments": piece} if number == 0 else {"arguments": piece}
            delta = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}
            found.append({"id": "x", "model": body["model"], "choices": [{"index": 0, "delta": delta}]})
        return await stream(request, [*found, chunk(body, None, finish), {"choices": [], "usage": USAGE}])

    return behave


async def both(gateway: ScriptedGateway, behaviour: Behaviour, **body: Any) -> Any:
    """Return the message of a whole answer, after checking that the streamed one is the same."""
    client, server, _ = gateway
    server.always = behaviour
    whole, found = await ask(client, **body), await events(client, **body)
    kinds = [event["type"] for event in found if event["type"] != "ping"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    start, end = found[0]["message"], found[-2]
    assert (start["role"], start["content"], start["stop_reason"]) == ("assistant", [], None)
    assert end["usage"] == whole["usage"]
    assert end["delta"] == {key: whole[key] for key in end["delta"]}
    blocks: dict[int, Any] = {}
    for event in found:
        if event["type"] == "content_block_start":
            blocks[event["index"]] = dict(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            name = {"input_json_delta": "json"}.get(delta["type"], delta["type"].removesuffix("_delta"))
            block[name] = block.get(name, "") + delta.get(name, delta.get("partial_json", ""))
    assert [block["type"] for block in blocks.values()] == [block["type"] for block in whole["content"]]
    for block, streamed in zip(whole["content"], blocks.values(), strict=True):
        for name in {"text", "thinking", "signature"} & block.keys():
            assert streamed[name] == block[name]
    return whole


async def test_usage_does_not_count_cached_tokens_twice(scripted_gateway: ScriptedGateway) -> None:
    message = await both(scripted_gateway, ends("stop", "a", "b"))
    assert message["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 20,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 5},
        "service_tier": "standard",
    }
    assert message["id"].startswith("msg_")


@pytest.mark.parametrize(
    ("behaviour", "reason", "sequence"),
    [
        (ends("stop", "a"), "end_turn", None),
        (ends("length", "a"), "max_tokens", None),
        (ends("content_filter", "a"), "refusal", None),
        (ends("stop", "a", stop_reason="END"), "stop_sequence", "END"),
        (ends("stop", "a", stop_reason="other"), "end_turn", None),
        (calls("{}"), "tool_use", None),
        (calls('{"a": 1', finish="length"), "max_tokens", None),
        (calls('{"a', finish="length"), "max_tokens", None),
    ],
)
async def test_reasons_to_stop(
    scripted_gateway: ScriptedGateway, behaviour: Behaviour, reason: str, sequence: str | None
) -> None:
    message = await both(scripted_gateway, behaviour, max_tokens=9, tools=[TOOL], stop_sequences=["END"])
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


async def test_a_full_window_is_a_reason_of_its_own(scripted_gateway: ScriptedGateway) -> None:
    message = await both(scripted_gateway, ends("length", "a"), max_tokens=64_000)
    assert message["stop_reason"] == "model_context_window_exceeded"


async def test_tool_calls_are_blocks(scripted_gateway: ScriptedGateway) -> None:
    message = await both(scripted_gateway, calls('{"a', '": [1, ', "2]}"), tools=[TOOL])
    (block,) = message["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "look", {"a": [1, 2]})
    broken = await both(scripted_gateway, calls("{'a': 1}"), tools=[TOOL])
    assert broken["content"][0]["input"] == {"a": 1}, "the engine has repaired it"


async def test_reasoning_comes_back_and_is_read_again(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    message = await both(scripted_gateway, thinks("One and ", "one."))
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    answer = {"role": "assistant", "content": message["content"]}
    await ask(client, messages=[*ASKED, answer, *ASKED])
    assert server.asked[-1]["messages"][1] == {
        "role": "assistant",
        "content": "Two.",
        "reasoning_content": "One and one.",
    }
    message["content"][0]["thinking"] += " Or three."
    await ask(client, messages=[*ASKED, answer, *ASKED])
    assert "reasoning_content" not in server.asked[-1]["messages"][1], "the signature is of another text"


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        ({"type": "disabled"}, []),
        ({"type": "adaptive", "display": "omitted"}, [""]),
        ({"type": "enabled", "budget_tokens": 1_024}, ["One."]),
    ],
)
async def test_the_request_decides_what_is_shown_of_reasoning(
    scripted_gateway: ScriptedGateway, thinking: Any, shown: list[str]
) -> None:
    message = await both(scripted_gateway, thinks("One."), thinking=thinking)
    assert [block["thinking"] for block in message["content"] if block["type"] == "thinking"] == shown


async def test_an_empty_answer_has_an_empty_text(scripted_gateway: ScriptedGateway) -> None:
    message = await both(scripted_gateway, ends("stop"))
    assert message["content"] == [{"type": "text", "text": "", "citations": None}]


async def test_a_stream_that_breaks_off_ends_with_an_error(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [breaks_off("one ")]
    *before, last = await events(client)
    assert (last["type"], last["error"]["type"]) == ("error", "overloaded_error")
    assert last["request_id"].startswith("req_")
    assert text_of(before) == "one "


async def test_a_failure_before_the_first_event_has_its_status(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.always = breaks_off()
    status, told = await send(client, stream=True)
    assert (status, told["error"]["type"]) == (529, "overloaded_error")


async def test_a_silent_stream_begins_and_is_kept_alive(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MessageSerializer, "opening_seconds", 0.05)
    monkeypatch.setattr("gateway.http.sse.HEARTBEAT_SECONDS", 0.05)
    client, server, _ = scripted_gateway

    async def waits(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.4)
        return await says("late")(request, body)

    server.script = [waits]
    found = [event["type"] for event in await events(client)]
    assert found[0] == "message_start"
    assert found.index("content_block_start") > 3, "pings while the server is silent"
    assert found.count("message_start") == 1
    assert found[-1] == "message_stop"


async def test_a_deferred_message_is_streamed_as_a_reference(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    found = await events(client, {"X-Session-Id": "s"}, semantic={"output": "later", "defer": True})
    assert text_of(found) == "<<later>>"
    assert found[-2]["delta"]["semantic"]["output"] == found[0]["message"]["semantic"]["output"] == "later"
    assert found[-2]["usage"]["output_tokens"] == 0
