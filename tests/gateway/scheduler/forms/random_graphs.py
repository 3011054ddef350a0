"""Random graphs with forms, as a client sends them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from gateway.graph.references import Reference, parse

_INNER_NAMES = ["a", "b", "draft", "verdict"]
_ITEMS = ["item", "row", "a"]
_KINDS = ["say", "say", "list", "verdict", "number", "frail"]
_PATHS = ["", "", ".k", ".l", ".0", ".l.0", ".k.deep"]
_ELEMENTS: list[Any] = [
    "plain",
    "<<a>> <|im_end|>",
    {"k": "v", "l": [1, "<<item>>"]},
    {"k": {"deep": "x"}, "l": []},
    [["p", "q"], []],
    7,
    None,
    "[1, 2]",
]
_TEXT = "text"
_LIST = "list"
_ITEM = "item"

Draw = Callable[[st.SearchStrategy[Any]], Any]
Kinds = Mapping[str, str]
"""Likely contents of the names in scope."""


@st.composite
def graphs(draw: Draw, max_depth: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the variables and the calls of a graph with forms that are nested up to a depth."""
    variables = {"plan": draw(st.lists(st.sampled_from(_ELEMENTS), max_size=3)), "tone": "calm"}
    scope: dict[str, str] = {"plan": _LIST, "tone": _TEXT}
    calls = []
    for number in range(draw(st.integers(1, 3))):
        names = [f"o{number}", f"p{number}"]
        calls.append(_entry(draw, scope, max_depth, names))
        scope |= dict.fromkeys(_outputs_of(calls[-1]), _kind_of(calls[-1]))
    return variables, calls


def _entry(draw: Draw, scope: Kinds, depth: int, names: Sequence[str]) -> dict[str, Any]:
    """Return an entry whose outputs have some of the names, the first one always."""
    form = draw(st.sampled_from(["map", "if", "repeat", "chat"] if depth else ["chat"]))
    if form == "chat":
        return _chat(draw, scope, names[0], names[1:2] if draw(st.integers(0, 4)) == 0 else [])
    if form == "map":
        return _map(draw, scope, depth, names[0])
    return _branch(draw, scope, depth, names) if form == "if" else _repeat(draw, scope, depth, names)


def _chat(draw: Draw, scope: Kinds, output: str | None, slots: Sequence[str] = ()) -> dict[str, Any]:
    content = draw(st.sampled_from(_KINDS)) + " " + _text(draw, scope)
    messages = [{"role": "user", "content": content}]
    semantic: dict[str, Any] = {} if output is None else {"output": output}
    read = sorted({part.name for part in parse(content) if isinstance(part, Reference)})
    if draw(st.integers(0, 2)) == 0:
        semantic["defaults"] = dict.fromkeys(draw(st.lists(st.sampled_from(read))), draw(st.sampled_from(["", "none"])))
    if slots:
        semantic["slots"] = {name: {} for name in slots}
        messages.append({"role": "assistant", "content": " and ".join(f"<<{name}>>" for name in slots) + "."})
    body: dict[str, Any] = {"model": "fake", "messages": messages, "temperature": draw(st.sampled_from([0, 0, 1]))}
    return {**body, "semantic": semantic} if semantic else body


def _text(draw: Draw, scope: Kinds) -> str:
    words = draw(st.lists(st.sampled_from(["x", r"\<<tone>>"]), max_size=1))
    names = draw(st.lists(st.sampled_from(sorted(scope)), min_size=1, max_size=2))
    return " ".join([*words, *(_reference(draw, scope, name) for name in names)])


def _reference(draw: Draw, scope: Kinds, name: str) -> str:
    has_path = scope[name] != _TEXT and draw(st.integers(0, 2)) == 0
    return f"<<{name}{draw(st.sampled_from(_PATHS)) if has_path else ''}>>"


