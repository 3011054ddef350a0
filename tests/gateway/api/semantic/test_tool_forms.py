"""gateway/api/semantic/tool_forms.py: forms with tools that cannot run are refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.tool_gateway import send, tool, tool_gateway


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    """Yield a gateway with a tool server `t`."""
    async with tool_gateway(tmp_path) as started:
        yield started


@pytest.mark.parametrize(
    ("form", "param", "code"),
    [
        ({"tool": {"server": "none", "name": "add"}}, "calls.0.tool", "unknown_tool"),
        ({"tool": {"server": "t", "name": "none"}}, "calls.0.tool", "unknown_tool"),
        ({"tool": {"server": "t", "name": "environment"}}, "calls.0.tool", "unknown_tool"),
        (tool("add", a=1), "calls.0.tool.arguments", "invalid_value"),
        (tool("add", a=1, b=[]), "calls.0.tool.arguments.b", "invalid_value"),
        (tool("add", a="<<nowhere>>", b=1), "calls.0.tool.arguments.a", "unknown_variable"),
        ({"agent": {"model": "fake", "tools": ["t/none"], "messages": []}}, "calls.0.agent", None),
        ({"agent": {"model": "fake", "tools": ["add"], "messages": []}}, "calls.0.agent.tools.0", "invalid_value"),
        (
            {"agent": {"model": "fake", "tools": [{"type": "function"}], "messages": []}},
            "calls.0.agent.tools",
            "invalid_value",
        ),
        ({"agent": {"tools": ["t/add"], "messages": []}}, "calls.0.agent", None),
        ({"agent": {"model": "fake", "max_turns": 0, "messages": []}}, "calls.0.agent.max_turns", None),
    ],
)
async def test_a_form_that_cannot_run_is_refused(
    gateway: ScriptedGateway, form: dict[str, Any], param: str, code: str | None
) -> None:
    client, server, unfinished = gateway
    status, refused = await send(client, calls=[form])
    assert status == 400, refused
    assert (refused["error"]["param"] or "").startswith(param), refused
    assert code is None or refused["error"]["code"] == code, refused
    assert (server.asked, unfinished()) == ([], 0)
