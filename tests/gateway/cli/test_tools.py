"""gateway/cli/tools.py: the table of servers and tools."""

import json
import sys
from pathlib import Path

import pytest

from gateway.cli.main import main
from tests.fakes.tool_servers import FOLDER


def write(folder: Path, **servers: object) -> str:
    file = folder / "tools.json"
    file.write_text(json.dumps({"servers": servers}))
    return str(file)


def test_the_table_has_all_allowed_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"command": [sys.executable, str(FOLDER / "tool_server.py")], "tools": ["add", "put"], "start_seconds": 60}
    file = write(tmp_path, good=good)
    assert main(["tools", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["server", "state", "tool", "read-only", "idempotent"],
        ["good", "reachable", "add", "yes", "yes"],
        ["good", "reachable", "put", "no", "yes"],
    ]
    assert main(["tools", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tools"][0]["input_schema"]["required"] == ["a", "b"]


def test_the_status_is_1_if_a_server_is_not_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = {"url": "http://127.0.0.1:9/mcp", "tools": ["*"]}
    none = {"command": [sys.executable, str(FOLDER / "tool_server.py")], "tools": ["x"], "start_seconds": 60}
    assert main(["tools", write(tmp_path, gone=gone, none=none)]) == 1
    printed = capsys.readouterr().out
    assert "gone    it cannot be reached" in printed
    assert "none    reachable, but no tool is allowed" in printed


def test_the_status_is_2_if_the_file_is_invalid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tools", write(tmp_path, bad={})]) == 2
    assert main(["tools", str(tmp_path / "gone.json")]) == 2
    assert "servers.bad" in capsys.readouterr().err
