"""Turn the sampling parameters of requests into those of the graph, for all endpoints."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import lru_cache

from compat.openai import ChatCompletionRequest, CompletionRequest, Semantic, SlotRequest
from compat.openai.response_formats import OutputConstraint
from compat.parrot import SamplingConfig
from engine.sampling_params import SamplingParams
from gateway.api.semantic.extension import transform_of
from gateway.errors import RequestError, field_path
from gateway.graph.segments import Segment, Slot
from gateway.prompts.served_models import ServedModel

_WITH_SERVER_DEFAULTS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
"""Parameters for which other servers have defaults of their own."""
_COMMON_FIELDS = frozenset(
    {
        *("model", "messages", "prompt", "stream", "stream_options", "n", "user", "semantic", "cache_salt"),
        *("tools", "tool_choice", "parallel_tool_calls", "store", "metadata"),
        *("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "ignore_eos"),
    }
)
"""Fields that most requests consist of. Of these, only the last row affects sampling."""
_PREDICTION_CHARACTERS = 16
"""Maximum length of a prediction, in characters for each token of the answer. Engines read no more."""
_LONGEST_ANSWER = 131_072
"""Assumed maximum length of an answer, in tokens, if neither the request nor the model has a limit."""


def request_sampling(
    body: ChatCompletionRequest | CompletionRequest, model: ServedModel, where: str = ""
) -> SamplingParams:
    """Return the sampling parameters of a request. Fields that it leaves out have OpenAI's defaults.

    `where`: path of the request in a larger one. Raises RequestError if a token is not in the vocabulary.
    """
    if body.model_fields_set <= _COMMON_FIELDS:
        return _common(body.token_limit, body.temperature, body.top_p, body.seed, bool(body.ignore_eos))
    bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    check_tokens(model, bias, field_path(where, "logit_bias"))
    check_tokens(model, body.stop_token_ids or (), field_path(where, "stop_token_ids"))

    constraint = body.output_constraint
    return SamplingParams(
        given=tuple(name for name in _WITH_SERVER_DEFAULTS if getattr(body, name) is not None),
        max_tokens=body.token_limit,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        stop=_stop_strings(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=True if body.skip_special_tokens is None else body.skip_special_tokens,
        logprobs=body.includes_logprobs,
        top_logprobs=body.top_logprob_count,
        regex=constraint.regex,
        json_schema=constraint.json_schema if constraint.original_schema is None else _schema_for(constraint, model),
        grammar=constraint.grammar,
        prediction=_cut_prediction(body, model),
    )


def _cut_prediction(body: ChatCompletionRequest | CompletionRequest, model: ServedModel) -> str:
    """Return the predicted text, cut to the longest possible answer."""
    return body.predicted_text[: _PREDICTION_CHARACTERS * (body.token_limit or model.window or _LONGEST_ANSWER)]


def _schema_for(constraint: OutputConstraint, model: ServedModel) -> str | None:
    """Return the JSON schema of an answer as the model's engine enforces it."""
    return constraint.upstream_json_schema if model.is_passthrough else constraint.json_schema


@lru_cache(1024)
def _common(
    length: int | None, temperature: float | None, top_p: float | None, seed: int | None, ignore_eos: bool
) -> SamplingParams:
    """Return the parameters of a request that has only common fields. Cached: most requests of a program are alike."""
    return SamplingParams(
        given=tuple(name for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None),
        max_tokens=length,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        seed=seed,
        ignore_eos=ignore_eos,
    )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def answer_slot(semantic: Semantic, sampling: SamplingParams, where: str = "", *, heals: bool = False) -> Slot:
    """Return the slot of a call's answer. `heals`: the answer completes a text of the client; see `Slot`."""
    transform = None
    if semantic.transform is not None:
        transform = transform_of(semantic.transform, field_path(where, "semantic.transform"))
    return Slot(None, sampling, transform, field_path(where, "semantic.output"), heals=heals)


def named_slots(semantic: Semantic, sampling: SamplingParams, where: str = "") -> dict[str, Slot]:
    """Return the slots of a request by name. Parameters that a slot leaves out are the request's, `sampling`."""
    slots = {}
    for name, requested in semantic.slots.items():
        place = field_path(where, f"semantic.slots.{name}")
        transform = transform_of(requested.transform, field_path(place, "transform"))
        slots[name] = Slot(name, _slot_sampling(requested, sampling), transform, place, heals=True)
    return slots


def _slot_sampling(requested: SlotRequest, sampling: SamplingParams) -> SamplingParams:
    """Return the parameters of one slot."""
    fields = {
        name: getattr(requested, name)
        for name in ("max_tokens", "temperature", "top_p", "seed")
        if getattr(requested, name) is not None
    }
    if requested.top_k is not None:
        fields["top_k"] = max(0, requested.top_k)
    if requested.stop is not None:
        fields["stop"] = _stop_strings(requested.stop)
    if requested.regex is not None:
        fields |= {"regex": requested.regex, "json_schema": None, "grammar": None}
    if requested.response_format is not None:
        fields |= {"regex": None, "json_schema": requested.response_format.schema_text, "grammar": None}
    return dataclasses.replace(sampling, **fields, given=(*sampling.given, *fields))


def parrot_sampling(config: SamplingConfig | None, model: ServedModel, where: str) -> SamplingParams:
    """Return the sampling parameters of a placeholder in Parrot's API. `where`: its path. Raises RequestError if a
    token is not in the vocabulary."""
    config = config or SamplingConfig()
    bias = {int(token): value for token, value in (config.logit_bias or {}).items()}
    check_tokens(model, bias, f"{where}.sampling_config.logit_bias")
    check_tokens(model, config.stop_token_ids, f"{where}.sampling_config.stop_token_ids")
    return SamplingParams(
        max_tokens=config.max_gen_length,
        temperature=config.temperature,
        top_p=config.top_p,
        stop=(config.stop_str,) if config.stop_str else (),
        stop_token_ids=tuple(config.stop_token_ids),
        ignore_eos=config.ignore_tokenizer_eos,
        presence_penalty=config.presence_penalty,
        frequency_penalty=config.frequency_penalty,
        repetition_penalty=config.repetition_penalty or 1.0,
        logit_bias=bias,
    )


def with_seed_offset(segments: Sequence[Segment], offset: int) -> list[Segment]:
    """Return the segments of a prompt, with the offset added to the seed of the answer if it has one."""
    *before, slot = segments
    assert isinstance(slot, Slot)
    if slot.sampling.seed is not None:
        slot = dataclasses.replace(slot, sampling=dataclasses.replace(slot.sampling, seed=slot.sampling.seed + offset))
    return [*before, slot]


def check_tokens(model: ServedModel, tokens: Iterable[int], param: str) -> None:
    """Raise RequestError if a token is outside the model's vocabulary. `param`: the field that holds the tokens."""
    vocabulary = model.vocabulary
    bad = None if vocabulary is None else next((token for token in tokens if token >= vocabulary), None)
    if bad is not None:
        message = f"token {bad} is outside the vocabulary of {vocabulary}"
        raise RequestError(400, message, code="invalid_value", param=param)
