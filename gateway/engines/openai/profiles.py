"""What a kind of server can do beyond OpenAI's own API, and how a request tells it."""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from gateway.engines.protocol import ContextRefused
from gateway.graph.call import SamplingParams

_OPENAI = frozenset(
    {"temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "logprobs"}
)
_SAMPLING = frozenset(
    {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "min_tokens", "ignore_eos", "skip_special_tokens"}
)


@dataclass(frozen=True)
class Profile:
    """A kind of server.

    `fields`: of requests, which it knows besides OpenAI's. `length`: the field with the most tokens of a chat's answer.
    `goes_on`: how an assistant's message that was begun is gone on with: by flags, as any last message that is an
    assistant's, or not at all. `regex`, `grammar`: the field that holds an answer to one. `salt`: the field that keeps
    caches apart. `urgency`: the field with the rank, and whether less is sooner. `predicts`: whether it may be told
    what much of an answer may be. `health`: where it says that it is well. `load`: names of the metrics that add up to
    the requests it has.
    """

    kind: str
    fields: Collection[str] = frozenset()
    length: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    goes_on: Literal["flags", "always"] | None = None
    regex: str | None = None
    grammar: str | None = None
    salt: str | None = None
    urgency: tuple[str, bool] | None = None
    takes_tokens: bool = False
    predicts: bool = False
    health: str = "/v1/models"
    load: Collection[str] = ()

    def knowing(self, fields: Collection[str]) -> "Profile":
        """The same, of a server that says which fields its chat requests have. One that says nothing is taken for the
        usual one of its kind."""
        if not fields:
            return self
        learned: dict[str, Any] = {"fields": frozenset(self.fields) | (_SAMPLING & set(fields))}
        if self.goes_on is None and {"continue_final_message", "add_generation_prompt"} <= set(fields):
            learned["goes_on"] = "flags"
        if "cache_salt" in fields:
            learned["salt"] = "cache_salt"
        elif self.salt not in fields:
            learned["salt"] = None
        if self.urgency is not None and self.urgency[0] not in fields:
            learned["urgency"] = None
        if self.regex is not None and self.regex not in fields:
            learned["regex"] = "guided_regex" if "guided_regex" in fields else None
        return dataclasses.replace(self, **learned)

    def parameters(self, sampling: SamplingParams, *, chat: bool) -> dict[str, Any]:
        """How the text is chosen, as a request says it; what is as usual is left to the server.

        Raises ContextRefused if it cannot be said.
        """
        sampling = sampling.plain
        told: dict[str, Any] = {}
        for name, value in sampling.told.items():
            if name in _SAMPLING and name not in self.fields:
                raise self.refusal(name, name)
            if name in _SAMPLING or name in _OPENAI:
                told[name] = list(value) if isinstance(value, tuple) else value
        if told.get("top_k") == 0:
            told["top_k"] = -1  # all of them know this for "off", and not all know 0
        if sampling.logprobs:
            if chat:
                told["top_logprobs"] = sampling.top_logprobs
            else:
                told["logprobs"] = sampling.top_logprobs
        if sampling.logit_bias:
            told["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.max_tokens is not None:
            told[self.length if chat else "max_tokens"] = sampling.max_tokens
        if sampling.prediction and self.predicts and chat:
            told["prediction"] = {"type": "content", "content": sampling.prediction}
        return told | self._form(sampling)

    def _form(self, sampling: SamplingParams) -> dict[str, Any]:
        if sampling.json_schema is not None:
            schema = json.loads(sampling.json_schema)
            if schema == {"type": "object"}:
                return {"response_format": {"type": "json_object"}}
            held = {"name": "answer", "schema": schema, "strict": _can_be_strict(schema)}
            return {"response_format": {"type": "json_schema", "json_schema": held}}
        if sampling.regex is not None:
            return self._held("regex", self.regex, sampling.regex)
        if sampling.grammar is not None:
            return self._held("grammar", self.grammar, sampling.grammar)
        return {}

    def _held(self, what: str, field: str | None, value: str) -> dict[str, Any]:
        if field is None:
            raise self.refusal(what)
        return {field: {what: value} if field == "structured_outputs" else value}

    def refusal(self, what: str, field: str | None = None) -> ContextRefused:
        """Return the error for what a server of this kind cannot do. `field`: the request's field that asks for it."""
        return ContextRefused("unsupported_by_engine", f"an engine of kind {self.kind} cannot do {what}", field)


def _can_be_strict(schema: Any) -> bool:
    """Whether OpenAI would hold an answer to it: its objects are closed, and all of their properties required."""
    if isinstance(schema, list):
        return all(_can_be_strict(one) for one in schema)
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        names = set(schema.get("properties", ()))
        if schema.get("additionalProperties") is not False or names != set(schema.get("required", ())):
            return False
    return all(_can_be_strict(value) for value in schema.values())


OPENAI = Profile("openai")
"""Any server with OpenAI's API, of which nothing else is known."""
OPENAI_ITSELF = dataclasses.replace(OPENAI, length="max_completion_tokens", predicts=True)
VLLM = Profile(
    "vllm",
    fields=_SAMPLING,
    goes_on="flags",
    regex="structured_outputs",
    grammar="structured_outputs",
    salt="cache_salt",
    urgency=("priority", True),
    takes_tokens=True,
    health="/health",
    load=("vllm:num_requests_running", "vllm:num_requests_waiting"),
)
SGLANG = Profile(
    "sglang",
    fields=_SAMPLING,
    goes_on="flags",
    regex="regex",
    salt="cache_salt",
    urgency=("priority", False),
    takes_tokens=True,
    health="/health",
    load=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
)
LLAMACPP = Profile(
    "llamacpp",
    fields=_SAMPLING - {"stop_token_ids", "min_tokens", "skip_special_tokens"},
    goes_on="always",
    takes_tokens=True,
    health="/health",
    load=("llamacpp:requests_processing", "llamacpp:requests_deferred"),
)
MYNA = Profile(
    "myna",
    fields=_SAMPLING,
    goes_on="flags",
    regex="guided_regex",
    grammar="guided_grammar",
    salt="cache_salt",
    takes_tokens=True,
    predicts=True,
    health="/health/ready",
    load=("myna_calls_unfinished",),
)
KINDS = {profile.kind: profile for profile in (OPENAI, VLLM, SGLANG, LLAMACPP, MYNA)}
"""By the name that `--engine` gives."""


def profile_of(kind: str, host: str) -> Profile:
    """Of a server of that kind there."""
    return OPENAI_ITSELF if kind == "openai" and host == "api.openai.com" else KINDS[kind]
