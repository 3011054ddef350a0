"""gateway/api/openai/chat.py: arguments of earlier tool calls, as each kind of template reads them; custom tools."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from compat.openai import Message
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.api.openai.chat import chat_prompt
from gateway.errors import RequestError
from gateway.graph.segments import Slot
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder
from tests.fakes.call_counter import CallCounter
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.hostile_values import MAX_CALLS, VALUES, places, with_value
from tests.fakes.in_process_gateway import ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, says

CALL = "{% for m in messages %}{% for call in m.tool_calls %}{% set f = call.function %}"
ENDS = "{% endfor %}{% endfor %}{% if tools %}{% endif %}"
TEMPLATES = {
    "tojson": CALL + "{{ f.arguments | tojson }}" + ENDS,
    "text or tojson, as Qwen2.5": CALL + "{{ f.arguments if f.arguments is string else f.arguments | tojson }}" + ENDS,
    "items of a mapping, as GLM": CALL + "{% for k, v in f.arguments.items() %}{{ k }}={{ v }};{% endfor %}" + ENDS,
    "the filter, as Qwen3-Coder": CALL + "{% for k, v in f.arguments | items %}{{ k }}={{ v }};{% endfor %}" + ENDS,
}
SHOWN = {
    ("tojson", '{"a": 1}'): '{"a": 1}',
    ("tojson", '{"a'): '"{\\"a"',
    ("text or tojson, as Qwen2.5", '{"a": 1}'): '{"a": 1}',
    ("text or tojson, as Qwen2.5", '{"a'): '{"a',
    ("items of a mapping, as GLM", '{"a": 1}'): "a=1;",
    ("items of a mapping, as GLM", '{"a'): 'arguments={"a;',
    ("the filter, as Qwen3-Coder", '{"a": 1}'): "a=1;",
    ("the filter, as Qwen3-Coder", '{"a'): 'arguments={"a;',
}


def history(arguments: str) -> list[Message]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    return [Message.model_validate(message) for message in messages]


def model(tokenizer: Any) -> ServedModel:
    return ServedModel("m", None, None, tokenizer, TemplatePromptBuilder(tokenizer))


@pytest.mark.parametrize(("template", "arguments"), SHOWN)
def test_every_template_shows_the_arguments_of_earlier_calls(tmp_path: Path, template: str, arguments: str) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[template])
    tokenizer = Tokenizer(tmp_path)
    text, _ = chat_prompt(model(tokenizer), history(arguments), Slot(None, SamplingParams())).segments
    assert tokenizer.decode(list(text.tokens)) == SHOWN[template, arguments]  # type: ignore[union-attr]


def test_a_template_that_refuses_for_another_reason_refuses(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no') }}{% if tools %}{% endif %}")
    for arguments in ("{}", "{"):
        with pytest.raises(RequestError, match="no"):
            chat_prompt(model(Tokenizer(tmp_path)), history(arguments), Slot(None, SamplingParams()))


@pytest.mark.parametrize("arguments", ['{"a": 1}', '{"a', "[1]", '"x"', "3"])
async def test_upstream_servers_receive_arguments_unchanged(scripted_gateway: ScriptedGateway, arguments: str) -> None:
    client, server, _ = scripted_gateway
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    for headers in ({}, {"X-Semantic-Session": "s"}):
        body = {"model": "fake", "messages": messages}
        async with client.post("/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200
        (told,) = server.asked[-1]["messages"][1]["tool_calls"]
        assert told["function"] == {"name": "f", "arguments": arguments}


LARK = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"+'}}
REGEX = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}


@pytest.mark.parametrize("format", [{"type": "text"}, LARK, REGEX])
@pytest.mark.parametrize("written", ["aaa", "b"])
async def test_upstream_servers_get_custom_tools_as_functions(
    scripted_gateway: ScriptedGateway, format: Any, written: str
) -> None:
    client, server, _ = scripted_gateway
    tools = [
        {"type": "custom", "custom": {"name": "edit", "description": "Edits.", "format": format}},
        {"type": "function", "function": {"name": "other"}},
    ]
    named = {"type": "custom", "custom": {"name": "edit"}}
    messages = [{"role": "user", "content": "x"}]
    server.script = [says(f'<tool_call>\n{{"name": "edit", "arguments": {{"input": "{written}"}}}}\n</tool_call>')]
    body = {"model": "fake", "messages": messages, "tools": tools, "tool_choice": named}
    async with client.post("/v1/chat/completions", json=body) as answer:
        (choice,) = (await answer.json())["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["custom"] == {"name": "edit", "input": written}
    assert ("schema_violation" in choice) == (written == "b" and format["type"] == "grammar")
    sent = server.asked[-1]
    assert [tool["type"] for tool in sent["tools"]] == ["function", "function"]
    function = sent["tools"][0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "edit"}}


CUSTOM_REQUEST: dict[str, Any] = {
    "model": "fake",
    "messages": [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "custom", "index": 0, "custom": {"name": "edit", "input": "a"}},
                {"id": "b", "type": "function", "function": {"name": "other", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ],
    "tools": [
        {"type": "custom", "custom": {"name": "edit", "description": "d", "format": LARK}},
        {"type": "custom", "custom": {"name": "move", "format": REGEX}},
        {"type": "function", "function": {"name": "other"}},
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [
                {"type": "custom", "custom": {"name": "edit"}},
                {"type": "function", "function": {"name": "other"}},
            ],
        },
    },
}


async def test_the_request_with_custom_tools_is_accepted(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    async with client.post("/v1/chat/completions", json=CUSTOM_REQUEST) as answer:
        assert answer.status == 200, await answer.text()
    assert [tool["function"]["name"] for tool in server.asked[-1]["tools"]] == ["edit", "other"]


@pytest.mark.parametrize("number", range(len(VALUES)))
async def test_a_wrong_value_in_custom_tools_is_no_server_error(scripted_gateway: ScriptedGateway, number: int) -> None:
    client, *_ = scripted_gateway
    for place in places(CUSTOM_REQUEST):
        body = json.dumps(with_value(CUSTOM_REQUEST, place, VALUES[number]))
        headers = {"Content-Type": "application/json"}
        with CallCounter() as calls:
            async with client.post("/v1/chat/completions", data=body, headers=headers) as answer:
                told = await answer.json()
        assert answer.status < 500, (place, told)
        assert calls.count < MAX_CALLS, place
        assert answer.status == 200 or told["error"]["message"], place


async def test_hints_change_nothing_and_the_answer_says_so(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert "service_tier" not in await answer.json()
    plain = server.asked[-1]
    hints = {"store": True, "service_tier": "priority", "prompt_cache_options": {"mode": "implicit"}}
    async with client.post("/v1/chat/completions", json={**body, **hints}) as answer:
        told = await answer.json()
    assert ChatCompletion.model_validate(told).service_tier == "default"
    assert server.asked[-1] == plain


@pytest.mark.parametrize(
    ("option", "headers", "removes"),
    [
        ("agents", {"X-Claude-Code-Session-Id": "1"}, True),
        ("agents", {}, False),
        ("on", {}, True),
        ("off", {"X-Claude-Code-Session-Id": "1"}, False),
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_the_attribution_line_of_an_agent_is_removed(
    path: str, option: str, headers: dict[str, str], removes: bool
) -> None:
    line = "x-anthropic-billing-header: cc_version=2.1; cch=1;\n"
    messages = [{"role": "system", "content": f"{line}Be brief."}, {"role": "user", "content": f"{line}Hello"}]
    async with ScriptedServer() as server, gateway_before(server, normalize_prompts=option) as (client, _):
        server.always = says("Hi")
        body = {"model": "fake", "input" if path == "responses" else "messages": messages}
        async with client.post(f"/v1/{path}", json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        system, user = server.asked[-1]["messages"]
    assert system["content"] == ("Be brief." if removes else f"{line}Be brief.")
    assert user["content"] == f"{line}Hello"
