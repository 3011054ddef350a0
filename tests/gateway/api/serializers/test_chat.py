"""gateway/api/serializers/chat.py: streamed tool calls as clients read them, for all splits of an answer."""

import json
import random
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.prompts.tool_calls.formats import HERMES
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway
from tests.fakes.scripted_server import chunk, says, stream
from tests.gateway.prompts.tool_calls.test_parser import cut

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "add")]
ADD, WEATHER = ("add", '{"a": [1, {"b": "}"}]}'), ("weather", '{"city": "Bonn"}')


def written(*calls: tuple[str, str]) -> str:
    return "\n".join(
        f'{HERMES.begin}{{"name": "{name}", "arguments": {arguments}}}{HERMES.end}' for name, arguments in calls
    )


async def chunks_of(client: GatewayClient, **body: Any) -> list[dict[str, Any]]:
    asked = {"model": "fake", "messages": [{"role": "user", "content": "Go."}], "stream": True, **body}
    async with client.post("/v1/chat/completions", json=asked) as answer:
        assert answer.status == 200
        lines = (await answer.text()).splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def first_entries(chunks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the calls that a client gets which reads only `tool_calls[0]` of each chunk, as llama-index does."""
    calls: list[dict[str, Any]] = []
    for told in chunks:
        for choice in told["choices"]:
            if entries := choice["delta"].get("tool_calls"):
                entry = entries[0]
                if not calls or calls[-1]["index"] != entry["index"]:
                    calls.append({"index": entry["index"], "name": "", "arguments": ""})
                calls[-1]["name"] += entry["function"].get("name") or ""
                calls[-1]["arguments"] += entry["function"].get("arguments") or ""
    return [(call["name"], call["arguments"]) for call in calls]


def helpers(chunks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the calls that the openai package's helper gets."""
    state: Any = ChatCompletionStreamState()
    for told in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(told))
    calls = state.get_final_completion().choices[0].message.tool_calls or []
    return [(call.function.name, call.function.arguments) for call in calls]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (written(ADD), "", [ADD]),
        (written(ADD, WEATHER, ADD), "", [ADD, WEATHER, ADD]),
        ("I look.\n" + written(WEATHER, ADD) + "\nThat was it.", "I look.That was it.", [WEATHER, ADD]),
        ('{"name": "add", "arguments": {}}', "", [("add", "{}")]),
        ("No call <tool at all.", "No call <tool at all.", []),
        ("It ends like a mark: <tool_", "It ends like a mark: <tool_", []),
    ],
)
async def test_a_chunk_has_one_entry_however_the_answer_arrives(
    scripted_gateway: ScriptedGateway, text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    client, server, _ = scripted_gateway
    for seed in range(25):
        pieces = cut(text, random.Random(seed)) if seed else [text]
        server.script = [says(*pieces)]
        chunks = await chunks_of(client, tools=TOOLS)
        choices = [choice for told in chunks for choice in told["choices"]]
        deltas = [choice["delta"] for choice in choices]
        assert all(len(delta.get("tool_calls") or ()) <= 1 for delta in deltas), pieces
        assert not any(delta.get("tool_calls") and delta.get("content") for delta in deltas)
        assert first_entries(chunks) == helpers(chunks) == calls, pieces
        assert "".join(delta.get("content") or "" for delta in deltas) == said
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
            "tool_calls" if calls else "stop"
        ]
        assert choices[-1]["delta"] == {}, "the last chunk says why it ended, and nothing else"


