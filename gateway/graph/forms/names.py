"""Rename the variables that a call reads and generates, and replace references by texts."""

import dataclasses
from collections.abc import Mapping, Sequence

from gateway.graph.call import CallSpec, Rendering
from gateway.graph.errors import UnresolvedPath
from gateway.graph.forms.form import (
    INDEX,
    Agent,
    Binding,
    Branch,
    Condition,
    Form,
    Map,
    Repeat,
    Template,
    ToolRun,
    names_of,
)
from gateway.graph.references import Reference, resolve
from gateway.graph.segments import Characters, Input, Segment, Slot, escape_json


def bind(spec: CallSpec, names: Mapping[str, str], values: Mapping[str, str]) -> CallSpec:
    """Return a call that reads and generates other names. Raises UnresolvedPath if a text does not contain a path.

    `names`: new names by old names. `values`: texts by the names that they replace. Names that a form inside the call
    gives to its own calls stay as they are. A call inside a form that lacks a path fails only if it runs: a branch may
    choose between elements of different kinds.
    """
    if not names and not values:
        return spec
    return dataclasses.replace(
        spec,
        segments=_bind_segments(spec.segments, names, values),
        parts=None if spec.parts is None else bind_template(spec.parts, names, values),
        defaults={names.get(name, name): text for name, text in spec.defaults.items()},
        output=None if spec.output is None else names.get(spec.output, spec.output),
        more_outputs=[names.get(name, name) for name in spec.more_outputs],
        fallbacks=[
            Rendering(rendering.model, _bind_segments(rendering.segments, names, values))
            for rendering in spec.fallbacks
        ],
        form=None if spec.form is None else _bind_form(spec.form, names, values),
    )


def _bind_inner(spec: CallSpec, names: Mapping[str, str], values: Mapping[str, str]) -> CallSpec:
    """Return a call of a form that reads and generates other names; see `bind`."""
    try:
        return bind(spec, names, values)
    except UnresolvedPath as error:
        output = None if spec.output is None else names.get(spec.output, spec.output)
        more = [names.get(name, name) for name in spec.names if name != spec.output]
        return CallSpec(model="", output=output, more_outputs=more, where=spec.where, unresolved=str(error))


def bind_template(template: Template, names: Mapping[str, str], values: Mapping[str, str]) -> Template:
    """Return a template that reads other names; see `bind`."""
    parts: list[str | Input] = []
    for part in template:
        if isinstance(part, str):
            parts.append(part)
            continue
        value = _value(part.reference, values)
        parts.append(_rename(part, names) if value is None else value)
    return parts


def bind_condition(condition: Condition, names: Mapping[str, str], values: Mapping[str, str]) -> Condition:
    """Return a condition that reads other names; see `bind`."""
    return dataclasses.replace(condition, value=bind_template(condition.value, names, values))


def _bind_segments(
    segments: Sequence[Segment], names: Mapping[str, str], values: Mapping[str, str]
) -> Sequence[Segment]:
    bound: list[Segment] = []
    for segment in segments:
        match segment:
            case Input(reference, _, in_json):
                value = _value(reference, values)
                if value is None:
                    bound.append(_rename(segment, names))
                else:
                    bound.append(Characters(escape_json(value) if in_json else value))
            case Slot(name) if name is not None and name in names:
                bound.append(dataclasses.replace(segment, name=names[name]))
            case _:
                bound.append(segment)
    return bound


def _rename(part: Input, names: Mapping[str, str]) -> Input:
    name, path = part.reference.name, part.reference.path
    return dataclasses.replace(part, reference=Reference(names[name], path)) if name in names else part


def _value(reference: Reference, values: Mapping[str, str]) -> str | None:
    """Return the text that replaces a reference; None if its name has no value."""
    text = values.get(reference.name)
    return None if text is None else resolve(text, reference)


def _bind_form(form: Form, names: Mapping[str, str], values: Mapping[str, str]) -> Form:
    match form:
        case Map(over, item, call):
            if isinstance(over, Input):
                value = _value(over.reference, values)
                over = _rename(over, names) if value is None else value
            inner = {item, INDEX, *call.names}
            return dataclasses.replace(
                form, over=over, call=_bind_inner(call, _without(names, inner), _without(values, inner))
            )
        case Branch(condition, then, otherwise):  # what the sides generate are the form's own outputs
            return dataclasses.replace(
                form,
                condition=bind_condition(condition, names, values),
                then=[_bind_inner(call, names, values) for call in then],
                otherwise=[_bind_inner(call, names, values) for call in otherwise],
            )
        case Repeat(calls, first, carry, until):
            inner = names_of(calls) | carry.keys()
            inner_names, inner_values = _without(names, inner), _without(values, inner)
            return dataclasses.replace(
                form,
                calls=[_bind_inner(call, inner_names, inner_values) for call in calls],
                first={name: bind_template(template, names, values) for name, template in first.items()},
                carry={name: bind_template(template, inner_names, inner_values) for name, template in carry.items()},
                until=bind_condition(until, inner_names, inner_values),
            )
        case ToolRun() | Agent():
            new_names, new_values = {}, dict(form.binding.values)
            for name, variable in form.binding.names.items():
                if variable in values:
                    new_values[name] = values[variable]
                else:
                    new_names[name] = names.get(variable, variable)
            inputs = [_rename(part, names) for part in form.inputs if _value(part.reference, values) is None]
            return dataclasses.replace(form, inputs=inputs, binding=Binding(new_names, new_values))


def _without(mapping: Mapping[str, str], names: set[str]) -> Mapping[str, str]:
    return {name: value for name, value in mapping.items() if name not in names}
