"""Profiles: which features each kind of server has beyond OpenAI's API, and how requests use them."""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from gateway.engines.protocol import ContextRefused
from gateway.graph.sampling import SamplingParams

_OPENAI = frozenset(
    {"temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "logprobs"}
)
_SAMPLING = frozenset(
    {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "min_tokens", "ignore_eos", "skip_special_tokens"}
)


@dataclass(frozen=True)
class Profile:
    """Features of a kind of server.

    `fields`: request fields beyond OpenAI's that it knows. `length`: field with the maximum number of tokens of a
    chat's answer. `goes_on`: how an unfinished assistant message is continued: by `flags`, `always` if it is the last
    message, or not at all. `regex`, `grammar`: fields that constrain an answer. `salt`: field that separates caches.
    `urgency`: field with the priority, and whether lower values go first. `takes_tokens`: whether prompts can be
    tokens. `predicts`: whether it accepts a predicted output. `health`: path of the health check. `load`: metrics whose
    sum is the number of its requests.
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
        """Return the profile of a server that documents the fields of its chat requests. Without documented fields, it
        is the usual one of its kind."""
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
        """Return the request fields for sampling. Defaults are left to the server.

        Raises ContextRefused if the server has no field for a parameter.
        """
        sampling = sampling.with_positive_top_p
        parameters: dict[str, Any] = {}
        for name, value in sampling.specified.items():
            if name in _SAMPLING and name not in self.fields:
                raise self.refusal(name, name)
            if name in _SAMPLING or name in _OPENAI:
                parameters[name] = list(value) if isinstance(value, tuple) else value
        if parameters.get("top_k") == 0:
            parameters["top_k"] = -1  # all of these servers read -1 as "off"; not all read 0 so
        if sampling.logprobs:
            if chat:
                parameters["top_logprobs"] = sampling.top_logprobs
            else:
                parameters["logprobs"] = sampling.top_logprobs
        if sampling.logit_bias:
            parameters["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.max_tokens is not None:
            parameters[self.length if chat else "max_tokens"] = sampling.max_tokens
        if sampling.prediction and self.predicts and chat:
            parameters["prediction"] = {"type": "content", "content": sampling.prediction}
        return parameters | self._constraint(sampling)

    def _constraint(self, sampling: SamplingParams) -> dict[str, Any]:
        if sampling.json_schema is not None:
            schema = json.loads(sampling.json_schema)
            if schema == {"type": "object"}:
                return {"response_format": {"type": "json_object"}}
            json_schema = {"name": "answer", "schema": schema, "strict": _can_be_strict(schema)}
            return {"response_format": {"type": "json_schema", "json_schema": json_schema}}
        if sampling.regex is not None:
            return self._constraint_field("regex", self.regex, sampling.regex)
        if sampling.grammar is not None:
            return self._constraint_field("grammar", self.grammar, sampling.grammar)
        return {}

    def _constraint_field(self, kind: str, field: str | None, value: str) -> dict[str, Any]:
        if field is None:
            raise self.refusal(kind)
        return {field: {kind: value} if field == "structured_outputs" else value}

    def refusal(self, what: str, field: str | None = None) -> ContextRefused:
        """Return the error for a feature that this kind of server lacks. `field`: the request's field that needs it."""
        return ContextRefused("unsupported_by_engine", f"an engine of kind {self.kind} does not support {what}", field)


def _can_be_strict(schema: Any) -> bool:
    """Return whether OpenAI accepts the schema as strict: all objects are closed, and all their properties required."""
    if isinstance(schema, list):
        return all(_can_be_strict(item) for item in schema)
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        names = set(schema.get("properties", ()))
        if schema.get("additionalProperties") is not False or names != set(schema.get("required", ())):
            return False
    return all(_can_be_strict(value) for value in schema.values())


OPENAI = Profile("openai")
"""Any server with OpenAI's API, without known extensions."""
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
"""Profiles by the name that `--engine` gives."""


def profile_of(kind: str, host: str) -> Profile:
    """Return the profile of a server of this kind on this host."""
    return OPENAI_ITSELF if kind == "openai" and host == "api.openai.com" else KINDS[kind]
