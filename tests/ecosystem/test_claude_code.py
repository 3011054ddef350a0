"""Claude Code itself, non-interactive, through a gateway in front of a server that plays a capable model."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ecosystem.capable_model import MODEL, plan, running_model

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.prefix) / "node" / "node_modules" / ".bin" / "claude"
SECONDS = 240

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="Claude Code could not be installed from npm")


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the address of a gateway, and the requests that its upstream server gets."""
    with running_model() as (url, requests):
        command = [ROOT / ".venv/bin/python", "-m", "gateway", "serve", "--port", "0", "--engine", f"openai={url}"]
        gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert gateway.stdout is not None
            address = re.search(r"at (http\S+)/v1", gateway.stdout.readline())
            assert address is not None, "the gateway did not start"
            yield address[1], requests
        finally:
            gateway.terminate()
            gateway.wait(40)


def run(folder: Path, address: str, prompt: str, *options: str) -> dict[str, Any]:
    """Return what Claude Code reports about one turn."""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ANTHROPIC_", "CLAUDE"))},
        "HOME": str(folder / "home"),
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    (folder / "home").mkdir(exist_ok=True)
    command = [
        PROGRAM,
        "-p",
        prompt,
        "--output-format",
        "json",
        "--allowedTools",
        "Bash,Write,Edit,Read,Agent",
        *options,
    ]
    done = subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    last = told[-1] if isinstance(told, list) else told
    assert not last["is_error"], last
    return dict(last)


def test_three_turns_with_tools_and_a_sub_agent(tmp_path: Path, asked: tuple[str, list[dict[str, Any]]]) -> None:
    address, requests = asked
    file = tmp_path / "notes.txt"
    first = run(
        tmp_path,
        address,
        "Change a file.\n"
        + plan(
            ("Write", {"file_path": str(file), "content": "kernel<<<n>>> and <<interface>>\n"}),
            ("Read", {"file_path": str(file)}),
            ("Edit", {"file_path": str(file), "old_string": "kernel", "new_string": "nucleus"}),
            ("Bash", {"command": "cat notes.txt; echo seen", "description": "Show the file"}),
        ),
    )
    assert first["result"] == "I have read 4 results."
    assert file.read_text() == "nucleus<<<n>>> and <<interface>>\n"
    results = [message["content"] for message in requests[-1]["messages"] if message["role"] == "tool"]
    assert "nucleus<<<n>>> and <<interface>>\nseen" in results[-1], "the model reads what the command printed"
    assert first["usage"]["output_tokens"] > 0

    second = run(
        tmp_path,
        address,
        plan(("Bash", {"command": "echo more >> notes.txt", "description": "Add a line"})),
        "--continue",
    )
    assert second["result"] == "I have read 1 results."
    assert file.read_text().endswith("more\n")

    work = plan(("Bash", {"command": "echo done > agent.txt", "description": "Write a file"}))
    agent = {"description": "Write a file", "prompt": f"Do it.\n{work}", "subagent_type": "general-purpose"}
    before = len(requests)
    third = run(tmp_path, address, plan(("Agent", agent)), "--resume", second["session_id"])
    assert third["result"] == "I have read 1 results."
    assert (tmp_path / "agent.txt").read_text() == "done\n"
    assert len(requests) - before >= 4, "two requests of the agent, two of its sub-agent"
    assert len(requests[-1]["messages"]) > len(requests[0]["messages"]), "the conversation was resumed"
