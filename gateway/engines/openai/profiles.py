"""Profiles: which features each kind of server has beyond OpenAI's API, and how requests use them."""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import ContextRefused

_OPENAI = frozenset(
    {"temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "logprobs"}
)
_SAMPLING = frozenset(
    {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "min_tokens", "ignore_eos", "skip_special_tokens"}
)


@dataclass(frozen=True)
class Profile:
    """Features of a kind of server.

    `fields`: request fields beyond OpenAI's that it knows. `length_field`: field with the maximum number of tokens of a
    chat's answer. `continuation`: how an unfinished assistant message is continued: by `flags`, `always` if it is the
    last message, or not at all. `regex_field`, `grammar_field`: fields that constrain an answer. `salt_field`: field
    that separates caches. `priority_field`: field with the priority, and whether lower values go first.
    `accepts_tokens`: whether prompts can be tokens. `accepts_prediction`: whether it accepts a predicted output.
    `accepts_template_options`: whether it passes `chat_template_kwargs` to its chat template. `key_header`: header with
    the API key. `fixed_headers`: names and values of further headers of each request.
    `health_path`: path of the health check. `load_metrics`: metrics whose sum is the number of its requests.
    """

    kind: str
    fields: Collection[str] = frozenset()
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    continuation: Literal["flags", "always"] | None = None
    regex_field: str | None = None
    grammar_field: str | None = None
    salt_field: str | None = None
    priority_field: tuple[str, bool] | None = None
    accepts_tokens: bool = False
    accepts_prediction: bool = False
    accepts_template_options: bool = False
    key_header: Literal["authorization", "x-api-key"] = "authorization"
    fixed_headers: tuple[tuple[str, str], ...] = ()
    health_path: str = "/v1/models"
    load_metrics: Collection[str] = ()

    @property
    def models_path(self) -> str:
        """Path of the list of models. Anthropic's API lists 20 of them unless a request asks for more."""
        return "/v1/models?limit=1000" if self.kind == "anthropic" else "/v1/models"

    def headers(self, key: str | None) -> dict[str, str]:
        """Return the headers of each request. `key`: the API key, if there is one."""
        headers = dict(self.fixed_headers)
        if key and self.key_header == "authorization":
            headers["Authorization"] = f"Bearer {key}"
        elif key:
            headers[self.key_header] = key
        return headers

    def adapt(self, fields: Collection[str]) -> "Profile":
        """Return the profile of a server that documents the fields of its chat requests. Without documented fields, it
        is the usual one of its kind."""
        if not fields:
            return self
        learned: dict[str, Any] = {"fields": frozenset(self.fields) | (_SAMPLING & set(fields))}
        if self.continuation is None and {"continue_final_message", "add_generation_prompt"} <= set(fields):
            learned["continuation"] = "flags"
        if "cache_salt" in fields:
            learned["salt_field"] = "cache_salt"
        elif self.salt_field not in fields:
            learned["salt_field"] = None
        if self.priority_field is not None and self.priority_field[0] not in fields:
            learned["priority_field"] = None
        if self.regex_field is not None and self.regex_field not in fields:
            learned["regex_field"] = "guided_regex" if "guided_regex" in fields else None
        return dataclasses.replace(self, **learned)

    def parameters(self, sampling: SamplingParams, *, chat: bool) -> dict[str, Any]:
        """Return the request fields for sampling. Defaults are left to the server.

        Raises ContextRefused if the server has no field for a parameter.
        """
        sampling = sampling.with_positive_top_p
        parameters: dict[str, Any] = {}
        for name, value in sampling.specified.items():
            if name in _SAMPLING and name not in self.fields:
                raise self.unsupported_error(name, name)
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
            parameters[self.length_field if chat else "max_tokens"] = sampling.max_tokens
        if sampling.prediction and self.accepts_prediction and chat:
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
            return self._constraint_field("regex", self.regex_field, sampling.regex)
        if sampling.grammar is not None:
            return self._constraint_field("grammar", self.grammar_field, sampling.grammar)
        return {}

    def _constraint_field(self, kind: str, field: str | None, value: str) -> dict[str, Any]:
        if field is None:
            raise self.unsupported_error(kind)
        return {field: {kind: value} if field == "structured_outputs" else value}

    def unsupported_error(self, feature: str, field: str | None = None) -> ContextRefused:
        """Return the error for a feature that this kind of server lacks. `field`: the request's field that needs it."""
        return ContextRefused(
            "unsupported_by_engine", f"an engine of kind {self.kind} does not support {feature}", field
        )


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
OPENAI_ITSELF = dataclasses.replace(OPENAI, length_field="max_completion_tokens", accepts_prediction=True)
VLLM = Profile(
    "vllm",
    fields=_SAMPLING,
    continuation="flags",
    regex_field="structured_outputs",
    grammar_field="structured_outputs",
    salt_field="cache_salt",
    priority_field=("priority", True),
    accepts_tokens=True,
    accepts_template_options=True,
    health_path="/health",
    load_metrics=("vllm:num_requests_running", "vllm:num_requests_waiting"),
)
SGLANG = Profile(
    "sglang",
    fields=_SAMPLING,
    continuation="flags",
    regex_field="regex",
    salt_field="cache_salt",
    priority_field=("priority", False),
    accepts_tokens=True,
    accepts_template_options=True,
    health_path="/health",
    load_metrics=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
)
LLAMACPP = Profile(
    "llamacpp",
    fields=_SAMPLING - {"stop_token_ids", "min_tokens", "skip_special_tokens"},
    continuation="always",
    accepts_tokens=True,
    accepts_template_options=True,
    health_path="/health",
    load_metrics=("llamacpp:requests_processing", "llamacpp:requests_deferred"),
)
MYNA = Profile(
    "myna",
    fields=_SAMPLING,
    continuation="flags",
    regex_field="guided_regex",
    grammar_field="guided_grammar",
    salt_field="cache_salt",
    accepts_tokens=True,
    accepts_template_options=True,
    accepts_prediction=True,
    health_path="/health/ready",
    load_metrics=("myna_calls_unfinished",),
)
ANTHROPIC = Profile(
    "anthropic", continuation="always", key_header="x-api-key", fixed_headers=(("anthropic-version", "2023-06-01"),)
)
KINDS = {profile.kind: profile for profile in (OPENAI, VLLM, SGLANG, LLAMACPP, MYNA, ANTHROPIC)}
"""Profiles by the name that `--engine` gives."""


def profile_of(kind: str, host: str) -> Profile:
    """Return the profile of a server, by its kind. The host tells OpenAI's own API from other servers with that API."""
    return OPENAI_ITSELF if kind == "openai" and host == "api.openai.com" else KINDS[kind]
