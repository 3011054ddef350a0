"""gateway/api/openai/chat.py: arguments of earlier tool calls, as each kind of template reads them."""

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
from tests.fakes.checkpoints import write_byte_tokenizer
from tests.fakes.in_process_gateway import ScriptedGateway

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
