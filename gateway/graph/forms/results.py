"""Results of a map as JSON, and references into the list before it is complete."""

import json

from gateway.graph.call import Call
from gateway.graph.forms.form import Map
from gateway.graph.references import Reference, list_index, resolve
from gateway.graph.variable import Variable


def result_json(form: Map, text: str) -> str:
    """Return the answer for an element as JSON. An answer that is JSON stays as it is if the map's answers are JSON
    values. Any other answer becomes a string."""
    if form.has_json_results:
        try:
            return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        except (ValueError, RecursionError):
            pass  # an answer that was cut off is a text
    return json.dumps(text, ensure_ascii=False)


def reads_element(source: Variable, reference: Reference) -> bool:
    """Return whether a reference reads one element of a map's list, at a place that is known before the list is.

    False for a map that leaves elements out: its places are known only when all answers are.
    """
    form = _map_of(source)
    return form is not None and form.on_error != "skip" and element_index(reference) is not None


def element_index(reference: Reference) -> int | None:
    """Return the index of the element that a reference into a list reads; None if its path begins with no index."""
    return list_index(reference.path[0]) if reference.path else None


def call_of_element(source: Variable, reference: Reference) -> Call | None:
    """Return the call of the element that a reference reads, if the map has added it. See `reads_element`."""
    index = element_index(reference)
    return None if source.producer is None or index is None else source.producer.children.get(str(index))


def read_element(source: Variable, reference: Reference, answer: str) -> str:
    """Return the text that a reference into an element stands for. `answer`: the element's answer. Raises
    UnresolvedPath if the path leads nowhere. The complete list would give the same."""
    form = _map_of(source)
    assert form is not None, "see `reads_element`"
    return resolve(result_json(form, answer), reference, begin=1)


def _map_of(source: Variable) -> Map | None:
    form = None if source.producer is None else source.producer.spec.form
    return form if isinstance(form, Map) else None
