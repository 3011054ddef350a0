"""gateway/api/openai/tools.py: which tools a model may or must call, and how an answer is constrained."""

import json
from typing import Any

import pytest

from compat.openai import ChatCompletionRequest
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.api.openai.tools import constrain_tool_calls, tool_call_parser_factory, tools_of, unenforced_warning
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder
from tests.fakes.checkpoints import write_byte_tokenizer

NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": NUMBER}}
NOW = {"type": "function", "function": {"name": "now"}}
NAMED = {"type": "function", "function": {"name": "add"}}


def request(*tools: Any, **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": list(tools) or None, **fields}
    return ChatCompletionRequest.model_validate(body)


def served(tokenizer: Any) -> ServedModel:
    prompts = PassthroughPromptBuilder() if tokenizer is None else TemplatePromptBuilder(tokenizer)
    return ServedModel("m", None, None, tokenizer, prompts)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("bytes")
    write_byte_tokenizer(folder)
    return served(Tokenizer(folder))


ELSEWHERE = served(None)


@pytest.mark.parametrize(
    ("fields", "choice", "callable_", "parallel"),
    [
        ({}, "auto", [], None),
        ({"tool_choice": "auto"}, "auto", [], None),
        ({"tool_choice": "none"}, "none", [], None),
        ({"tool_choice": "required"}, "forced", ["add", "now"], None),
        ({"tool_choice": NAMED, "parallel_tool_calls": False}, "forced", ["add"], False),
        ({"tool_choice": "required", "parallel_tool_calls": True}, "forced", ["add", "now"], True),
    ],
)
def test_which_tools_may_or_must_be_called(
    fields: dict[str, Any], choice: str, callable_: list[str], parallel: bool | None
) -> None:
    tools = tools_of(request(ADD, NOW, **fields))
    assert tools is not None
    assert [tool.name for tool in tools.known] == ["add", "now"]
    assert tools.choice == choice
    if callable_:
        assert [tool.name for tool in tools.callable] == callable_
    assert tools.parallel_tool_calls is parallel


def test_a_request_without_tools() -> None:
    assert tools_of(request()) is None
    assert tool_call_parser_factory(request(), ELSEWHERE) is None


def test_only_strict_and_forced_tools_have_their_schema_enforced(local: ServedModel) -> None:
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    forms = []
    for body in (request(ADD), request(strict), request(ADD, tool_choice="required")):
        tools = tools_of(body)
        assert tools is not None
        assert tools.request_fields()["tools"][0]["function"]["parameters"] == NUMBER, (
            "an upstream server sees the schema"
        )
        sampling = constrain_tool_calls(SamplingParams(), tools, local)
        forms.append((sampling.grammar or "") + (sampling.json_schema or ""))
    assert ["integer" in form for form in forms] == [False, True, True]


@pytest.mark.parametrize(
    ("fields", "finds"),
    [
        ({}, True),
        ({"tool_choice": "none"}, False),
        ({"tool_choice": "required"}, True),
    ],
)
def test_answers_are_searched_for_calls_unless_the_client_forbids_them(
    local: ServedModel, fields: dict[str, Any], finds: bool
) -> None:
    assert (tool_call_parser_factory(request(ADD, **fields), local) is not None) == finds


def test_a_forced_call_is_bare_json_only_where_the_answer_is_constrained_here(local: ServedModel) -> None:
    forced = request(ADD, tool_choice="required")
    transformed = request(ADD, tool_choice="required", semantic={"session": "s", "transform": {"strip": True}})
    parsers = [
        tool_call_parser_factory(forced, local),
        tool_call_parser_factory(forced, ELSEWHERE),
        tool_call_parser_factory(transformed, local),
    ]
    assert [getattr(parser, "forced", None) for parser in parsers] == [True, False, False]


def test_the_schema_of_a_forced_call_replaces_other_forms_and_stops(local: ServedModel) -> None:
    tools = tools_of(request(ADD, tool_choice="required"))
    assert tools is not None
    sampling = constrain_tool_calls(SamplingParams(regex="a+", stop=("x",), stop_token_ids=(1,)), tools, local)
    assert (sampling.regex, sampling.grammar, sampling.stop, sampling.stop_token_ids) == (None, None, (), ())
    assert "add" in json.dumps(json.loads(sampling.json_schema or ""))


def test_a_form_of_the_client_has_priority_over_calls_that_are_not_forced(local: ServedModel) -> None:
    tools = tools_of(request(ADD))
    assert tools is not None
    assert constrain_tool_calls(SamplingParams(regex="a+"), tools, local) == SamplingParams(regex="a+")
    assert constrain_tool_calls(SamplingParams(stop=("x",)), tools, local).stop == ("x",)


def test_an_upstream_server_constrains_calls_itself() -> None:
    tools = tools_of(request(ADD, tool_choice="required"))
    assert tools is not None
    assert constrain_tool_calls(SamplingParams(stop=("x",)), tools, ELSEWHERE) == SamplingParams(stop=("x",))


UNIQUE = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "items": {"not": {}}}}}


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"tool_choice": "required"}, "not enforced in the arguments of tag: uniqueItems, not"),
        ({"tool_choice": {"type": "function", "function": {"name": "tag"}}}, "tag: uniqueItems, not"),
        ({"tool_choice": NAMED}, ""),
        ({"tool_choice": "auto"}, ""),
        ({"tool_choice": "none"}, ""),
    ],
)
def test_a_warning_names_keywords_that_do_not_constrain_a_forced_call(
    local: ServedModel, fields: dict[str, Any], warning: str
) -> None:
    tag = {"type": "function", "function": {"name": "tag", "parameters": UNIQUE}}
    said = unenforced_warning(request(ADD, tag, **fields), local)
    assert said.endswith(warning)
    assert bool(said) == bool(warning)
    assert unenforced_warning(request(ADD, tag, **fields), ELSEWHERE) == ""
