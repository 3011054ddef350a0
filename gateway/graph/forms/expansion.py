"""The calls that a form adds, as a pure function of values. After a restart the same values give the same calls.

Variables of these calls have names that clients cannot choose, so no variable has them yet:

    results.0           the answer for element 0 of a map whose output is `results`
    results.0.draft     `draft` in a form or message inside that element's call
    answer@then         `answer` on the side of a branch that was taken
    draft@2             `draft` in the second round of a repeat
    final.draft@2       the same, if the repeat is inside another form, or if the shorter name is taken
    answer@2            the second answer of an agent whose output is `answer`
    answer@2.0          result of the first tool call in it
    answer@0.0          result of the first run of a tool before the first answer
"""

import dataclasses
import hashlib
from collections.abc import Sequence

from gateway.graph.call import CallSpec
from gateway.graph.forms.form import INDEX, Agent, Branch, Map, Origin, Repeat, ToolRun, names_of
from gateway.graph.forms.names import bind, bind_template


def element_call(form: Map, call: str, output: str, index: int, element: str) -> CallSpec:
    """Return the call for one element of a map. Raises UnresolvedPath if the call reads a path that the element lacks.

    `call`, `output`: id and output of the map's call. `element`: the element as text.
    """
    name = element_name(output, index)
    body = form.call
    names = {inner: f"{name}.{inner}" for inner in body.names}
    if body.output is not None:
        names[body.output] = name
    bound = bind(body, names, {form.item: element, INDEX: str(index)})
    digest = hashlib.blake2b(element.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return dataclasses.replace(bound, output=name, origin=Origin(call, str(index), digest))


def element_name(output: str, index: int) -> str:
    """Return the name of the variable with the answer for one element of a map."""
    return f"{output}.{index}"


def side_calls(form: Branch, call: str, side: str) -> list[CallSpec]:
    """Return the calls of one side of a branch, `then` or `else`. `call`: id of the branch's call."""
    specs = form.then if side == "then" else form.otherwise
    names = {name: side_name(name, side) for name in names_of(specs)}
    return [
        dataclasses.replace(bind(spec, names, {}), origin=Origin(call, f"{side}.{index}"))
        for index, spec in enumerate(specs)
    ]


def side_name(name: str, side: str) -> str:
    """Return the name that an output of a branch has on one of its sides."""
    return f"{name}@{side}"


def round_calls(form: Repeat, call: str, scope: str, number: int) -> list[CallSpec]:
    """Return the calls of round `number` of a repeat, from 1 on. `call`: id of the repeat's call. `scope`: beginning of
    all names in its rounds.

    The carried texts of a round are templates. They come first.
    """
    own = {name: round_name(scope, name, number) for name in [*names_of(form.calls), *form.carry]}
    before = {name: round_name(scope, name, number - 1) for name in own}
    carried = [
        CallSpec(
            model="",
            output=own[name],
            parts=form.first[name] if number == 1 else bind_template(template, before, {}),
            origin=Origin(call, f"{number}.carry.{name}"),
        )
        for name, template in form.carry.items()
    ]
    return carried + [
        dataclasses.replace(bind(spec, own, {}), origin=Origin(call, f"{number}.{index}"))
        for index, spec in enumerate(form.calls)
    ]


def round_name(scope: str, name: str, number: int) -> str:
    """Return the name of a variable in one round of a repeat. `scope`: see `round_calls`."""
    return f"{scope}{name}@{number}"


def own_names(specs: Sequence[CallSpec]) -> list[str]:
    """Return the names that the calls generate, in order, each once."""
    return list(dict.fromkeys(name for spec in specs for name in spec.names))


def turn_call(form: Agent, call: str, output: str, number: int, turn: CallSpec) -> CallSpec:
    """Return the call for answer `number` of an agent, from 1 on. `call`, `output`: id and output of the agent's call.
    `turn`: the call with the names of `form.prefix`."""
    names = dict(form.binding.names)
    for part in turn.references:
        name = part.reference.name
        if name not in names and name not in form.binding.values:
            before, index = _result_place(form, name)
            names[name] = result_name(output, before, index)
    bound = bind(turn, names, form.binding.values)
    return dataclasses.replace(bound, output=turn_name(output, number), origin=Origin(call, str(number)))


def tool_call(call: str, output: str, number: int, index: int, run: ToolRun | str) -> CallSpec:
    """Return the call for tool call `index` in answer `number` of an agent, 0 for runs before the first answer.

    `run`: the run, or the reason why no tool can be run."""
    form = run if isinstance(run, ToolRun) else None
    return CallSpec(
        model="",
        output=result_name(output, number, index),
        parts=None if isinstance(run, ToolRun) else [run],
        form=form,
        origin=Origin(call, f"{number}.{index}"),
    )


def turn_name(output: str, number: int) -> str:
    """Return the name of the variable with answer `number` of an agent."""
    return f"{output}@{number}"


def result_name(output: str, number: int, index: int) -> str:
    """Return the name of the variable with the result of a tool call of an agent."""
    return f"{output}@{number}.{index}"


def result_reference(form: Agent, number: int, index: int) -> str:
    """Return a reference to the result of a tool call, for a message of the next turn; see `turn_call`."""
    return f"<<{form.prefix}_r{number}_{index}>>"


def _result_place(form: Agent, name: str) -> tuple[int, int]:
    """Return the numbers of the answer and of the tool call of a reference; see `result_reference`."""
    number, index = name.removeprefix(f"{form.prefix}_r").split("_")
    return int(number), int(index)
