"""A session's graph as text, for people: Mermaid, Graphviz and the commands `myna graph` and `myna sessions`."""

import asyncio
import re
import shutil
import subprocess
import sys

import pytest

from tests.e2e.session_client import SessionClient
from tests.fakes.gateway_harness import GatewayHarness


async def grow(api: SessionClient) -> None:
    await api.put("topic", "bees")
    for name, text in (("a", "On <<topic>>"), ("b", "Of <<topic>>"), ("sum", "<<a>> and <<b>>")):
        await api.ask(text, {"output": name, "defer": True})
    await api.put("unread", {"quoted": '"'})
    await api.ask("x", {"output": "wrong", "transform": {"regex": "no such thing"}, "defer": True})
    for name in ("sum", "wrong"):
        await api.variable(name)


def myna(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, timeout=60)


async def text_of(api: SessionClient, query: str) -> str:
    async with api.http.get(f"/v1/sessions/{api.session}/graph{query}") as response:
        assert response.status == 200
        return await response.text()


async def test_a_graph_for_mermaid(api: SessionClient) -> None:
    await grow(api)
    lines = (await text_of(api, "?format=mermaid")).splitlines()
    assert lines[0] == "flowchart LR"
    nodes = {match[1] for line in lines if (match := re.match(r"    (\w+)[\[(]", line))}
    edges = [match.groups() for line in lines if (match := re.match(r"    (\w+) --> (\w+)$", line))]
    assert len(edges) == 2 * 2 + 2 + 1 + 1, "inputs and outputs of four calls"
    assert all(end in nodes for edge in edges for end in edge)
    assert "var_topic" in nodes


async def test_a_graph_for_graphviz(api: SessionClient) -> None:
    await grow(api)
    text = await text_of(api, "?format=dot")
    assert text.startswith("digraph session {\n")
    assert text.endswith("}\n")
    assert re.search(r"    var_a \[shape=oval, label=\"a\", fillcolor=\"#d5f5d5\"\];", text)
    assert len(re.findall(r" -> ", text)) == 8
    if shutil.which("dot"):
        drawn = await asyncio.to_thread(subprocess.run, ["dot", "-Tsvg"], input=text.encode(), capture_output=True)
        assert drawn.returncode == 0, drawn.stderr


async def test_any_other_format_is_refused(api: SessionClient) -> None:
    status, answer = await api.call("GET", f"/sessions/{api.session}/graph?format=png")
    assert (status, answer["error"]["param"]) == (400, "format")


async def test_the_commands_print_sessions_and_graphs(server: GatewayHarness, api: SessionClient) -> None:
    await grow(api)
    url = f"{server.address}/v1"
    tree = await asyncio.to_thread(myna, "graph", api.session, "--url", url)
    assert tree.returncode == 0, tree.stderr
    lines = tree.stdout.splitlines()
    top = next(index for index, line in enumerate(lines) if line.startswith("sum  ready  call_"))
    shape = [re.match(r"[^\w]*\w+  \w+", line)[0] for line in lines[top : top + 5]]  # type: ignore[index]
    assert shape == ["sum  ready", "├─ a  ready", "│  └─ topic  ready", "└─ b  ready", "   └─ topic  ready"]
    assert "inputs" in lines[top]
    assert "rest" in lines[top]
    assert any(line.startswith("unread  ready  set by a client") for line in lines)
    assert any(line.startswith("wrong  failed  transform_failed: ") for line in lines)

    table = await asyncio.to_thread(myna, "sessions", "--url", url)
    plain = await asyncio.to_thread(myna, "sessions", "--url", server.address)
    assert api.session in plain.stdout, "without /v1 as well"
    (row,) = (line.split() for line in table.stdout.splitlines() if line.startswith(f"{api.session} "))
    assert row[1] == "idle"
    assert row[6:8] == ["3", "0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("graph", "nowhere"), "there is no session 'nowhere'"),
        (("sessions", "--url", "http://127.0.0.1:9/v1"), "does not answer"),
        (("sessions", "--url", "nonsense"), "is not a URL"),
    ],
)
def test_the_commands_report_errors(server: GatewayHarness, arguments: tuple[str, ...], words: str) -> None:
    got = myna(*arguments, *(() if "--url" in arguments else ("--url", f"{server.address}/v1")))
    assert got.returncode == 1
    assert words in got.stderr
    assert len(got.stderr.splitlines()) == 1
