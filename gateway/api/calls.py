"""A request as a call: what chat completions, completions and graphs have in common."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from compat.openai import ChatCompletionRequest, CompletionRequest, Semantic
from gateway.api.semantic import text_of, transform_of
from gateway.errors import RequestError, at
from gateway.graph.call import CallSpec, Objective, Sampling, Segment, Slot, Text
from gateway.models import ServedModel
from gateway.prompt import Prompt

LONG_PROMPT = 4_000
"""Characters; longer prompts are tokenised off the event loop."""


def sampling_of(body: ChatCompletionRequest | CompletionRequest, model: ServedModel, where: str = "") -> Sampling:
    """The request's parameters in the domain's terms; what is left out gets OpenAI's default.

    `where`: the path of the request in a larger one. Raises RequestError.
    """
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    check_tokens(model, bias, at(where, "logit_bias"))
    check_tokens(model, body.stop_token_ids or (), at(where, "stop_token_ids"))

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        max_tokens=body.length,
        temperature=given(body.temperature, 1.0),
        top_p=given(body.top_p, 1.0),
        top_k=max(0, given(body.top_k, 0)),
        min_p=given(body.min_p, 0.0),
        seed=body.seed,
        repetition_penalty=given(body.repetition_penalty, 1.0),
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        logit_bias=bias,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=given(body.min_tokens, 0),
        ignore_eos=given(body.ignore_eos, False),
        skip_special_tokens=given(body.skip_special_tokens, True),
        logprobs=body.wants_logprobs,
        top_logprobs=body.alternatives,
        regex=body.form.regex,
        json_schema=body.form.json_schema,
        grammar=body.form.grammar,
    )


def answer_slot(semantic: Semantic, sampling: Sampling, where: str = "") -> Slot:
    """The place of a call's answer."""
    return Slot(None, sampling, transform_of(semantic.transform), at(where, "semantic.output"))


def several(spec: CallSpec, count: int) -> list[CallSpec]:
    """The call so many times, each with a seed of its own if it has one. Only the first takes the output's name.

    Raises RequestError if it generates slots, whose names can be taken once.
    """
    if count == 1:
        return [spec]
    if spec.parts is not None:
        raise RequestError(
            400,
            "a request with slots has one answer: n is 1",
            code="unsupported_with_semantic",
            param=spec.at("n"),
        )
    specs = []
    for number in range(count):
        *before, slot = spec.segments
        assert isinstance(slot, Slot)
        if slot.sampling.seed is not None:
            slot = dataclasses.replace(
                slot, sampling=dataclasses.replace(slot.sampling, seed=slot.sampling.seed + number)
            )
        own = dataclasses.replace(spec, segments=[*before, slot], share=False)
        specs.append(dataclasses.replace(own, output=None, inputs={}) if number else own)
    return specs


def spec_of(
    model: ServedModel,
    prompt: Prompt,
    body: ChatCompletionRequest | CompletionRequest,
    *,
    deferred: bool,
    where: str = "",
) -> CallSpec:
    """The call. Raises RequestError if what is known of its prompt is over the window already."""
    semantic = body.semantic or Semantic()
    check_window(model, prompt.segments, at(where, prompt.field))
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
    )


def check_window(model: ServedModel, segments: Sequence[Segment], param: str) -> None:
    """Raises RequestError if what is known of a prompt, which came from `param`, is over the window already."""
    known = sum(len(segment.tokens) for segment in segments if isinstance(segment, Text))
    if known >= model.window:
        raise RequestError(
            400,
            f"this model's window is {model.window} tokens, and the prompt has {known}; shorten it",
            code="context_length_exceeded",
            param=param,
        )


def check_tokens(model: ServedModel, tokens: Iterable[int], param: str) -> None:
    """Raises RequestError if one of the tokens, which came from `param`, is none of the model's."""
    bad = next((token for token in tokens if token >= model.vocabulary), None)
    if bad is not None:
        raise RequestError(
            400,
            f"token {bad} is outside the vocabulary of {model.vocabulary}",
            code="invalid_value",
            param=param,
        )
