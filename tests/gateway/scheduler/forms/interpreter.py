"""Direct interpreter of a graph: a plain recursive evaluation of the same JSON, one call after the other."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.api.semantic.graph_calls import form_key, raw_output
from gateway.graph.errors import UnresolvedPath
from gateway.graph.references import Reference, list_index, parse, resolve
from tests.gateway.scheduler.forms.fake_model import CallRefused, answer, prompt_of

Value = str | None
"""Text of a variable; None if it has no value, because its call failed or was skipped."""


class Skipped(str):
    """Value of an output of a branch's other side: the default of the branch. `NO_DEFAULT` if it has none."""


NO_DEFAULT = Skipped("a variable that is skipped has no value")
Scope = Mapping[str, Value]


class Element(str):
    """Text of an element or of its position. References to it are replaced before the calls of the map run."""


class Failed(Exception):
    """The call has no value."""


class TooManyCalls(Exception):
    """The graph has more calls than the test wants to run."""


class Undetermined(Exception):
    """A reference reads an element of a list that failed. A call may have read the element before."""


class Interpreter:
    """Evaluates entries of `calls`. `count`: number of model calls so far, at most `max_calls`."""

    def __init__(self, max_calls: int) -> None:
        self.count = 0
        self._max_calls = max_calls

    def run(self, calls: Sequence[Any], scope: Scope) -> dict[str, Value]:
        """Return the variables that the calls generate. Each call reads only earlier ones."""
        made: dict[str, Value] = {}
        for raw in calls:
            made |= self._entry(raw, {**scope, **made})
        return made

    def run_graph(self, calls: Sequence[Any], scope: Scope) -> dict[str, Value]:
        """Return the values that a client sees."""
        return {name: None if value is NO_DEFAULT else value for name, value in self.run(calls, scope).items()}

    def _entry(self, raw: Any, scope: Scope) -> dict[str, Value]:
        self.count += 1
        if self.count > self._max_calls:
            raise TooManyCalls
        match form_key(raw):
            case None:
                return self._chat(raw, scope)
            case "map":
                try:
                    return {raw["output"]: self._map(raw["map"], scope)}
                except Failed:
                    return {raw["output"]: None}
            case "if":
                return self._branch(raw, scope)
            case _:
                return self._repeat(raw["repeat"], raw["outputs"], scope)

    def _chat(self, raw: Any, scope: Scope) -> dict[str, Value]:
        semantic = raw["semantic"]
        made: dict[str, Value] = dict.fromkeys([*semantic.get("slots", {}), semantic["output"]])
        slots = set(semantic.get("slots", {}))
        defaults = semantic.get("defaults", {})
        messages: list[dict[str, str]] = []
        text = ""
        try:
            for message in raw["messages"]:
                messages.append({"role": message["role"], "content": ""})
                for part in parse(message["content"]):
                    if isinstance(part, str):
                        text = part
                    elif part.name in slots and made[part.name] is None:
                        text = made[part.name] = answer(prompt_of(messages))
                    elif part.name in defaults and isinstance(scope.get(part.name), Skipped):
                        text = defaults[part.name]
                    else:
                        text = _read(part, {**scope, **made})
                    messages[-1]["content"] += text
            made[semantic["output"]] = messages[-1]["content"] if slots else answer(prompt_of(messages))
        except (Failed, CallRefused):
            pass
        return made

    def _map(self, form: Any, scope: Scope) -> str:
        over, item = form["over"], form.get("as", "item")
        if isinstance(over, str):
            (reference,) = parse(over)
            assert isinstance(reference, Reference)
            elements = _json(_read(reference, scope))
            if not isinstance(elements, list):
                raise Failed
        else:
            elements = over
        results: list[Any] = []
        is_json = form_key(form["call"]) == "map"
        on_error = form.get("on_error", "fail")
        if len(elements) > form.get("max_items", 1_000):
            raise Failed
        for index, element in enumerate(elements):
            text = element if isinstance(element, str) else _compact(element)
            call = named(form["call"], "answer of the element")
            made = self._entry(call, {**scope, item: Element(text), "index": Element(index)})
            value = made[own_outputs(call)[-1]]
            if value is not None and value is not NO_DEFAULT:
                results.append(json.loads(value) if is_json else value)
            elif on_error == "fail":
                raise Failed
            elif on_error == "null":
                results.append(None)
        return _compact(results)

    def _branch(self, raw: Any, scope: Scope) -> dict[str, Value]:
        made: dict[str, Value] = dict.fromkeys(own_outputs(raw))
        try:
            side = "then" if _holds(raw["if"], scope) else "else"
        except Failed:
            return made
        if raw.get("default") is not None:
            default = raw["default"]
            text = Skipped(default if isinstance(default, str) else _compact(default))
        else:
            text = NO_DEFAULT
        return dict.fromkeys(made, text) | _copied(self.run(raw.get(side, []), scope))

    def _repeat(self, form: Any, outputs: Sequence[str], scope: Scope) -> dict[str, Value]:
        made: dict[str, Value] = {}
        number = 0
        hidden = {*form.get("carry", {}), *(name for call in form["calls"] for name in own_outputs(call))}
        inner = {name: value for name, value in scope.items() if name not in hidden}
        starts = [text for text in form.get("start", {}).values() if isinstance(text, str)]
        if not _can_bind(starts, scope) or not _can_bind(form.get("carry", {}).values(), inner):
            return dict.fromkeys(outputs)
        while True:
            number += 1
            carried: dict[str, Value] = {}
            for name, template in form.get("carry", {}).items():
                if number > 1:
                    carried[name] = _text_or_none(template, {**scope, **made})
                elif name in form.get("start", {}):
                    start = form["start"][name]
                    carried[name] = _text_or_none(start if isinstance(start, str) else _compact(start), scope)
                else:
                    carried[name] = _text_or_none(f"<<{name}>>", scope) if name in scope else ""
            made = {**carried, **self.run(form["calls"], {**scope, **carried})}
            try:
                if _holds(form["until"], {**scope, **made}):
                    break
            except Failed:
                return dict.fromkeys(outputs)
            if number == form["max"]:
                if form.get("on_max") == "last":
                    break
                return dict.fromkeys(outputs)
        return _copied({name: made[name] for name in outputs})


