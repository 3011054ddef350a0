"""compat/anthropic/requests.py: fields of Messages requests, and which of them are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from compat.anthropic import CountTokensRequest, MessagesRequest
from compat.anthropic.requests import MAX_TOOLS
from compat.bounds import MAX_INTEGER
from gateway.errors import RequestError
from gateway.http.json_body import validate

MESSAGES = [{"role": "user", "content": "x"}]
VALID: dict[str, Any] = {"model": "m", "max_tokens": 1, "messages": MESSAGES}
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
SEARCH: dict[str, Any] = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}


def parsed(**fields: Any) -> MessagesRequest:
    return validate({**VALID, **fields}, MessagesRequest)


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": {"type": "ephemeral"}},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"metadata": {"user_id": "u"}},
        {"service_tier": "standard_only"},
        {"output_config": {"effort": "xhigh", "task_budget": {"type": "tokens", "total": 9}}},
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1_024}},
        {"thinking": {"type": "between_tools"}},
        {"speed": "fast", "inference_geo": "eu", "betas": ["x"], "fallbacks": ["m"], "diagnostics": {}},
        {"tools": [{**TOOL, "type": "custom", "defer_loading": True, "input_examples": [{}], "strict": True}]},
        {"tools": [SEARCH, {"type": "mcp_toolset", "mcp_server_name": "s"}], "tool_choice": {"type": "any"}},
        {"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
        {"stop_sequences": ["a", "b"], "temperature": 1, "top_k": 0, "top_p": 0.5},
        {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "scope": "global"}}]},
    ],
)
def test_hints_and_tools_of_agents_are_accepted(fields: dict[str, Any]) -> None:
    parsed(**fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"stop_sequences": ["x" * 1_001]}, "stop_sequences"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{**TOOL, "name": "no spaces"}]}, "tools.0.name"),
        ({"tools": [{**TOOL, "type": "function"}]}, "tools.0.type"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{**TOOL, "strict": True, "input_schema": {"not": {}}}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"$ref": "#"}}}},
            "output_config.format.schema",
        ),
        ({"semantic": {"unheard_of": 1}}, "semantic.unheard_of"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_an_error_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        parsed(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_only_one_place_may_have_a_schema() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert parsed(output_format=form).json_format == parsed(output_config={"format": form}).json_format
    with pytest.raises(RequestError) as refused:
        parsed(output_format=form, output_config={"format": form})
    assert refused.value.param == "output_format"


def test_the_tools_of_anthropic_are_not_shown() -> None:
    assert [tool.name for tool in parsed(tools=[SEARCH, TOOL]).client_tools] == ["f"]


def test_a_tool_call_needs_its_result() -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]}
    with pytest.raises(RequestError) as refused:
        parsed(messages=[*MESSAGES, call])
    assert refused.value.param == "messages.1.content"


@pytest.mark.parametrize(
    ("system", "texts"),
    [
        ("x-anthropic-billing-header: cc_version=2; cch=1f;\nBe short.", ["Be short."]),
        ("x-anthropic-billing-header: cc_version=2;", []),
        ("Be short.\nx-anthropic-billing-header: a", ["Be short.\nx-anthropic-billing-header: a"]),
        ([{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "b"}], ["b"]),
        ([{"type": "text", "text": "x-anthropic-billing-header: a\nb"}, {"type": "text", "text": "c"}], ["b", "c"]),
        ("", []),
        (None, []),
    ],
)
def test_the_billing_line_is_not_part_of_the_prompt(system: Any, texts: list[str]) -> None:
    assert [block.text for block in parsed(system=system).system_blocks] == texts


@pytest.mark.parametrize("kind", [MessagesRequest, CountTokensRequest])
def test_the_number_of_tools_is_limited(kind: Any) -> None:
    tools = [{**TOOL, "name": f"f{number}"} for number in range(MAX_TOOLS + 1)]
    body = {key: VALID[key] for key in ("model", "messages", "max_tokens") if key in kind.model_fields}
    assert len(kind.model_validate({**body, "tools": tools[:-1]}).client_tools) == MAX_TOOLS
    with pytest.raises(ValidationError):
        kind.model_validate({**body, "tools": tools})


def test_a_huge_number_of_tokens_means_no_limit() -> None:
    assert parsed(max_tokens=2**62).max_tokens == MAX_INTEGER


def test_a_null_counts_as_omitted() -> None:
    nulls = dict.fromkeys(name for name in MessagesRequest.model_fields if name not in VALID)
    assert parsed(**nulls, container=None, unheard_of=None) == parsed()
