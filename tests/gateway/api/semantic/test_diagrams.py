"""gateway/api/semantic/diagrams.py: graphs for Mermaid and Graphviz, with texts of any characters."""

import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

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


def form_graph() -> dict[str, Any]:
    """Return a map over a list, with an agent for each element. The second agent has a tool that runs."""
    calls: list[dict[str, Any]] = [{**call("c_list"), "output": "list"}]
    variables = [{"name": "list", "state": "ready", "producer": "c_list"}]
    edges = [{"from": "c_list", "to": "list"}]

    def add(id: str, output: str, parent: str | None, *reads: str, **fields: Any) -> None:
        calls.append({**call(id, model=""), "output": output, "parent": parent, **fields})
        variables.append({"name": output, "state": "ready", "producer": id})
        edges.extend([*({"from": name, "to": id} for name in reads), {"from": id, "to": output}])

    add("c_map", "all", None, "list", "all.0", "all.1", form="map", state="waiting", finished=None)
    for index in range(2):
        name = f"all.{index}"
        add(f"c_agent{index}", name, "c_map", f"{name}@1", f"{name}@1.0", form="agent")
        add(f"c_turn{index}", f"{name}@1", f"c_agent{index}", model="m")
        tool = {"form": "tool", "tool": 'files/read "#1"', "state": "running" if index else "done"}
        add(f"c_tool{index}", f"{name}@1.0", f"c_agent{index}", **tool)
    calls[3]["state"] = "done"
    add("c_end", "end", None, "all", "all.1")
    return {"calls": calls, "variables": variables, "edges": edges}


def test_forms_are_boxes_around_their_calls() -> None:
    lines = mermaid(form_graph()).splitlines()
    begin = lines.index('    subgraph box_c_map["map all"]')
    assert lines[begin + 1 : begin + 8] == [
        '        c_map["map<br/>2 of 2 done<br/>waiting"]:::waiting',
        '        subgraph box_c_agent0["agent all.0"]',
        '            c_agent0["agent<br/>2 of 2 done<br/>done in 2.50 s"]:::done',
        '            c_turn0["m<br/>done in 2.50 s"]:::done',
        '            c_tool0["tool files/read &quot;#35;1&quot;<br/>done in 2.50 s"]:::done',
        '            val_all_2e0_401(["all.0@1"]):::ready',
        '            val_all_2e0_401_2e0(["all.0@1.0"]):::ready',
    ]
    assert '        val_all_2e0(["all.0"]):::ready' in lines, "the result of an element is inside the map"
    assert '    var_all(["all"]):::ready' in lines
    assert sum("subgraph" in line for line in lines) == sum(line.strip() == "end" for line in lines) == 3
    assert "    val_all_2e1 --> c_end" in lines


def test_folded_forms_are_one_node_each() -> None:
    lines = mermaid(form_graph(), fold=True).splitlines()
    assert lines[1 : lines.index("    classDef ready fill:#d5f5d5,stroke:#555")] == [
        '    c_list["m<br/>done in 2.50 s"]:::done',
        '    c_map["map<br/>2 of 2 done<br/>waiting"]:::waiting',
        '    c_end["template<br/>done in 2.50 s"]:::done',
        '    var_list(["list"]):::ready',
        '    var_all(["all"]):::ready',
        '    var_end(["end"]):::ready',
        "    c_list --> var_list",
        "    var_list --> c_map",
        "    c_map --> var_all",
        "    var_all --> c_end",
        "    c_map --> c_end",
        "    c_end --> var_end",
    ]


def test_ids_of_variables_differ_and_have_plain_characters() -> None:
    names = ["results.0", "results_2e0", "results@0", "draft@2", "draft_402", "a.b@1.0", "a", "a_", "a."]
    graph = {"calls": [], "variables": [{"name": name, "state": "ready"} for name in names], "edges": []}
    ids = [match[1] for match in re.finditer(r"^    (\w+)\(\[", mermaid(graph), re.MULTILINE)]
    assert len(set(ids)) == len(names)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("fold", [False, True])
def test_graphviz_draws_forms(fold: bool) -> None:
    text = dot(form_graph(), fold=fold)
    drawn = subprocess.run(["dot", "-Tplain"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert drawn.returncode == 0, drawn.stderr
    nodes = [line for line in drawn.stdout.splitlines() if line.startswith("node ")]
    assert len(nodes) == (6 if fold else 18)
    assert text.count("subgraph cluster_") == (0 if fold else 3)


@pytest.mark.parametrize("draw", [mermaid, dot])
def test_calls_whose_form_is_not_in_the_graph_are_outside(draw: Callable[..., str]) -> None:
    graph = form_graph()
    part = {**graph, "calls": [call for call in graph["calls"] if call["id"] in ("c_turn0", "c_agent0")]}
    for fold in (False, True):
        text = draw(part, fold=fold)
        assert "c_agent0" in text
        assert "c_map" not in text
