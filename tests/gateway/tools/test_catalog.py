"""Tests of gateway/tools/catalog.py: allowed tools, their flags, and the check of arguments."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.tool_servers import ToolServerTable
from gateway.runtime.schema_checker.check import UnknownValue
from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget
from gateway.tools.catalog import Catalog, with_unknown
from gateway.tools.protocol import UnknownTool

OBJECT: dict[str, Any] = {"type": "object"}


def table(*tools: str, **settings: Any) -> ToolServerTable:
    return ToolServerTable(command=["x"], tools=list(tools), **settings)


def tool(name: str, schema: Any = OBJECT, **fields: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": schema, **fields}


def test_only_allowed_tools_are_in_the_catalog() -> None:
    listed = [tool("read_file", description="Read."), tool("read_folder"), tool("write_file"), {"name": 7}, {}]
    catalog = Catalog("files", table("read_*", "other"), listed)
    assert [found.name for found in catalog.describe("*")] == ["read_file", "read_folder"]
    assert [found.description for found in catalog.describe("read_file")] == ["Read."]
    with pytest.raises(UnknownTool, match=r"'files' has no allowed tool 'read_fil'; did you mean read_file"):
        catalog.require("read_fil")
    with pytest.raises(UnknownTool):
        catalog.describe("write_*")
    with pytest.raises(UnknownTool, match="it has no allowed tools"):
        Catalog("files", table(), listed).require("read_file")
    assert Catalog("files", table(), listed).describe("*") == []


@pytest.mark.parametrize(
    ("hints", "settings", "expected"),
    [
        (None, {}, (False, False, False)),
        ({}, {}, (False, False, False)),
        ({"readOnlyHint": True}, {}, (True, True, False)),
        ({"readOnlyHint": "yes", "idempotentHint": 1}, {}, (False, False, False)),
        ({"idempotentHint": True}, {}, (False, True, False)),
        ({"readOnlyHint": True, "idempotentHint": True}, {}, (True, True, True)),
        ({"readOnlyHint": True, "idempotentHint": True}, {"idempotent": {"*": False}}, (True, False, False)),
        ({"readOnlyHint": True}, {"idempotent": {"t": True, "*": False}}, (True, True, True)),
        ({}, {"read_only": {"*": False, "t*": True}}, (True, True, False)),
    ],
)
def test_the_operator_overrides_what_a_server_says(hints: Any, settings: Any, expected: tuple[bool, ...]) -> None:
    catalog = Catalog("s", table("*", **settings), [tool("t", annotations=hints)])
    found = catalog.require("t")
    assert (found.is_read_only, found.is_idempotent, catalog.may_share("t")) == expected
    assert catalog.is_idempotent("t") == expected[1]
    assert not catalog.is_idempotent("gone")
    assert not catalog.may_share("gone")


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return {"type": "object", "properties": {"a": schema}}


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        (tool("t", 7), "inputSchema is not an object"),
        (tool("t", {"type": "string"}), "not one of objects"),
        (tool("t", {"description": "x" * 70_000}), "at most 65536 are allowed"),
        (tool("t", nested(70)), "nested too deeply"),
        (
            tool("t", {"properties": {"a": {"$ref": "https://example.com/a\nb"}}}),
            r"another document: https://example.com/a\?b",
        ),
        (tool("t\n"), "printable characters"),
        (tool("t" * 200), "printable characters"),
    ],
)
def test_a_tool_that_cannot_be_used_is_left_out_with_a_reason(listed: dict[str, Any], reason: str) -> None:
    catalog = Catalog("s", table("*"), [listed, tool("good")])
    assert [found.name for found in catalog.describe("*")] == ["good"]
    with pytest.raises(UnknownTool, match=reason) as caught:
        catalog.require(listed["name"])
    assert "\n" not in str(caught.value)


def test_the_sum_of_all_schemas_is_bounded() -> None:
    listed = [tool(f"t{index}", {"description": "x" * 60_000}) for index in range(200)]
    assert 100 < len(Catalog("s", table("*"), [*listed, listed[0]])) < 150


def test_arguments_are_checked_except_for_unknown_values() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
        "required": ["a"],
        "additionalProperties": False,
    }
    catalog = Catalog("s", table("*"), [tool("t", schema)])

    def violation(arguments: dict[str, Any], *unknown: tuple[str | int, ...]) -> str:
        found = catalog.violation("t", arguments, unknown, WorkBudget(1_000))
        return "" if found is None else found.path or "$"

    assert violation({"a": 1, "b": ["x"]}) == ""
    assert violation({"a": "x"}) == "a"
    assert violation({"a": "x"}, ("a",)) == ""
    assert violation({"b": []}) == "$"
    assert violation({}, ("a",)) == ""
    assert violation({"a": 1, "b": [1, 2]}, ("b", 0)) == "b[1]"
    assert violation({"a": 1, "c": 1}, ("c",)) == "$"
    with pytest.raises(UnknownTool):
        catalog.violation("gone", {}, (), WorkBudget(1_000))


def test_a_hostile_pattern_takes_linear_time() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    catalog = Catalog("s", table("*"), [tool("t", schema)])
    found = catalog.violation("t", {"a": "a" * 50_000 + "!"}, (), WorkBudget(50_000))
    assert found is not None
    bomb = {"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}}
    with pytest.raises(NoVerdict):
        Catalog("s", table("*"), [tool("t", bomb)]).violation("t", {}, (), WorkBudget(50_000))


VALUES = st.recursive(
    st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=8,
)
PATHS = st.lists(st.lists(st.sampled_from(["a", "b", 0, 1, -1, 5]), max_size=4).map(tuple), max_size=3)


@given(st.dictionaries(st.sampled_from("ab"), VALUES), PATHS)
def test_unknown_values_leave_the_arguments_as_they_are(arguments: dict[str, Any], paths: list[Any]) -> None:
    before = repr(arguments)
    changed = with_unknown(arguments, paths)
    assert repr(arguments) == before
    for path in paths:
        node: Any = changed
        for key in path:
            if isinstance(node, UnknownValue):
                break
            try:
                node = node[key] if not isinstance(key, int) or key >= 0 else None
            except (LookupError, TypeError):
                node = None
        assert not path or node is None or isinstance(node, UnknownValue)
