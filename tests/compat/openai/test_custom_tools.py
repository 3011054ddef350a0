"""compat/openai/custom_tools.py: custom tools of chat completions, as the functions that a model reads."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletionCustomToolParam
from pydantic import TypeAdapter

from compat.anthropic import MessagesRequest
from compat.openai import ChatCompletionRequest
from compat.openai.custom_tools import CustomFunction, InputGrammar
from compat.openai.responses import ResponseRequest
from gateway.errors import RequestError
from gateway.http.json_body import validate

LARK = {"syntax": "lark", "definition": 'start: "a"+'}
REGEX = {"syntax": "regex", "definition": "[ab]+"}
FORMATS: list[Any] = [
    None,
    {"type": "text"},
    {"type": "grammar", "grammar": LARK},
    {"type": "grammar", "grammar": REGEX},
]


def custom(**fields: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": "edit", "description": "Edits.", **fields}}


def request(*tools: Any, **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": list(tools), **fields}
    return validate(body, ChatCompletionRequest)


@pytest.mark.parametrize("format", FORMATS)
def test_a_tool_is_the_same_function_as_in_a_response(format: Any) -> None:
    tool = custom() if format is None else custom(format=format)
    TypeAdapter(ChatCompletionCustomToolParam).validate_python(tool)
    (definition,) = request(tool).tools or ()
    flat = None if format is None else {"type": format["type"], **format.get("grammar", {})}
    other = {"type": "custom", "name": "edit", "description": "Edits.", **({} if flat is None else {"format": flat})}
    response = ResponseRequest.model_validate({"model": "m", "input": "x", "tools": [other]})
    (expected,) = response.chat.tools or ()
    assert isinstance(definition.function, CustomFunction)
    assert definition.function == expected.function
    assert definition.function.strict


def test_grammars_are_described_and_enforced() -> None:
    lark, regex = (
        tool.function
        for tool in request(
            *(custom(name=name, format=format) for name, format in (("a", FORMATS[2]), ("b", FORMATS[3])))
        ).tools
        or ()
    )
    assert isinstance(lark, CustomFunction)
    assert lark.input_lark == LARK["definition"]
    assert LARK["definition"] in (lark.description or "")
    assert regex.parameters is not None
    assert regex.parameters["properties"]["input"] == {"type": "string", "pattern": "^(?:[ab]+)$"}
    assert REGEX["definition"] in (regex.description or "")


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom"}, "tools.0.custom"),
        ({"type": "web_search"}, "tools.0.type"),
        ({"type": "custom", "custom": {}}, "tools.0.custom.name"),
        ({"type": "custom", "function": {"name": "a"}}, "tools.0.custom"),
        (custom(name="a b"), "tools.0.custom.name"),
        (custom(strict=True), "tools.0.custom.strict"),
        (custom(format={"type": "json"}), "tools.0.custom.format.type"),
        (custom(format={"type": "grammar"}), "tools.0.custom.format.grammar"),
        (custom(format={"type": "text", "grammar": LARK}), "tools.0.custom.format.grammar"),
        (custom(format={"type": "grammar", "grammar": {"syntax": "lark"}}), "tools.0.custom.format.grammar.definition"),
        (
            custom(format={"type": "grammar", "grammar": {"syntax": "ebnf", "definition": "a"}}),
            "tools.0.custom.format.grammar.syntax",
        ),
        (
            custom(format={"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: (("}}),
            "tools.0.custom.format.grammar.definition",
        ),
        (
            custom(format={"type": "grammar", "grammar": {"syntax": "regex", "definition": "(?<=a)b"}}),
            "tools.0.custom.format.grammar.definition",
        ),
        (
            custom(format={"type": "grammar", "grammar": {"syntax": "regex", "definition": "a" * 70_000}}),
            "tools.0.custom.format.grammar.definition",
        ),
    ],
)
def test_an_invalid_tool_is_refused_with_its_place(tool: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        request(tool)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_two_tools_have_different_names() -> None:
    with pytest.raises(RequestError, match="two tools have the same name"):
        request(custom(), {"type": "function", "function": {"name": "edit"}})


def test_the_grammars_of_all_tools_have_a_common_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def tools(count: int) -> list[dict[str, Any]]:
        definition = f"(?:{'a' * 50_000})"
        grammar = {"syntax": "regex", "definition": definition}
        return [custom(name=f"t{index}", format={"type": "grammar", "grammar": grammar}) for index in range(count)]

    def flat(count: int) -> list[dict[str, Any]]:
        return [
            {
                "type": "custom",
                "name": f"t{index}",
                "format": {"type": "grammar", **tool["custom"]["format"]["grammar"]},
            }
            for index, tool in enumerate(tools(count))
        ]

    words = "the grammars of all custom tools and the patterns of all strict tools have at most 262144 characters"
    assert request(*tools(2)).custom_tool_names == {"t0", "t1"}
    monkeypatch.delattr(InputGrammar, "check")  # nothing is compiled from here on
    with pytest.raises(RequestError, match=words):
        request(*tools(200))
    namespaces = [{"type": "namespace", "name": f"n{index}", "tools": flat(1)} for index in range(200)]
    additional = [{"type": "additional_tools", "role": "developer", "tools": [space]} for space in namespaces]
    for fields in ({"tools": flat(200)}, {"tools": namespaces}, {"input": additional}):
        with pytest.raises(RequestError, match=words):
            validate({"model": "m", "input": "x", **fields}, ResponseRequest)


def test_the_patterns_of_all_strict_tools_have_the_same_limit() -> None:
    def schema(count: int) -> dict[str, Any]:
        names = {f"p{index}": {"type": "string", "pattern": "a" * 50_000} for index in range(count)}
        return {
            "type": "object",
            "properties": names,
            "required": [*names],
            "additionalProperties": False,
            "patternProperties": {"b" * 50_000: {"type": "string"}},
        }

    def function(strict: bool, index: int, key: str = "parameters") -> dict[str, Any]:
        return {"name": f"f{index}", "strict": strict, key: schema(3)}

    words = "the patterns of all strict tools have at most 262144 characters"
    loose = [{"type": "function", "function": function(False, index)} for index in range(5)]
    assert request(*loose).tools is not None, "they are not compiled"
    strict = [{"type": "function", "function": function(True, index)} for index in range(2)]
    with pytest.raises(RequestError, match=words):
        request(*strict)
    flat = [{"type": "function", **function(True, index)} for index in range(2)]
    with pytest.raises(RequestError, match=words):
        validate({"model": "m", "input": "x", "tools": flat}, ResponseRequest)
    with pytest.raises(RequestError, match=words):
        validate(
            {
                "model": "m",
                "max_tokens": 1,
                "messages": [{"role": "user", "content": "x"}],
                "tools": [function(True, index, "input_schema") for index in range(2)],
            },
            MessagesRequest,
        )
