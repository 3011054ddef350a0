"""Claude Code itself, which speaks Anthropic's Messages API."""

import json
import re
from pathlib import Path
from typing import Any

from tests.ecosystem.agents.workshop import MODEL, TEXT, Workshop, gateway_of, gateway_with_long_window
from tests.ecosystem.documented import settings_of_agent
from tests.fakes.capable_model import CapableModel
from tests.fakes.gateway_harness import GatewayHarness


async def ask(
    workshop: Workshop, gateway: GatewayHarness, text: str, *options: str, model: str = MODEL
) -> dict[str, Any]:
    """Return the result of a prompt."""
    exports = settings_of_agent("sh", gateway.address, model)
    env = {
        **dict(re.findall(r"(\w+)=(\S+)", exports)),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "IS_SANDBOX": "1",  # it refuses to run tools without asking if the user is root
    }
    mode = ("--dangerously-skip-permissions", "--output-format", "json")
    printed = await workshop.run_package("claude", "-p", *mode, *options, text, env=env)
    result: dict[str, Any] = json.loads(printed)
    assert not result["is_error"], result
    return result


async def test_it_edits_a_file_runs_commands_continues_and_asks_a_sub_agent(workshop: Workshop) -> None:
    path = str(workshop.notes)
    sub_agent = {"description": "count words", "prompt": "Sub task: count", "subagent_type": "general-purpose"}
    model = CapableModel(
        {
            "Task one": [
                ("Read", {"file_path": path}),
                ("Edit", {"file_path": path, "old_string": "a draft", "new_string": "final"}),
                ("Bash", {"command": "cat notes.txt && echo $((40+2))", "description": "Show the file"}),
                "The file is final.",
            ],
            "Task two": [("Bash", {"command": "wc -l notes.txt", "description": "Count"}), "It has three lines."],
            "Task three": [("Agent", sub_agent), "The agent says five."],
            "Sub task": [("Bash", {"command": "wc -w notes.txt", "description": "Count"}), "There are five words."],
        }
    )
    async with gateway_of(model) as gateway:
        first = await ask(workshop, gateway, "Task one: edit the file")
        assert (first["result"], first["stop_reason"], first["num_turns"]) == ("The file is final.", "end_turn", 4)
        assert first["usage"]["input_tokens"] > 1000
        second = await ask(workshop, gateway, "Task two: count", "--continue")
        assert second["result"] == "It has three lines."
        assert second["session_id"] == first["session_id"]
        third = await ask(workshop, gateway, "Task three: ask an agent", "--continue")
        assert third["result"] == "The agent says five."
    assert workshop.notes.read_text() == TEXT.replace("a draft", "final")
    read, edited, shown = model.results["Task one"]
    assert "class <<interface>> Shape" in read
    assert "updated successfully" in edited
    assert shown.splitlines()[-1] == "42"
    assert model.results["Sub task"] == ["5 notes.txt"]
    assert model.results["Task three"][0].startswith("There are five words.")
    system = {json.dumps(request["messages"][0]) for request in model.requests if len(request["tools"]) > 20}
    assert "x-anthropic-billing-header" not in "".join(system)
    assert len(system) <= 2, "the system prompt of the main agent stays the same over its turns"


async def test_our_own_engine_answers_its_prompt(workshop: Workshop, tmp_path: Path) -> None:
    async with gateway_with_long_window(tmp_path / "long") as gateway:
        result = await ask(workshop, gateway, "Say hello", "--max-turns", "1", model="long")
        usage = result["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] > 15_000
        assert usage["output_tokens"] > 0
