"""Tests of gateway/config/tool_servers.py: the file of MCP servers, and its errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.config.settings import ServeSettings
from gateway.config.tool_servers import BadToolServers, read_tool_servers

GOOD = {"command": ["server", "--flag"], "tools": ["*"]}


def written(folder: Path, document: Any) -> Path:
    file = folder / "tools.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def test_a_file_names_servers_with_their_limits(tmp_path: Path) -> None:
    document = {
        "servers": {
            "files": {**GOOD, "env": {"PATH": "${PATH}", "MODE": "a${X}b$Y"}, "seconds": 5, "parallel": 2},
            "web": {
                "url": "https://example.com/mcp",
                "headers": {"Authorization": "Bearer ${TOKEN}"},
                "tools": ["get_*"],
                "read_only": {"get_*": True},
            },
        },
        "url_patterns": ["https://*.example.com/mcp"],
        "url_servers": {"seconds": 7},
    }
    found = read_tool_servers(written(tmp_path, document), {"PATH": "/bin", "X": "1", "TOKEN": "secret"})
    assert found.servers["files"].env == {"PATH": "/bin", "MODE": "a1b$Y"}
    assert (found.servers["files"].seconds, found.servers["files"].result_bytes) == (5.0, 1 << 20)
    assert found.servers["web"].headers == {"Authorization": "Bearer secret"}
    assert [pattern.host for pattern in found.url_patterns] == ["*.example.com"]
    assert found.url_limits("https://a.example.com/mcp", {}).seconds == 7
    assert ServeSettings(tool_servers=tmp_path / "none.json").tool_servers is not None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("[]", "valid dictionary"),
        ('{"servers": {}, "servers": {}}', "the key 'servers' occurs twice"),
        ({"server": {}}, "server: unknown key"),
        ({"servers": {"a": {"command": ["x"]}}}, "servers.a.tools: this key is required"),
        ({"servers": {"a": {"tools": []}}}, "servers.a: a server needs exactly one of command and url"),
        ({"servers": {"a": {**GOOD, "url": "http://x/"}}}, "servers.a: a server needs exactly one of command and url"),
        ({"servers": {"a": {**GOOD, "command": "x"}}}, "servers.a.command: Input should be a valid list"),
        ({"servers": {"a": {**GOOD, "command": [""]}}}, "servers.a: command: the program is empty"),
        ({"servers": {"a": {**GOOD, "seconds": "5"}}}, "servers.a.seconds: Input should be a valid number"),
        ({"servers": {"a": {**GOOD, "seconds": 0}}}, "servers.a.seconds"),
        ({"servers": {"a": {**GOOD, "parallel": 1.5}}}, "servers.a.parallel"),
        ({"servers": {"a": {**GOOD, "time": 5}}}, "servers.a.time: unknown key"),
        ({"servers": {"a": {**GOOD, "headers": {"x": "y"}}}}, "headers belong to url"),
        ({"servers": {"a": {**GOOD, "env": {"a=b": ""}}}}, "env: 'a=b' is not a valid name"),
        (
            {"servers": {"a": {**GOOD, "env": {"A": "${GONE}"}}}},
            "servers.a.env.A: the environment has no variable GONE",
        ),
        ({"servers": {"a": {"url": "file:///x", "tools": []}}}, "servers.a: url: 'file:///x' is not http(s)"),
        ({"servers": {"a": {"url": "http://u:p@x/", "tools": []}}}, "a user name or password is not allowed"),
        ({"servers": {"a": {"url": "http://x/", "env": {"A": ""}, "tools": []}}}, "env and cwd belong to command"),
        ({"servers": {"a": {"url": "http://x/", "headers": {"Host": "y"}, "tools": []}}}, "'Host' is not a header"),
        (
            {"servers": {"a": {"url": "http://x/", "headers": {"A": "${N}"}, "tools": []}}},
            "servers.a.headers: the value of A",
        ),
        ({"servers": {"a/b": GOOD}}, "'a/b' is not a valid name"),
        ({"url_patterns": ["ftp://x/"]}, "url_patterns: 'ftp://x/' is not http(s)"),
        ({"url_servers": {"command": ["x"]}}, "url_servers: unknown key 'command'"),
        ({"url_servers": {"seconds": -1}}, "url_servers.seconds"),
    ],
)
def test_an_error_names_the_file_and_the_place(tmp_path: Path, document: Any, message: str) -> None:
    file = written(tmp_path, document)
    with pytest.raises(BadToolServers) as caught:
        read_tool_servers(file, {"N": "a\nb"})
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadToolServers, match="more than"):
        read_tool_servers(written(tmp_path, " " * 2_000_000))
