"""Codex itself, which speaks the Responses API."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.ecosystem.agents.workshop import MODEL, TEXT, Workshop, gateway_of, gateway_with_long_window
from tests.ecosystem.documented import settings_of_agent
from tests.fakes.capable_model import CapableModel
from tests.fakes.gateway_harness import GatewayHarness

_MCP_SERVER = """
[mcp_servers.glossary]
command = "{python}"
args = ["{server}"]
"""


async def ask(
    workshop: Workshop, gateway: GatewayHarness, text: str, *command: str, model: str = MODEL
) -> list[dict[str, Any]]:
    """Return the events of a prompt."""
    home = workshop.home / "codex"
    home.mkdir(exist_ok=True)
    server = Path(__file__).with_name("mcp_server.py")
    settings = settings_of_agent("toml", gateway.address, model)
    (home / "config.toml").write_text(settings + _MCP_SERVER.format(python=sys.executable, server=server))
    options = ("--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    printed = await workshop.run_package("codex", "exec", *command, *options, text, env={"CODEX_HOME": str(home)})
    events: list[dict[str, Any]] = [json.loads(line) for line in printed.splitlines()]
    assert events[-1]["type"] == "turn.completed", events
    return events


def answer(events: list[dict[str, Any]]) -> str:
    """Return the last message of a turn."""
    items = [event["item"] for event in events if event["type"] == "item.completed"]
    return str([item["text"] for item in items if item["type"] == "agent_message"][-1])


async def test_it_edits_a_file_runs_commands_resumes_and_calls_an_mcp_server(workshop: Workshop) -> None:
    edit = "sed -i 's/a draft/final/' notes.txt && cat notes.txt && echo $((40+2))"
    model = CapableModel(
        {
            "Task one": [
                ("exec_command", {"cmd": "cat notes.txt"}),
                ("exec_command", {"cmd": edit}),
                "The file is final.",
            ],
            "Task two": [("exec_command", {"cmd": "wc -l notes.txt"}), "It has three lines."],
            "Task three": [("mcp__glossary__lookup", {"word": "myna"}), "It is a bird."],
        }
    )
    async with gateway_of(model) as gateway:
        first = await ask(workshop, gateway, "Task one: edit the file")
        assert answer(first) == "The file is final."
        second = await ask(workshop, gateway, "Task two: count", "resume", "--last")
        assert answer(second) == "It has three lines."
        assert second[0]["thread_id"] == first[0]["thread_id"]
        third = await ask(workshop, gateway, "Task three: look it up", "resume", "--last")
        assert answer(third) == "It is a bird."
    assert workshop.notes.read_text() == TEXT.replace("a draft", "final")
    read, edited = model.results["Task one"]
    assert "class <<interface>> Shape" in read
    assert edited.rstrip().endswith("42")
    assert "myna: a talking bird" in model.results["Task three"][0]


async def test_our_own_engine_answers_its_prompt(workshop: Workshop, tmp_path: Path) -> None:
    async with gateway_with_long_window(tmp_path / "long") as gateway:
        events = await ask(workshop, gateway, "Say hello", model="long")
        assert events[-1]["usage"]["input_tokens"] > 5_000
        assert events[-1]["usage"]["output_tokens"] > 0
