"""The forms of a graph as data: map, branch, repeat, tool, agent."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gateway.graph.segments import Input

if TYPE_CHECKING:
    from gateway.graph.budget import Limits
    from gateway.graph.call import CallSpec

Template = Sequence[str | Input]
"""Texts and references that are joined."""
INDEX = "index"
"""Name of the position of an element, in the call of a map."""


@dataclass(frozen=True)
class Condition:
    """Condition on a text. `operand`: JSON, as the operator requires.

    `equals`: a string, equal to the text. `in`: a list of strings that contains the text. Both ignore white space
    around the text. `matches`: a regular expression that is found in the text. `less_than`: a number greater than that
    of the text. `json`: a value equal to that of the text as JSON.
    """

    value: Template
    operator: Literal["equals", "in", "matches", "less_than", "json"]
    operand: str

    @property
    def pattern(self) -> str:
        """The regular expression of `matches`."""
        return str(json.loads(self.operand))


@dataclass(frozen=True)
class Binding:
    """Variables and texts for the references in a JSON text.

    `names`: variables by name. `values`: texts by name, of names that are no variables.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    """One call for each element of a JSON list.

    `over`: reference to the list. A text is the list itself. `item`: name of the element in `call`, beside `index`.
    `max_items`: maximum length of the list. `on_error`: what happens if the call of an element fails: the map fails,
    the element is left out, or it is `null`. `has_json_results`: whether the answers are JSON values and not texts.
    """

    over: Input | str
    item: str
    call: "CallSpec"
    max_items: int
    on_error: Literal["fail", "skip", "null"] = "fail"
    has_json_results: bool = False


@dataclass(frozen=True)
class Branch:
    """Calls that are added if a condition holds, and others if not.

    `default`: value of the outputs that only the side that does not run generates. None: they have no value.
    """

    condition: Condition
    then: "Sequence[CallSpec]"
    otherwise: "Sequence[CallSpec]"
    default: str | None = None


@dataclass(frozen=True)
class Repeat:
    """Calls that are added again, in rounds, until a condition holds.

    `first`: texts of the carried names in the first round. `carry`: their texts in a later round, from the variables of
    the round before. `exports`: names in a round of the form's outputs, in the order of the outputs. `on_max`: what
    happens if the condition does not hold after `max_rounds`: the form fails, or uses the last round.
    """

    calls: "Sequence[CallSpec]"
    first: Mapping[str, Template]
    carry: Mapping[str, Template]
    until: Condition
    max_rounds: int
    exports: Sequence[str]
    on_max: Literal["fail", "last"] = "fail"


@dataclass(frozen=True)
class ToolRun:
    """Run of a tool.

    `arguments`: a JSON object as text. Its strings may hold references to the names of `binding`. `reports_errors`: an
    error of the tool is the value. Otherwise the run fails.
    """

    server: str
    name: str
    arguments: str
    inputs: Sequence[Input] = ()
    """References in the arguments."""
    binding: Binding = Binding()
    reports_errors: bool = False


@dataclass(frozen=True)
class AgentTool:
    """A tool of an agent. `function`: its name for the model."""

    function: str
    server: str
    name: str


@dataclass(frozen=True)
class Agent:
    """A model and tools in turn, until an answer has no tool call.

    `body`: a chat completion request as JSON, with the descriptions of the tools. Its references have names that begin
    with `prefix`, which no model knows, so that an answer cannot contain a reference. `binding` has these names.
    `max_turns`: maximum number of the model's answers. `on_max`: `fail`: the form fails if the last of them calls
    tools; `answer`: the model gets no tools for it.

    Only agents of responses have the following fields. `first`: runs of tools before the first answer; a text stands
    for a run that is not possible. `final`: functions that the client runs or approves. An answer that calls one of
    them is the last answer; the gateway runs its other tool calls. `max_calls`: maximum number of tool calls. The
    gateway does not run further ones, and then the model gets no tools.
    """

    model: str
    body: str
    prefix: str
    tools: Sequence[AgentTool]
    max_turns: int
    inputs: Sequence[Input] = ()
    """References in the messages."""
    binding: Binding = Binding()
    on_max: Literal["fail", "answer"] = "fail"
    limits: "Limits | None" = None
    """Limits of what the agent's calls may use together."""
    first: Sequence[ToolRun | str] = ()
    final: Sequence[str] = ()
    max_calls: int | None = None
    forces_each: bool = False
    """Whether a `tool_choice` that forces a call applies to each answer, and not to the first one alone."""

    def has_tools(self, number: int, calls: int) -> bool:
        """Return whether the model may call tools in answer `number`, from 1 on. `calls`: number of tool calls before
        it."""
        is_last = number >= self.max_turns and self.on_max == "answer"
        return bool(self.tools or self.final) and not is_last and self.has_room(calls)

    def has_room(self, calls: int) -> bool:
        """Return whether another tool may be run. `calls`: number of tool calls so far."""
        return self.max_calls is None or calls < self.max_calls


Form = Map | Branch | Repeat | ToolRun | Agent


def form_name(form: Form) -> str:
    """Return the name of the kind of a form, as it is in a request."""
    return _NAMES[type(form)]


_NAMES = {Map: "map", Branch: "if", Repeat: "repeat", ToolRun: "tool", Agent: "agent"}


@dataclass(frozen=True)
class Origin:
    """Place of a call in the form that added it.

    `call`: id of the form's call. `place`: place in the form, unique among its calls. `digest`: digest of the
    data from which the form made the call, or empty if these are the same after a restart.
    """

    call: str
    place: str
    digest: str = ""


def references_of(form: Form) -> Iterator[Input]:
    """Yield the references of a form to variables outside it."""
    match form:
        case Map(over, item, call):
            if isinstance(over, Input):
                yield over
            yield from _outside(call.references, {item, INDEX, *call.names})
        case Branch(condition, then, otherwise):
            yield from _inputs(condition.value)
            for side in (then, otherwise):
                own = names_of(side)
                for call in side:
                    yield from _outside(call.references, own)
        case Repeat(calls, first, carry, until):
            for template in first.values():
                yield from _inputs(template)
            own = names_of(calls) | carry.keys()
            for call in calls:
                yield from _outside(call.references, own)
            for template in (*carry.values(), until.value):
                yield from _outside(_inputs(template), own)
        case ToolRun() | Agent():
            yield from form.inputs


def names_of(calls: "Sequence[CallSpec]") -> set[str]:
    """Return the names of the variables that the calls generate."""
    return {name for call in calls for name in call.names}


def _inputs(template: Template) -> Iterator[Input]:
    return (part for part in template if isinstance(part, Input))


def _outside(references: "Sequence[Input] | Iterator[Input]", own: set[str]) -> Iterator[Input]:
    return (reference for reference in references if reference.reference.name not in own)
