"""Memory that a call occupies, in bytes. The limits of sessions count it."""

from collections.abc import Sequence

from gateway.graph.call import CallSpec
from gateway.graph.forms.form import Agent, Branch, Form, Map, Repeat, ToolRun
from gateway.graph.segments import Characters, Messages, Segment, Slot, Text
from gateway.graph.text import size_of

CALL_BYTES = 4_000
"""Memory of a call with its events, in bytes, without texts."""
VARIABLE_BYTES = 500
"""Memory of a variable, in bytes, without its value."""
_REFERENCE_BYTES, _SLOT_BYTES = 200, 500
"""Memory of a reference and of a slot, in bytes, without texts."""
_FORM_CALL_BYTES = 1_000
"""Memory of a call that a form may add, in bytes, without texts."""
_TOKEN_BYTES, _BIAS_BYTES = 40, 110
"""Memory of a stop token, and of a token with a bias, in bytes."""


def spec_bytes(spec: CallSpec) -> int:
    """Return the memory of a call's prompts, template and parameters, in bytes."""
    prompts = _prompt_bytes(spec.segments)
    for rendering in spec.fallbacks:
        prompts += _prompt_bytes(rendering.segments)
    texts = sum([size_of(part) for part in spec.parts or () if isinstance(part, str)])
    texts += sum([size_of(name) + size_of(text) for name, text in spec.defaults.items()])
    slots = _SLOT_BYTES * (len(spec.slots) - 1) if spec.slots else 0
    parameters = _parameter_bytes(spec.slots)
    form = 0 if spec.form is None else _form_bytes(spec.form)
    return prompts + texts + slots + _REFERENCE_BYTES * len(spec.references) + parameters + form


def _form_bytes(form: Form) -> int:
    """Return the memory of a form, in bytes: that of the calls that it adds, and of its texts."""
    calls: Sequence[CallSpec] = ()
    texts: list[str] = []
    match form:
        case Map(over, _, call):
            calls = (call,)
            texts = [over] if isinstance(over, str) else []
        case Branch(condition, then, otherwise, default):
            calls = (*then, *otherwise)
            texts = [condition.operand, default or ""]
        case Repeat(inner, first, carry, until):
            calls = inner
            templates = (*first.values(), *carry.values())
            texts = [part for template in templates for part in template if isinstance(part, str)]
            texts.append(until.operand)
        case ToolRun(arguments=text, binding=binding):
            texts = [text, *binding.values.values()]
        case Agent(body=text, binding=binding, first=first):
            runs = [run.arguments if isinstance(run, ToolRun) else run for run in first]
            texts = [text, *binding.values.values(), *runs]
    return sum(map(size_of, texts)) + sum([_FORM_CALL_BYTES + spec_bytes(call) for call in calls])


def _prompt_bytes(segments: Sequence[Segment]) -> int:
    """Return the memory of a prompt. A token has four bytes. So has a character, of which some need as many."""
    size = 0
    for segment in segments:
        match segment:
            case Text(tokens):
                size += 4 * len(tokens)
            case Characters(text):
                size += 4 * len(text)
            case Messages():
                size += 4 * segment.size
    return size


def _parameter_bytes(slots: Sequence[Slot]) -> int:
    """Return the memory of the slots' parameters of variable size, in bytes. Parameters that slots share count once."""
    seen: set[int] = set()
    size = 0
    for slot in slots:
        if slot.transform is not None and id(slot.transform) not in seen:
            seen.add(id(slot.transform))
            size += len(slot.transform.regex or "") + len(slot.transform.json or "")
        sampling = slot.sampling
        if id(sampling) in seen:
            continue
        seen.add(id(sampling))
        for text in (sampling.regex, sampling.json_schema, sampling.grammar, sampling.prediction, *sampling.stop):
            if text and id(text) not in seen:
                seen.add(id(text))
                size += size_of(text)
        for items, each in ((sampling.logit_bias, _BIAS_BYTES), (sampling.stop_token_ids, _TOKEN_BYTES)):
            if items and id(items) not in seen:
                seen.add(id(items))
                size += each * len(items)
    return size