def _copied(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values as outputs of a form: a value that stands in for a skipped one is an ordinary value there."""
    return {
        name: str(value) if isinstance(value, Skipped) and value is not NO_DEFAULT else value
        for name, value in values.items()
    }


def named(raw: Any, name: str) -> Any:
    """Return an entry of `calls` whose answer has a name, as that of a map's call has none."""
    if form_key(raw) is None:
        return {**raw, "semantic": {**raw.get("semantic", {}), "output": name}}
    return {**raw, "output": name} if form_key(raw) == "map" else raw


def own_outputs(raw: Any) -> list[str]:
    """Return the names that an entry generates. The last one is its result."""
    match form_key(raw):
        case None:
            return [*raw["semantic"].get("slots", {}), raw["semantic"]["output"]]
        case "map":
            return [raw_output(raw)]
        case "if":
            calls = [*raw.get("else", []), *raw.get("then", [])]
            return list(dict.fromkeys(name for call in calls for name in own_outputs(call)))
        case _:
            return list(raw["outputs"])


def _read(reference: Reference, scope: Scope) -> str:
    value = scope[reference.name]
    if value is None or value is NO_DEFAULT:
        if reference.path and list_index(reference.path[0]) is not None:
            raise Undetermined
        raise Failed
    try:
        return resolve(value, reference)
    except UnresolvedPath:
        raise Failed from None


def _text(template: str, scope: Scope) -> str:
    return "".join([part if isinstance(part, str) else _read(part, scope) for part in parse(template)])


def _text_or_none(template: str, scope: Scope) -> Value:
    try:
        return _text(template, scope)
    except Failed:
        return None


def _holds(condition: Any, scope: Scope) -> bool:
    text = _text(condition["value"], scope)
    if "equals" in condition:
        return text.strip() == condition["equals"].strip()
    if "in" in condition:
        return text.strip() in [item.strip() for item in condition["in"]]
    if "less_than" in condition:
        try:
            number = float(text)
        except ValueError:
            raise Failed from None
        if math.isnan(number):
            raise Failed
        return number < condition["less_than"]
    return _compact(_json(text)) == _compact(condition["json"])


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Failed from None


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _can_bind(texts: Iterable[str], scope: Scope) -> bool:
    """Return whether elements have all paths that these texts of a form read, also if no call reads the texts."""
    for text in texts:
        for part in parse(text):
            if isinstance(part, Reference) and isinstance(scope.get(part.name), Element):
                try:
                    _read(part, scope)
                except Failed:
                    return False
    return True
