"""OpenCode itself, which speaks chat completions and sends `x-session-id` with each request."""

import json
from pathlib import Path

from tests.ecosystem.agents.workshop import MODEL, TEXT, Workshop, gateway_of, gateway_with_long_window
from tests.ecosystem.documented import settings_of_agent
from tests.fakes.capable_model import CapableModel
from tests.fakes.gateway_harness import GatewayHarness


async def ask(workshop: Workshop, gateway: GatewayHarness, text: str, *options: str, model: str = MODEL) -> list[str]:
    """Return the answers to a prompt."""
    settings = json.loads(settings_of_agent("json", gateway.address, model))
    settings["provider"]["myna"]["models"][model]["limit"]["output"] = 64  # a random model never ends its answer
    settings |= {"autoupdate": False, "share": "disabled"}
    (workshop.folder / "opencode.json").write_text(json.dumps(settings))
    env = {
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    }
    printed = await workshop.run_package("opencode", "run", "--format", "json", *options, text, env=env)
    events = [json.loads(line) for line in printed.splitlines()]
    assert not [event for event in events if event["type"] == "error"], events
    return [event["part"]["text"] for event in events if event["type"] == "text"]


async def test_it_edits_a_file_runs_commands_and_continues(workshop: Workshop) -> None:
    path = str(workshop.notes)
    model = CapableModel(
        {
            "Task one": [
                ("read", {"filePath": path}),
                ("edit", {"filePath": path, "oldString": "a draft", "newString": "final"}),
                ("bash", {"command": "cat notes.txt && echo $((40+2))", "description": "Show the file"}),
                "The file is final.",
            ],
            "Task two": [("bash", {"command": "wc -l notes.txt", "description": "Count"}), "It has three lines."],
            "Task three": ["Goodbye."],
        }
    )
    async with gateway_of(model) as gateway:
        assert await ask(workshop, gateway, "Task one: edit the file") == ["The file is final."]
        assert await ask(workshop, gateway, "Task two: count", "--continue") == ["It has three lines."]
        assert await ask(workshop, gateway, "Task three: end", "--continue") == ["Goodbye."]
        assert not gateway.client().get("/sessions", cast_to=dict)["data"], "its header alone makes no session"
    assert workshop.notes.read_text() == TEXT.replace("a draft", "final")
    read, edited, shown = model.results["Task one"]
    assert "class <<interface>> Shape" in read
    assert "success" in edited
    assert shown.splitlines()[-1] == "42"
    assert "kernel<<<n>>>" in json.dumps(model.requests[-1]["messages"]), "the last request has the whole conversation"


async def test_our_own_engine_answers_its_prompt(workshop: Workshop, tmp_path: Path) -> None:
    async with gateway_with_long_window(tmp_path / "long") as gateway:
        assert await ask(workshop, gateway, "Say hello", model="long")
