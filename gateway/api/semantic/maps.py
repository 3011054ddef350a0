"""Translate maps: the form `map` of a graph, and `semantic.each` of a chat completion."""

import dataclasses

from compat.openai import EachRequest
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.graph.errors import BadReference
from gateway.graph.forms.form import INDEX, Map
from gateway.graph.references import Reference, check_name, parse
from gateway.graph.segments import Input
from gateway.runtime.json_codec import encode_json


def map_form(each: EachRequest, call: CallSpec, where: str) -> Map:
    """Return a map. `call`: the call for an element. `where`: path of `each` in the request."""
    check_name(each.as_, f"{where}.as")
    if each.as_ == INDEX:
        message = f"{INDEX!r} is the name of the element's position; choose another one"
        raise RequestError(400, message, code="invalid_value", param=f"{where}.as")
    if isinstance(each.over, str):
        over: Input | str = _reference(each.over, f"{where}.over")
    else:
        over = encode_json(each.over).decode()
    return Map(over, each.as_, call, each.max_items, each.on_error, _yields_json(call))


def each_spec(spec: CallSpec, each: EachRequest) -> CallSpec:
    """Return the map that a chat completion with `semantic.each` stands for. `spec`: its call."""
    call = dataclasses.replace(spec, output=None, inputs={}, deferred=False)
    return spec.as_form(map_form(each, call, "semantic.each"))


def _reference(text: str, where: str) -> Input:
    """Return the reference that a field consists of. Raises BadReference if it is anything else."""
    parts = list(parse(text))
    if len(parts) != 1 or not isinstance(parts[0], Reference):
        raise BadReference(f"{where} must be one reference, such as '<<plan.steps>>', or a list", where)
    return Input(parts[0], where)


def _yields_json(call: CallSpec) -> bool:
    """Return whether the answers of a map's call are JSON values: lists of maps, or answers with a JSON schema."""
    if call.form is not None:
        return isinstance(call.form, Map)
    answer = call.slots[-1] if call.slots else None
    return answer is not None and answer.transform is None and answer.sampling.json_schema is not None
