"""Draw a graph as text for mermaid or Graphviz."""

from collections.abc import Iterator, Mapping
from typing import Any

Graph = Mapping[str, Any]
"""The answer of `GET /v1/sessions/{id}/graph`, or the calls of a program with its links as edges."""

_COLOURS = {
    "ready": "#d5f5d5",
    "done": "#d5f5d5",
    "failed": "#f8d0d0",
    "cancelled": "#dddddd",
    "streaming": "#fff3c4",
    "prefill": "#fff3c4",
    "decode": "#fff3c4",
}
"""Colours by state. Other states are white."""


def mermaid(graph: Graph) -> str:
    """Return the graph for mermaid: calls are boxes, variables are rounded boxes."""
    lines = ["flowchart LR"]
    for call in graph["calls"]:
        lines.append(f'    {call["id"]}["{_escape(_call_label(call))}"]:::{call["state"]}')
    for variable in graph["variables"]:
        lines.append(f'    var_{variable["name"]}(["{variable["name"]}"]):::{variable["state"]}')
    for source, target, kind in _edges(graph):
        lines.append(f"    {source} -->{f'|{kind}|' if kind else ''} {target}")
    lines += [f"    classDef {state} fill:{colour},stroke:#555" for state, colour in _COLOURS.items()]
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """Return the graph for Graphviz."""
    lines = ["digraph session {", "    rankdir=LR;", '    node [style=filled, fillcolor="white"];']
    for call in graph["calls"]:
        lines.append(f"    {call['id']} [shape=box, label={_quote(_call_label(call))}{_fill(call['state'])}];")
    for variable in graph["variables"]:
        name = variable["name"]
        lines.append(f"    var_{name} [shape=oval, label={_quote(name)}{_fill(variable['state'])}];")
    for source, target, kind in _edges(graph):
        lines.append(f"    {source} -> {target}{f' [label={_quote(kind)}]' if kind else ''};")
    return "\n".join([*lines, "}"]) + "\n"


def _call_label(call: Mapping[str, Any]) -> str:
    model = call["model"] or "template"
    seconds = "" if call["finished"] is None else f" in {call['finished'] - call['created']:.2f} s"
    return f"{model}\n{call['state']}{seconds}"


def _edges(graph: Graph) -> Iterator[tuple[str, str, str]]:
    """Yield the edges whose ends exist, each with its kind or "": a variable may have been deleted."""
    nodes = {call["id"]: call["id"] for call in graph["calls"]}
    nodes |= {variable["name"]: f"var_{variable['name']}" for variable in graph["variables"]}
    for edge in graph["edges"]:
        if edge["from"] in nodes and edge["to"] in nodes:
            yield nodes[edge["from"]], nodes[edge["to"]], edge.get("kind", "")


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace("\n", "<br/>")


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _fill(state: str) -> str:
    return f', fillcolor="{_COLOURS[state]}"' if state in _COLOURS else ""
