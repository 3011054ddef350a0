"""Code blocks of the documentation. All blocks of a document run one after another, against a running server."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config.settings import ServeSettings
from tests.fakes.gateway_harness import GatewayHarness

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "http://127.0.0.1:8000"
SAYS = {
    "semantic-variables.md": "a call would wait for itself",
    "langchain.md": "name=",
    "clients.md": "data: [DONE]",
    "parrot.md": "",
}
"""Documents with code blocks, and a text that the blocks print."""
RUN = {
    "python": [sys.executable, "-"],
    "sh": ["bash", "-euo", "pipefail", "-s"],
    "js": ["node", "--input-type=module", "-"],
}
NEEDS = {"sh": "curl", "js": "node"}
ELSEWHERE = tuple(f"{language} ecosystem" for language in ("python", "sh", "toml", "json", "js"))
"""Languages of blocks that need other programs or packages: tests/ecosystem runs them."""


def code_blocks(name: str) -> dict[str, str]:
    """Return the code blocks of a document by language. Blocks of one language are joined to one program."""
    found: dict[str, list[str]] = {}
    for language, code in re.findall(r"^```([^\n]*)\n(.*?)^```$", (DOCS / name).read_text(), re.DOTALL | re.MULTILINE):
        found.setdefault(language, []).append(code)
    return {language: "\n".join(codes) for language, codes in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_the_code_blocks_of_documents_run(server: GatewayHarness, name: str) -> None:
    found = code_blocks(name)
    assert set(found) <= {*RUN, *ELSEWHERE}, "blocks in another language would not run"
    said, left_out = "", False
    for language, program in found.items():
        if language in ELSEWHERE:
            continue
        if language in NEEDS and shutil.which(NEEDS[language]) is None:
            left_out = True
            continue
        assert ADDRESS in program
        done = subprocess.run(
            RUN[language],
            input=program.replace(ADDRESS, server.address),
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTHONWARNINGS": ""},
        )
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert said.strip()
    assert SAYS[name] in said or left_out


def test_the_graphs_of_the_documentation_run(server: GatewayHarness) -> None:
    blocks = re.findall(r"^```json\n(.*?)^```$", (DOCS / "graphs.md").read_text(), re.DOTALL | re.MULTILINE)
    graphs = [body for body in map(json.loads, blocks) if "calls" in body]
    assert len(graphs) == 5, "one for each form"
    for body in graphs:
        for call in _chat_bodies(body):
            call |= {"model": "SmolLM2-135M-Instruct", "max_tokens": 80, "temperature": 0}
        if "stream" in body:
            _agent(body).update(tool_choice="required", on_max="answer")
            body["stream"] = False
        request = urllib.request.Request(
            f"{server.address}/v1/graphs", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=100) as answer:
            result = json.load(answer)
        # a small model writes a JSON object without steps
        assert (
            "errors" not in result
            or "has nothing at 'steps'" in str(result["errors"])
            or "JSON" in str(result["errors"])
        )


def _agent(body: dict[str, Any]) -> dict[str, Any]:
    agent: dict[str, Any] = body["calls"][0]["agent"]
    return agent


def _chat_bodies(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all bodies of chat completions in a graph."""
    if isinstance(value, dict):
        if "messages" in value:
            yield value
        for inner in value.values():
            yield from _chat_bodies(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _chat_bodies(inner)


def test_the_container_file_names_files_and_settings_that_exist() -> None:
    lines = code_blocks("operating.md")["dockerfile"].splitlines()
    copied = [
        path for line in lines if line.startswith("COPY ") and "--from" not in line for path in line.split()[1:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "gateway", "engine", "compat"} <= set(copied)
    assert all((DOCS.parent / path).exists() for path in copied)
    assert settings_in("\n".join(lines)) >= {"host", "port", "journal", "cache"}


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = code_blocks("operating.md")["ini"]
    assert settings_in(unit) >= {"journal", "cache", "api_key_file"}
    drain = ServeSettings.model_fields["drain"].default
    assert f"TimeoutStopSec={drain + 45:g}" in unit
    program = "/opt/myna/bin/myna"
    assert program in unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd")
    file = tmp_path / "myna.service"
    file.write_text(unit.replace(program, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def settings_in(text: str) -> set[str]:
    """Return the settings whose environment variables a text sets. All of them exist."""
    names = {name.lower() for name in re.findall(r"\bMYNA_([A-Z_]+)=", text)}
    assert names <= set(ServeSettings.model_fields)
    return names
