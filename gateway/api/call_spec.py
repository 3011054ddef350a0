"""Put a prompt and the fields of a request together into a call."""

from collections.abc import Sequence

from compat.openai import ChatCompletionRequest, CompletionRequest
from gateway.api.semantic.extension import NO_EXTENSION, text_of
from gateway.errors import field_path
from gateway.graph.call import CallSpec, Objective
from gateway.graph.segments import Segment, Text
from gateway.prompts.prompt import Prompt, over_window
from gateway.prompts.served_models import ServedModel


def new_spec(
    model: ServedModel,
    prompt: Prompt,
    body: ChatCompletionRequest | CompletionRequest,
    *,
    deferred: bool,
    where: str = "",
) -> CallSpec:
    """Return the call of a request with this prompt. `where`: path of the request in a larger one.

    Raises RequestError if the known part of the prompt exceeds the model's context window.
    """
    semantic = body.semantic or NO_EXTENSION
    check_window(model, prompt.segments, field_path(where, prompt.field))
    return CallSpec(
        model=model.id,
        segments=prompt.segments,
        parts=prompt.parts,
        inputs={name: text_of(value) for name, value in semantic.inputs.items()},
        output=semantic.output,
        deferred=deferred,
        objective=Objective(semantic.objective) if semantic.objective else None,
        share=semantic.share,
        salt=body.cache_salt or "",
        where=where,
        prompt_field=prompt.field,
    )


def check_window(model: ServedModel, segments: Sequence[Segment], param: str) -> None:
    """Raise RequestError if the known part of a prompt exceeds the model's context window. `param`: its field."""
    if model.window is None or model.is_passthrough:  # the upstream server checks it
        return
    known = sum(len(segment.tokens) for segment in segments if isinstance(segment, Text))
    if known >= model.window:
        raise over_window(model.window, known, param)
