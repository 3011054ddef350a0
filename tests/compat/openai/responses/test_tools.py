"""compat/openai/responses/tools.py: the functions that a model reads for each type of tool."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.openai import NamedTool
from compat.openai.custom_tools import CustomFunction
from compat.openai.responses import ResponseRequest
from compat.openai.responses.tools import HostedType, McpTool, flat_name, mcp_name
from gateway.errors import RequestError
from gateway.http.json_body import validate

FUNCTION: dict[str, Any] = {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}}
NAMESPACE: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files of the user.",
    "tools": [FUNCTION, {**FUNCTION, "name": "write", "description": "Write it."}],
}
PATCH = {"type": "custom", "name": "patch", "description": "Edit.", "format": {"type": "text"}}
SEARCH = {"type": "tool_search", "execution": "client"}


def request(**fields: Any) -> ResponseRequest:
    return validate({"model": "m", "input": "x", **fields}, ResponseRequest)


def names(body: ResponseRequest) -> list[str]:
    return [tool.function.name for tool in body.chat.tools or ()]


def test_tools_of_a_namespace_are_functions_with_its_name_in_front() -> None:
    body = request(tools=[NAMESPACE, FUNCTION])
    assert names(body) == ["mcp__files__read", "mcp__files__write", "read"]
    assert [(tool.namespace, tool.name) for tool in body.flat_tools.values()] == [
        ("mcp__files", "read"),
        ("mcp__files", "write"),
        (None, "read"),
    ]
    assert body.chat.tools is not None
    first, second, _ = [tool.function.description or "" for tool in body.chat.tools]
    assert first.startswith("Tools mcp__files__*: Files of the user.")
    assert second == "Write it.", "the namespace is described once"
    assert [tool["type"] for tool in body.echoed_tools] == ["namespace", "function"]


def test_long_names_are_short_and_different() -> None:
    long = flat_name("n" * 60, "first"), flat_name("n" * 60, "second"), flat_name("a" * 64, "b" * 64)
    assert all(len(name) == 64 for name in long)
    assert len(set(long)) == 3
    assert flat_name("n" * 60, "first") == long[0], "the next turn has the same name"
    assert flat_name(None, "n" * 64) == "n" * 64


@pytest.mark.parametrize("kind", HostedType.__args__)
def test_tools_that_only_openai_has_are_dropped(kind: str) -> None:
    hosted = {"type": kind, "filters": {"a": [1]}, "server_label": "x"}
    body = request(tools=[hosted, FUNCTION])
    assert names(body) == ["read"]
    assert [tool["name"] for tool in body.echoed_tools] == ["read"], "the answer says what was done"
    assert request(tools=[hosted]).chat.tools is None
    with pytest.raises(RequestError, match="this server has no such tool"):
        request(tools=[hosted], tool_choice={"type": kind})
    with pytest.raises(RequestError, match="there are no tools"):
        request(tools=[hosted], tool_choice="required")


def function_of(tool: dict[str, Any]) -> CustomFunction:
    (definition,) = request(tools=[tool]).chat.tools or ()
    assert isinstance(definition.function, CustomFunction)
    return definition.function


def test_a_custom_tool_is_a_function_with_a_text() -> None:
    for tool in (PATCH, {"type": "custom", "name": "patch"}):
        function = function_of(tool)
        assert function.parameters is not None
        assert function.parameters["properties"] == {"input": {"type": "string"}}
        assert (function.strict, function.input_lark) == (True, None)


def test_the_grammar_of_a_custom_tool_is_enforced_and_described() -> None:
    regex = function_of({**PATCH, "format": {"type": "grammar", "syntax": "regex", "definition": "a|b"}})
    assert regex.parameters is not None
    assert regex.parameters["properties"]["input"] == {"type": "string", "pattern": "^(?:a|b)$"}
    lark = function_of({**PATCH, "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}})
    assert lark.input_lark == 'start: "a"'
    for function in (regex, lark):
        assert "a" in (function.description or "").split(":", 1)[1]
        assert function.strict


def test_deferred_tools_are_hidden_until_a_search_finds_them() -> None:
    deferred = {**FUNCTION, "defer_loading": True}
    inner = {**NAMESPACE, "tools": [deferred, {**PATCH, "defer_loading": True}]}
    assert names(request(tools=[deferred, {"type": "tool_search"}])) == ["read"], "there is no search here"
    body = request(tools=[deferred, inner, SEARCH])
    assert names(body) == ["tool_search"]
    found = {"type": "tool_search_output", "call_id": "c", "tools": [inner]}
    called = {"type": "tool_search_call", "call_id": "c", "arguments": {"query": "files"}, "execution": "client"}
    user = {"role": "user", "content": "x"}
    after = request(tools=[deferred, inner, SEARCH], input=[user, called, found])
    assert names(after) == ["tool_search", "mcp__files__read", "mcp__files__patch"]
    assert names(request(input=[user, {"type": "additional_tools", "role": "developer", "tools": [inner]}])) == [
        "mcp__files__read",
        "mcp__files__patch",
    ]
    _, call, output = after.chat.messages
    assert json.loads((call.tool_calls or [])[0].function.arguments) == {"query": "files"}
    assert json.loads(str(output.content)) == {"found": ["mcp__files"]}


@pytest.mark.parametrize(
    ("choice", "expected", "mode"),
    [
        ({"type": "function", "name": "read"}, None, "mcp__files__read"),
        ({"type": "function", "name": "write", "namespace": "mcp__files"}, None, "mcp__files__write"),
        ({"type": "custom", "name": "patch"}, None, "patch"),
        ({"mode": "auto", "tools": [{"type": "function", "name": "write"}]}, ["mcp__files__write"], "auto"),
        ({"mode": "required", "tools": [{"type": "custom", "name": "patch"}]}, ["patch"], "required"),
        ({"mode": "auto", "tools": [{"type": "namespace", "name": "mcp__files"}, {"type": "web_search"}]}, 2, "auto"),
        ({"mode": "auto", "tools": [{"type": "web_search"}]}, [], None),
    ],
)
def test_a_choice_names_the_tools_that_the_model_may_call(choice: Any, expected: Any, mode: str | None) -> None:
    if "mode" in choice:
        choice["type"] = "allowed_tools"
    body = request(tools=[NAMESPACE, PATCH], tool_choice=choice)
    expected = 3 if expected is None else expected
    assert (len(names(body)) if isinstance(expected, int) else names(body)) == expected
    chosen = body.chat.tool_choice
    assert (chosen.function.name if isinstance(chosen, NamedTool) else chosen) == mode
    assert body.echoed_tool_choice["type"] == choice["type"]  # type: ignore[index]
    assert [tool["type"] for tool in body.echoed_tools] == ["namespace", "custom"]


def custom(**format: Any) -> dict[str, Any]:
    return {"tools": [{**PATCH, "format": {"type": "grammar", **format}}]}


INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function"}]}, "tools.0.name", "required"),
    ({"tools": [{"type": "custom"}]}, "tools.0.name", "required"),
    ({"tools": [{"type": "namespace", "name": "n"}]}, "tools.0.tools", "required"),
    ({"tools": [{**NAMESPACE, "tools": [NAMESPACE]}]}, "tools.0.tools.0.type", "Input should be"),
    ({"tools": [{**NAMESPACE, "tools": [FUNCTION, FUNCTION]}]}, "tools", "the same name"),
    ({"tools": [{**NAMESPACE, "tools": [FUNCTION] * 513}]}, "tools.0.tools", "at most 512"),
    ({"tools": [{**FUNCTION, "name": "a b"}]}, "tools.0.name", "pattern"),
    ({"tools": [{"type": "conjure"}]}, "tools.0.type", "must be function, custom"),
    ({"tools": [{}]}, "tools.0.type", "must be function, custom"),
    ({"tools": [3]}, "tools.0", "must be function, custom"),
    ({"tools": [{"type": ["function"]}]}, "tools.0.type", "must be function, custom"),
    (custom(), "tools.0.format.syntax", "needs syntax"),
    (custom(syntax="lark"), "tools.0.format.definition", "needs syntax"),
    (custom(syntax="peg", definition="x"), "tools.0.format.syntax", "'lark' or 'regex'"),
    (custom(syntax="lark", definition="start: ("), "tools.0.format.definition", "cannot be enforced"),
    (custom(syntax="lark", definition='start: "a" start'), "tools.0.format.definition", "no finite text"),
    (custom(syntax="lark", definition="x" * 70_000), "tools.0.format.definition", "at most 65536"),
    (custom(syntax="regex", definition="("), "tools.0.format.definition", "cannot be enforced"),
    (custom(syntax="regex", definition="(?=a)"), "tools.0.format.definition", "cannot be enforced"),
    ({"tools": [{**PATCH, "format": {"type": "text", "syntax": "lark"}}]}, "tools.0.format.syntax", "neither"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "custom", "name": "read"}}, "tool_choice", "'read'"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.mode", "required"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools", "at least 1"),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [PATCH]}},
        "tool_choice.tools.0",
        "no tool 'patch'",
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}},
        "tool_choice.tools.0.name",
        "needs a name",
    ),
    ({"tool_choice": "maybe"}, "tool_choice", "'none'"),
    ({"tool_choice": 3}, "tool_choice", "must be none, auto"),
    ({"tool_choice": {"type": "dance"}}, "tool_choice", "must be none, auto"),
]


@pytest.mark.parametrize(("fields", "param", "message"), INVALID)
def test_an_error_names_the_invalid_tool(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(RequestError) as refused:
        request(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert message in str(refused.value)


def mcp_tool(**fields: Any) -> McpTool:
    return McpTool.model_validate({"type": "mcp", "server_label": "t", **fields})


@pytest.mark.parametrize(
    ("require_approval", "name", "is_read_only", "needed"),
    [
        (None, "a", True, True),
        ("always", "a", True, True),
        ("never", "a", False, False),
        ({}, "a", True, True),
        ({"never": {}}, "a", True, True),
        ({"never": {"tool_names": ["a"]}}, "a", False, False),
        ({"never": {"tool_names": ["a"]}}, "b", False, True),
        ({"never": {"tool_names": []}}, "b", False, True),
        ({"never": {"read_only": True}}, "b", True, False),
        ({"never": {"read_only": True}}, "b", False, True),
        ({"never": {"tool_names": ["a"], "read_only": True}}, "a", False, True),
        ({"always": {"tool_names": ["a"]}}, "b", True, True),
        ({"always": {"tool_names": ["a"]}, "never": {"tool_names": ["a", "b"]}}, "a", True, True),
        ({"always": {"tool_names": ["a"]}, "never": {"tool_names": ["a", "b"]}}, "b", True, False),
    ],
)
def test_approvals_are_never_implicit(require_approval: Any, name: str, is_read_only: bool, needed: bool) -> None:
    tool = mcp_tool(require_approval=require_approval)
    assert tool.needs_approval(name, is_read_only=is_read_only) is needed


def test_allowed_tools_of_a_server() -> None:
    assert mcp_tool().allows("a", is_read_only=False)
    assert [mcp_tool(allowed_tools=["a"]).allows(name, is_read_only=True) for name in "ab"] == [True, False]
    assert not mcp_tool(allowed_tools=[]).allows("a", is_read_only=True)
    assert not mcp_tool(allowed_tools={"read_only": True}).allows("a", is_read_only=False)


@given(st.text(max_size=80), st.text(max_size=130), st.text(max_size=80), st.text(max_size=130))
def test_names_of_mcp_tools_are_names_of_functions(label: str, name: str, label2: str, name2: str) -> None:
    first, second = mcp_name(label, name), mcp_name(label2, name2)
    assert re.fullmatch(r"[A-Za-z0-9_-]{2,64}", first)
    assert first != second or f"{label}__{name}" == f"{label2}__{name2}"


def test_secrets_are_not_repeated() -> None:
    tool = mcp_tool(server_url="https://u.example.com/secret?key=1", headers={"A": "secret"}, authorization="secret")
    assert "secret" not in str(tool.echoed)
    assert tool.all_headers == {"A": "secret", "Authorization": "Bearer secret"}