async def test_calls_that_an_upstream_server_sends_in_one_chunk_are_separated(
    scripted_gateway: ScriptedGateway,
) -> None:
    client, server, _ = scripted_gateway

    async def behave(request: Any, body: dict[str, Any]) -> Any:
        entries = [
            {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for index, (name, arguments) in enumerate((ADD, WEATHER))
        ]
        event = {"id": "x", "model": "fake", "choices": [{"index": 0, "delta": {"tool_calls": entries}}]}
        return await stream(request, [event, chunk(body, None, "tool_calls")])

    server.script = [behave]
    chunks = await chunks_of(client, tools=TOOLS)
    assert all(len(choice["delta"].get("tool_calls") or ()) <= 1 for told in chunks for choice in told["choices"])
    assert first_entries(chunks) == helpers(chunks) == [ADD, WEATHER]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("text", "finish", "said", "calls", "reason"),
    [
        # cut off by its length: the text of a call is not shown, and its arguments end where they were cut
        ('I look.\n<tool_call>\n{"name": "ad', "length", "I look.", [], "length"),
        ('<tool_call>\n{"name": "add", "arg', "length", "", [("add", "")], "length"),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1', "length", "", [("add", '{"a": 1')], "length"),
        # by a stop string: nobody is told to make a call with broken arguments
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1', "stop", "", [("add", '{"a": 1')], "stop"),
        # and what only looked like a call is text
        ('<tool_call>\n{"name": "ad', "stop", '<tool_call>\n{"name": "ad', [], "stop"),
        ("<tool_call>\nnothing", "length", "<tool_call>\nnothing", [], "length"),
    ],
)
async def test_a_call_that_is_cut_off(
    scripted_gateway: ScriptedGateway,
    streamed: bool,
    text: str,
    finish: str,
    said: str,
    calls: list[tuple[str, str]],
    reason: str,
) -> None:
    client, server, _ = scripted_gateway
    for pieces in ([text], [*text]):
        server.script = [says(*pieces, finish=finish)]
        if streamed:
            chunks = await chunks_of(client, tools=TOOLS)
            choices = [choice for told in chunks for choice in told["choices"]]
            assert "".join(choice["delta"].get("content") or "" for choice in choices) == said
            assert (first_entries(chunks), choices[-1]["finish_reason"]) == (calls, reason)
            continue
        asked = {"model": "fake", "messages": [{"role": "user", "content": "Go."}], "tools": TOOLS}
        async with client.post("/v1/chat/completions", json=asked) as answer:
            (choice,) = (await answer.json())["choices"]
        message = choice["message"]
        made = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        assert (message["content"] or "", made, choice["finish_reason"]) == (said, calls, reason)
        again = {**asked, "messages": [*asked["messages"], message, *_answers(message)]}
        async with client.post("/v1/chat/completions", json=again) as answer:
            assert answer.status == 200, "what was answered can be sent back"


EDIT = {"type": "custom", "custom": {"name": "edit"}}
PATCH = 'a "b"\n\\ é \U0001f600 {"input": "x"}'


def inputs(chunks: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return type, name, and arguments or input of each streamed call. Checks that fields fit the type."""
    calls: list[dict[str, Any]] = []
    for told in chunks:
        for choice in told["choices"]:
            for entry in choice["delta"].get("tool_calls") or ():
                if entry["index"] == len(calls):
                    assert entry["id"]
                    calls.append({"type": entry["type"], "texts": []})
                call = calls[entry["index"]]
                piece = entry[call["type"]]
                assert not {"function", "custom"} - {call["type"]} & entry.keys()
                call["texts"].append(piece["arguments" if call["type"] == "function" else "input"])
                call.setdefault("name", piece.get("name"))
    return [(call["type"], call["name"], "".join(call["texts"])) for call in calls]


@pytest.mark.parametrize("ascii", [False, True])
async def test_calls_of_custom_tools_have_an_input(scripted_gateway: ScriptedGateway, ascii: bool) -> None:
    client, server, _ = scripted_gateway
    edit = ("edit", json.dumps({"input": PATCH}, ensure_ascii=ascii))
    text = "I edit.\n" + written(edit, ADD, ("edit", '{"other": 1}'), ("edit", "{}"), edit)
    expected = [
        ("custom", "edit", PATCH),
        ("function", *ADD),
        ("custom", "edit", '{"other": 1}'),
        ("custom", "edit", "{}"),
        ("custom", "edit", PATCH),
    ]
    for seed in range(12):
        pieces = cut(text, random.Random(seed)) if seed else [text]
        server.script = [says(*pieces)]
        chunks = await chunks_of(client, tools=[*TOOLS, EDIT])
        assert inputs(chunks) == expected, pieces
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    server.script = [says(text)]
    body = {"model": "fake", "messages": [{"role": "user", "content": "Go."}], "tools": [*TOOLS, EDIT]}
    async with client.post("/v1/chat/completions", json=body) as answer:
        told = await answer.json()
    message = ChatCompletion.model_validate(told, strict=True).choices[0].message
    calls = message.tool_calls or []
    assert [
        (call.type, call.custom.name, call.custom.input)
        if call.type == "custom"
        else (call.type, call.function.name, call.function.arguments)
        for call in calls
    ] == expected
    history = [*body["messages"], told["choices"][0]["message"], *_answers(told["choices"][0]["message"])]
    async with client.post("/v1/chat/completions", json={**body, "messages": history}) as answer:
        assert answer.status == 200, "the answer can be sent back"
    sent = server.asked[-1]["messages"][1]["tool_calls"]
    assert {call["type"] for call in sent} == {"function"}
    assert json.loads(sent[0]["function"]["arguments"]) == {"input": PATCH}


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ('<tool_call>\n{"name": "edit", "arguments": {"input": "a\\n', "length", "a\n"),
        ('<tool_call>\n{"name": "edit", "arguments": {"inp', "length", '{"inp'),
        ('<tool_call>\n{"name": "edit", "arguments": ', "length", ""),
        ('<tool_call>\n{"name": "edit", "arguments": {"input": "a', "stop", "a"),
    ],
)
async def test_a_custom_tools_input_that_is_cut_off(
    scripted_gateway: ScriptedGateway, text: str, finish: str, expected: str
) -> None:
    client, server, _ = scripted_gateway
    for pieces in ([text], [*text]):
        server.script = [says(*pieces, finish=finish), says(text, finish=finish)]
        chunks = await chunks_of(client, tools=[EDIT])
        assert inputs(chunks) == [("custom", "edit", expected)]
        assert chunks[-1]["choices"][0]["finish_reason"] == finish
        body = {"model": "fake", "messages": [{"role": "user", "content": "Go."}], "tools": [EDIT]}
        async with client.post("/v1/chat/completions", json=body) as answer:
            (choice,) = (await answer.json())["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert (call["custom"], choice["finish_reason"]) == ({"name": "edit", "input": expected}, finish)


def _answers(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "tool", "tool_call_id": call["id"], "content": "cut off"} for call in message.get("tool_calls", ())
    ]


async def test_a_call_that_a_stop_string_ended_is_incomplete(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says('<tool_call>\n{"name": "add", "arguments": {"a": 1', finish="stop")]
    body = {"model": "fake", "input": "Go.", "tools": [{"type": "function", "name": "add"}]}
    async with client.post("/v1/responses", json=body) as answer:
        (item,) = (await answer.json())["output"]
    assert (item["type"], item["arguments"], item["status"]) == ("function_call", '{"a": 1', "incomplete")


async def test_every_chunk_has_the_usage_so_far_on_request(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    for options, n in (({"continuous_usage_stats": True}, 1), ({"continuous_usage_stats": True}, 3), ({}, 2)):
        server.script = [says("one ", "two ", "three", usage=usage)] * n
        chunks = await chunks_of(client, n=n, stream_options={"include_usage": True, **options})
        *parts, last = chunks
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3 * n
        if not options:
            assert all(told["usage"] is None for told in parts)
            continue
        counts = [told["usage"]["completion_tokens"] for told in parts]
        assert counts == sorted(counts)
        assert counts[0] > 0
        assert parts[-1]["usage"] == last["usage"]
        assert all(
            told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]
            for told in parts
        )
    server.script = [says("one ", "two ")]
    chunks = await chunks_of(client, stream_options={"continuous_usage_stats": True})
    assert not any("usage" in told for told in chunks), "only beside include_usage, as in vLLM"
