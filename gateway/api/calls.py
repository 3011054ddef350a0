"""A request as a call: what chat completions, completions and graphs have in common."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TypeVar

from compat.openai import ChatCompletionRequest, CompletionRequest, Semantic
from compat.openai.response_formats import Form
from gateway.api.semantic.extension import UNSAID, text_of, transform_of
from gateway.errors import RequestError, at
from gateway.graph.call import CallSpec, Objective, Rendering, SamplingParams, Segment, Slot, Text
from gateway.prompts.builder import Prompt, over_window
from gateway.prompts.served_models import ServedModel
from gateway.runtime.executors import offload

_HAVE_DEFAULTS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""Parameters for which servers have defaults of their own."""
_COMMON = frozenset(
    {
        *("model", "messages", "prompt", "stream", "stream_options", "n", "user", "semantic", "cache_salt"),
        *("tools", "tool_choice", "parallel_tool_calls", "store", "metadata"),
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "ignore_eos"),
    }
)
"""What most requests say; all that follows from it for sampling follows from the last row."""
_PREDICTED = 16
"""Characters of a prediction that are passed on for each token that the answer may have. Engines read no more."""
_LONGEST_ANSWER = 131_072
"""Tokens, where neither the request nor the model has a bound."""
_LONG = 4_000
"""Characters; longer prompts are tokenised off the event loop."""
_LONG_AS_IT_IS = 400_000
"""The same for prompts that are passed on without being tokenised."""
_Made = TypeVar("_Made")


async def prepared(make: Callable[[], _Made], characters: int, *models: ServedModel) -> _Made:
    """What `make` makes of a request with so many characters for some models: here, or in a thread if it takes long."""
    if characters < _LONG:
        return make()
    few = _LONG_AS_IT_IS if all(model.tokenizer.is_passthrough for model in models) else _LONG
    return make() if characters < few else await offload(make, characters)


def sampling_of(body: ChatCompletionRequest | CompletionRequest, model: ServedModel, where: str = "") -> SamplingParams:
    """The request's parameters in the domain's terms; what is left out gets OpenAI's default.

    `where`: the path of the request in a larger one. Raises RequestError.
    """
    if body.model_fields_set <= _COMMON:
        return _common(body.length, body.temperature, body.top_p, body.seed, bool(body.ignore_eos))
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    check_tokens(model, bias, at(where, "logit_bias"))
    check_tokens(model, body.stop_token_ids or (), at(where, "stop_token_ids"))

    form = body.form
    return SamplingParams(
        given=tuple(name for name in _HAVE_DEFAULTS if getattr(body, name) is not None),
        max_tokens=body.length,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=True if body.skip_special_tokens is None else body.skip_special_tokens,
        logprobs=body.wants_logprobs,
        top_logprobs=body.alternatives,
        regex=form.regex,
        json_schema=form.json_schema if form.given is None else _schema_of(form, model),
        grammar=form.grammar,
        prediction=body.predicted[: _PREDICTED * (body.length or model.window or _LONGEST_ANSWER)],
    )


def _schema_of(form: Form, model: ServedModel) -> str | None:
    """Return the JSON schema of an answer for the model's engine."""
    return form.json_schema_elsewhere if model.prompts.is_passthrough else form.json_schema


@lru_cache(1024)
def _common(
    length: int | None, temperature: float | None, top_p: float | None, seed: int | None, ignore_eos: bool
) -> SamplingParams:
    """The same, where no other parameter is given: made once, since most requests of a program are alike in them."""
    return SamplingParams(
        given=tuple(name for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None),
        max_tokens=length,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
        ignore_eos=ignore_eos,
    )


def answer_slot(semantic: Semantic, sampling: SamplingParams, where: str = "") -> Slot:
    """The place of a call's answer."""
    return Slot(
        None, sampling, transform_of(semantic.transform, at(where, "semantic.transform")), at(where, "semantic.output")
    )


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
        own = dataclasses.replace(
            spec,
            segments=_reseeded(spec.segments, number),
            fallbacks=tuple(Rendering(one.model, _reseeded(one.segments, number)) for one in spec.fallbacks),
            share=False,
        )
        specs.append(dataclasses.replace(own, output=None, inputs={}) if number else own)
    return specs


def _reseeded(segments: Sequence[Segment], number: int) -> list[Segment]:
    """With the seed of the how-many-th answer, if there is one."""
    *before, slot = segments
    assert isinstance(slot, Slot)
    if slot.sampling.seed is not None:
        slot = dataclasses.replace(slot, sampling=dataclasses.replace(slot.sampling, seed=slot.sampling.seed + number))
    return [*before, slot]


def with_fallbacks(spec: CallSpec, others: Sequence[ServedModel], make: Callable[[ServedModel], CallSpec]) -> CallSpec:
    """The call, with its prompt for each of the models that answer in its own one's place. `make` renders it.

    A model for which it cannot be rendered is left out, and all where the request speaks of tokens by their numbers.
    """
    if not others:
        return spec
    samplings = [slot.sampling for slot in spec.slots]
    if any(one.logit_bias or one.stop_token_ids or one.logprobs for one in samplings):
        return spec
    made = []
    for other in others:
        with suppress(RequestError):
            made.append(Rendering(other.id, make(other).segments))
    return dataclasses.replace(spec, fallbacks=tuple(made))


def spec_of(
    model: ServedModel,
    prompt: Prompt,
    body: ChatCompletionRequest | CompletionRequest,
    *,
    deferred: bool,
    where: str = "",
) -> CallSpec:
    """The call. Raises RequestError if what is known of its prompt is over the window already."""
    semantic = body.semantic or UNSAID
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
        prompt_field=prompt.field,
    )


def check_window(model: ServedModel, segments: Sequence[Segment], param: str) -> None:
    """Raises RequestError if what is known of a prompt, which came from `param`, is over the window already."""
    if model.window is None or model.tokenizer.is_passthrough:  # its server will say
        return
    known = sum(len(segment.tokens) for segment in segments if isinstance(segment, Text))
    if known >= model.window:
        raise over_window(model.window, known, param)


def check_tokens(model: ServedModel, tokens: Iterable[int], param: str) -> None:
    """Raises RequestError if one of the tokens, which came from `param`, is none of the model's."""
    vocabulary = model.vocabulary
    bad = None if vocabulary is None else next((token for token in tokens if token >= vocabulary), None)
    if bad is not None:
        raise RequestError(
            400,
            f"token {bad} is outside the vocabulary of {vocabulary}",
            code="invalid_value",
            param=param,
        )
