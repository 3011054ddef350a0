"""Draw a graph as text for mermaid or Graphviz.

A form that has added calls is a box around them and its own call, or one node in place of them all.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

Graph = Mapping[str, Any]
"""The answer of `GET /v1/sessions/{id}/graph`, or the calls of a program with its links as edges."""

_COLOURS = {
    "ready": "#d5f5d5",
    "done": "#d5f5d5",
    "failed": "#f8d0d0",
    "cancelled": "#dddddd",
    "skipped": "#dddddd",
    "streaming": "#fff3c4",
    "prefill": "#fff3c4",
    "decode": "#fff3c4",
    "running": "#fff3c4",
}
"""Colours by state. Other states are white."""
_PLAIN = re.compile(r"\w+", re.ASCII)
_NOT_ALPHANUMERIC = re.compile(r"[^0-9A-Za-z]")
_INDENT = "    "


def mermaid(graph: Graph, *, fold: bool = False) -> str:
    """Return the graph for mermaid: calls are boxes, variables rounded boxes. `fold`: draw each form as one node."""
    outline = _Outline(graph, fold=fold)
    lines = ["flowchart LR", *_mermaid_content(outline, None, _INDENT)]
    for source, target, kind in outline.edges:
        lines.append(f"    {source} -->{f'|{kind}|' if kind else ''} {target}")
    lines += [f"    classDef {state} fill:{colour},stroke:#555" for state, colour in _COLOURS.items()]
    return "\n".join(lines) + "\n"


def _mermaid_content(outline: "_Outline", form: str | None, indent: str) -> Iterator[str]:
    """Yield the lines of what is inside a form, or of what is outside of all forms."""
    for call in outline.calls_in(form):
        if call["id"] in outline.boxes and call["id"] != form:
            yield f'{indent}subgraph box_{call["id"]}["{_escape(_box_label(call))}"]'
            yield from _mermaid_content(outline, call["id"], indent + _INDENT)
            yield f"{indent}end"
        else:
            yield f'{indent}{call["id"]}["{_escape(outline.label(call))}"]:::{call["state"]}'
    for variable in outline.variables_in(form):
        name = variable["name"]
        yield f'{indent}{_variable_id(name)}(["{name}"]):::{variable["state"]}'


def dot(graph: Graph, *, fold: bool = False) -> str:
    """Return the graph for Graphviz. `fold`: draw each form as one node."""
    outline = _Outline(graph, fold=fold)
    lines = ["digraph session {", "    rankdir=LR;", '    node [style=filled, fillcolor="white"];']
    lines += _dot_content(outline, None, _INDENT)
    for source, target, kind in outline.edges:
        lines.append(f"    {source} -> {target}{f' [label={_quote(kind)}]' if kind else ''};")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_content(outline: "_Outline", form: str | None, indent: str) -> Iterator[str]:
    """See `_mermaid_content`."""
    for call in outline.calls_in(form):
        if call["id"] in outline.boxes and call["id"] != form:
            yield f"{indent}subgraph cluster_{call['id']} {{"
            yield f"{indent}{_INDENT}label={_quote(_box_label(call))};"
            yield from _dot_content(outline, call["id"], indent + _INDENT)
            yield f"{indent}}}"
        else:
            yield f"{indent}{call['id']} [shape=box, label={_quote(outline.label(call))}{_fill(call['state'])}];"
    for variable in outline.variables_in(form):
        name = variable["name"]
        yield f"{indent}{_variable_id(name)} [shape=oval, label={_quote(name)}{_fill(variable['state'])}];"


class _Outline:
    """The calls and variables of a graph by the form that contains them, and the edges between their nodes."""

    def __init__(self, graph: Graph, *, fold: bool) -> None:
        calls = {call["id"]: call for call in graph["calls"]}
        self._parents = {id: call.get("parent") if call.get("parent") in calls else None for id, call in calls.items()}
        self._children: dict[str, Counter[str]] = {}
        """States of the calls that a form has added, by the form's call."""
        for id, parent in self._parents.items():
            if parent is not None:
                self._children.setdefault(parent, Counter())[calls[id]["state"]] += 1
        self.boxes: Collection[str] = set() if fold else self._children.keys()
        """Calls of the forms that are boxes."""
        self._calls: dict[str | None, list[Mapping[str, Any]]] = {}
        self._variables: dict[str | None, list[Mapping[str, Any]]] = {}
        nodes: dict[str, str] = {}
        for id, call in calls.items():
            parent = self._parents[id]
            nodes[id] = id if not fold else self._outermost(id)
            if nodes[id] == id:
                self._calls.setdefault(parent, []).append(call)
            if id in self.boxes:
                self._calls.setdefault(id, []).append(call)  # its own node is in its box
        for variable in graph["variables"]:
            name, producer = variable["name"], variable.get("producer")
            parent = self._parents.get(producer)
            if fold and parent is not None:
                nodes[name] = self._outermost(parent)
            else:
                nodes[name] = _variable_id(name)
                self._variables.setdefault(parent, []).append(variable)
        self.edges = list(dict.fromkeys(self._edges(graph, nodes)))
        """Ends and kind of each edge. The kind is "" in a session."""

    def calls_in(self, form: str | None) -> list[Mapping[str, Any]]:
        """Return the calls that are directly inside a form, its own call included; those outside of forms for None."""
        return self._calls.get(form, [])

    def variables_in(self, form: str | None) -> list[Mapping[str, Any]]:
        """Return the variables that calls of a form have produced; the others for None."""
        return self._variables.get(form, [])

    def label(self, call: Mapping[str, Any]) -> str:
        """Return the text of a call's node."""
        seconds = "" if call["finished"] is None else f" in {call['finished'] - call['created']:.2f} s"
        states = self._children.get(call["id"])
        progress = "" if states is None else f"\n{states['done']} of {states.total()} done"
        return f"{_kind(call)}{progress}\n{call['state']}{seconds}"

    def _outermost(self, id: str) -> str:
        """Return the call of the outermost form around a call; the call itself if no form added it."""
        parent = self._parents[id]
        while parent is not None:
            id, parent = parent, self._parents[parent]
        return id

    def _edges(self, graph: Graph, nodes: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
        """Yield the edges between different nodes that exist: a variable may have been deleted."""
        for edge in graph["edges"]:
            source, target = nodes.get(edge["from"]), nodes.get(edge["to"])
            if source is not None and target is not None and source != target:
                yield source, target, edge.get("kind", "")


def _kind(call: Mapping[str, Any]) -> str:
    form = call.get("form")
    if form is None:
        return call["model"] or "template"
    return f"{form} {call['tool']}" if call.get("tool") else str(form)


def _box_label(call: Mapping[str, Any]) -> str:
    return f"{_kind(call)} {call['output']}"


def _variable_id(name: str) -> str:
    """Return the id of a variable's node, which is different for all names. Names in forms have dots and `@`."""
    if _PLAIN.fullmatch(name):
        return f"var_{name}"
    return "val_" + _NOT_ALPHANUMERIC.sub(lambda found: f"_{ord(found[0]):02x}", name)


def _escape(text: str) -> str:
    escaped = text.replace("#", "#35;").replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return escaped.replace("\n", "<br/>")


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _fill(state: str) -> str:
    return f', fillcolor="{_COLOURS[state]}"' if state in _COLOURS else ""
