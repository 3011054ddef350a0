"""Tests of gateway/prompts/tool_calls/tools.py: tools as requests of OpenAI's API have them."""

from typing import Any

import pytest

from gateway.prompts.tool_calls.tools import Tool, Tools

NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADD = Tool("add", "Adds.", NUMBER, strict=True, enforced={"type": "object"})
NOW = Tool("now")


def test_a_model_reads_the_schema_of_the_client() -> None:
    function = {"name": "add", "description": "Adds.", "parameters": NUMBER}
    assert ADD.as_openai() == {"type": "function", "function": function}
    assert NOW.as_openai()["function"] == {"name": "now", "description": "", "parameters": {"type": "object"}}


def test_only_an_upstream_server_is_told_which_tools_are_strict() -> None:
    assert ADD.as_upstream()["function"]["strict"] is True
    assert "strict" not in ADD.as_openai()["function"]
    assert "strict" not in NOW.as_upstream()["function"]


def test_a_description_is_no_view_of_the_tool() -> None:
    described = ADD.as_openai()
    described["function"]["parameters"]["type"] = "array"
    assert ADD.as_openai()["function"]["parameters"]["type"] == "object"


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (Tools([ADD, NOW]), None),
        (Tools([ADD, NOW], "forced", [ADD, NOW]), "required"),
        (Tools([ADD, NOW], "forced", [NOW]), {"type": "function", "function": {"name": "now"}}),
        (Tools([ADD], "forced", [ADD]), "required"),  # servers that do not support names support this
    ],
)
def test_the_choice_of_an_upstream_request(tools: Tools, choice: Any) -> None:
    fields = tools.request_fields()
    assert fields.get("tool_choice") == choice
    assert [tool["function"]["name"] for tool in fields["tools"]] == [tool.name for tool in tools.known]
    assert "parallel_tool_calls" not in fields


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_calls_are_forwarded_if_the_client_chose(parallel: bool) -> None:
    assert Tools([ADD], parallel_tool_calls=parallel).request_fields()["parallel_tool_calls"] is parallel


def test_forbidden_tools_are_not_sent() -> None:
    assert Tools([ADD], "none", parallel_tool_calls=True).request_fields() == {}