def _map(draw: Draw, scope: Kinds, depth: int, output: str | None) -> dict[str, Any]:
    lists = [name for name, kind in scope.items() if kind != _TEXT]
    over: Any = draw(st.lists(st.sampled_from(_ELEMENTS), max_size=2))
    if lists and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(lists))
        over = f"<<{name}{draw(st.sampled_from(['', '', '', '.l']))}>>"
    item = draw(st.sampled_from(_ITEMS))
    inner = {**scope, item: _ITEM, "index": _TEXT}
    call = _entry(draw, inner, depth - 1, draw(st.permutations([n for n in _INNER_NAMES if n != item])))
    if "map" in call:
        del call["output"]
    elif "messages" in call:
        del call["semantic"]["output"]
    form = {
        "over": over,
        "as": item,
        "call": call,
        "on_error": draw(st.sampled_from(["skip", "null", "fail"])),
        "max_items": draw(st.sampled_from([1_000, 1_000, 2])),
    }
    return {"map": form} if output is None else {"map": form, "output": output}


def _body(draw: Draw, scope: Kinds, depth: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return calls that generate some of the names, at least the first one."""
    inner = {name: kind for name, kind in scope.items() if name not in names}
    calls: list[dict[str, Any]] = []
    rest = list(names)
    for _ in range(draw(st.integers(1, 2))):
        if not rest:
            break
        call = _entry(draw, inner, depth - 1, rest)
        made = _outputs_of(call)
        rest = [name for name in rest if name not in made]
        inner |= dict.fromkeys(made, _kind_of(call))
        calls.append(call)
    return calls


def _branch(draw: Draw, scope: Kinds, depth: int, names: Sequence[str]) -> dict[str, Any]:
    outer = {name: kind for name, kind in scope.items() if name not in names}
    form: dict[str, Any] = {"if": _condition(draw, outer), "then": _body(draw, outer, depth, names)}
    if draw(st.booleans()):
        form["else"] = _body(draw, outer, depth, names)
    if draw(st.booleans()):
        form["default"] = draw(st.sampled_from(["none", [1]]))
    return form


def _repeat(draw: Draw, scope: Kinds, depth: int, names: Sequence[str]) -> dict[str, Any]:
    inner_names = draw(st.permutations(_INNER_NAMES))
    carry_name = draw(st.sampled_from([None, *inner_names[:2]]))
    free = [name for name in inner_names if name != carry_name]
    # a name of the repeat's own is an output, so the wanted names are names of its calls
    made_names = [names[0], *[name for name in free if name not in names]]
    carry_scope = {} if carry_name is None or carry_name in names else {carry_name: _TEXT}
    calls = _body(draw, {**scope, **carry_scope}, depth, made_names)
    made = {name: _kind_of(call) for call in calls for name in _outputs_of(call)}
    last = {**scope, **carry_scope, **made}
    form: dict[str, Any] = {
        "calls": calls,
        "until": _condition(draw, last),
        "max": draw(st.integers(1, 3)),
        "on_max": draw(st.sampled_from(["last", "last", "fail"])),
    }
    for name in carry_scope:
        form["carry"] = {name: draw(st.sampled_from(["", "so "])) + _text(draw, last)}
        # without a start, the first text is that of the variable of this name, which a later call may generate
        if name not in scope or draw(st.booleans()):
            form["start"] = {name: draw(st.sampled_from(["", "begin", "<<tone>>", [1]]))}
    return {"repeat": form, "outputs": [names[0]]}


def _condition(draw: Draw, scope: Kinds) -> dict[str, Any]:
    value = _reference(draw, scope, draw(st.sampled_from(sorted(scope))))
    operator = draw(
        st.sampled_from(
            [{"equals": "yes"}, {"in": ["yes", "calm", "1"]}, {"less_than": 4}, {"json": []}, {"equals": "no"}]
        )
    )
    return {"value": value, **operator}


def _outputs_of(raw: Any) -> list[str]:
    if "messages" in raw:
        semantic = raw.get("semantic", {})
        return [*semantic.get("slots", {}), *([semantic["output"]] if "output" in semantic else [])]
    if "map" in raw:
        return [raw["output"]] if "output" in raw else []
    if "if" in raw:
        return [name for call in [*raw["then"], *raw.get("else", [])] for name in _outputs_of(call)]
    return list(raw["outputs"])


def _kind_of(raw: Any) -> str:
    is_list = "map" in raw or ("messages" in raw and raw["messages"][0]["content"].startswith("list"))
    return _LIST if is_list else _TEXT
