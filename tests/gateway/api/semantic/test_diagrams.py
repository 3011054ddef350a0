"""gateway/api/semantic/diagrams.py: graphs for Mermaid and Graphviz, with texts of any characters."""

import re
from typing import Any

from gateway.api.semantic.diagrams import dot, mermaid


def call(id: str, state: str = "done", model: str = "m", finished: float | None = 12.5) -> dict[str, Any]:
    return {"id": id, "model": model, "state": state, "created": 10.0, "finished": finished}


GRAPH: dict[str, Any] = {
    "calls": [call("call_1"), call("call_2", "decode", "", None)],
    "variables": [{"name": "topic", "state": "ready"}, {"name": "sum", "state": "pending"}],
    "edges": [
        {"from": "topic", "to": "call_1"},
        {"from": "call_1", "to": "sum"},
        {"from": "gone", "to": "call_2"},
        {"from": "call_2", "to": "gone"},
    ],
}


def test_mermaid() -> None:
    lines = mermaid(GRAPH).splitlines()
    assert lines[:7] == [
        "flowchart LR",
        '    call_1["m<br/>done in 2.50 s"]:::done',
        '    call_2["template<br/>decode"]:::decode',
        '    var_topic(["topic"]):::ready',
        '    var_sum(["sum"]):::pending',
        "    topic --> call_1".replace("topic", "var_topic"),
        "    call_1 --> var_sum",
    ]
    assert all(line.startswith("    classDef ") for line in lines[7:]), "edges of deleted variables are left out"


def test_graphviz() -> None:
    lines = dot(GRAPH).splitlines()
    assert lines[0] == "digraph session {"
    assert lines[3:7] == [
        '    call_1 [shape=box, label="m\\ndone in 2.50 s", fillcolor="#d5f5d5"];',
        '    call_2 [shape=box, label="template\\ndecode", fillcolor="#fff3c4"];',
        '    var_topic [shape=oval, label="topic", fillcolor="#d5f5d5"];',
        '    var_sum [shape=oval, label="sum"];',
    ]
    assert lines[7:] == ["    var_topic -> call_1;", "    call_1 -> var_sum;", "}"]


def test_names_of_models_cannot_leave_their_label() -> None:
    hostile = {**GRAPH, "calls": [call("call_1", model='a"]; x --> y <b>&\\"')], "edges": []}
    (line,) = (line for line in mermaid(hostile).splitlines() if "call_1" in line)
    assert line.count('"') == 2
    assert "<b>" not in line
    (line,) = (line for line in dot(hostile).splitlines() if "call_1" in line)
    label = re.search(r'label="((?:[^"\\]|\\.)*)"', line)
    assert label is not None
    assert label[1].replace('\\"', '"').replace("\\\\", "\\").startswith('a"]; x --> y <b>&\\"')


def test_an_empty_session() -> None:
    empty: dict[str, Any] = {"calls": [], "variables": [], "edges": []}
    assert mermaid(empty).startswith("flowchart LR\n")
    assert dot(empty).endswith("}\n")
