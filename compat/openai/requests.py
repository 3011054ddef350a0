"""Requests. Unknown fields are refused, and so are known ones with values that are not supported yet."""

import json
from typing import Annotated, Any, Literal, Self

import regex  # what transforms are run with: a pattern is refused here if it would be refused there
from llguidance import LLMatcher  # what answers are held to: refused here is what would be refused there
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
_Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
_Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]

MAX_STOPS = 16
"""Stop strings; OpenAI allows four."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Request):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Request):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None:
            raise ValueError("a message needs content")
        return self

    @property
    def texts(self) -> str | list[str]:
        """The content, or the texts of its parts."""
        if isinstance(self.content, list):
            return [part.text for part in self.content]
        return self.content or ""


class StreamOptions(_Request):
    """How a stream is told."""

    include_usage: bool = False


class JsonSchema(_Request):
    """A schema by name; `strict` changes nothing: it is always held to."""

    name: str
    schema_: dict[str, JsonValue] | bool = Field(True, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _can_be_held_to(cls, schema: dict[str, JsonValue] | bool) -> dict[str, JsonValue] | bool:
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
        if problem:
            raise ValueError(f"this schema cannot be held to: {problem}")
        return schema


class ResponseFormat(_Request):
    """What the answer looks like: any text, any JSON object, or JSON that is valid for a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise ValueError("json_schema goes with the type json_schema")
        return self

    @property
    def schema_text(self) -> str | None:
        """What the answer is valid for, as JSON; None for any text."""
        if self.type == "text":
            return None
        return json.dumps({"type": "object"} if self.json_schema is None else self.json_schema.schema_)


class Transform(_Request):
    """What is made of an answer before it becomes a value; several keys apply in this order."""

    strip: bool = False
    line: int | None = None
    regex: str | None = None
    group: Annotated[int, Field(ge=0)] = 0
    json_: str | None = Field(None, alias="json", min_length=1)

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.regex is None:
            if self.group:
                raise ValueError("group needs regex")
            return self
        try:
            groups = regex.compile(self.regex).groups
        except regex.error as error:
            raise ValueError(f"regex is none: {error}") from None
        if self.group > groups:
            raise ValueError(f"regex has {groups} groups, and group is {self.group}")
        return self


class _Sampled(_Request):
    """How a text is chosen and when it ends; None falls back."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: _Seed | None = None
    stop: str | list[str] | None = None

    @field_validator("stop")
    @classmethod
    def _stops_say_something(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
        if any(not text for text in stops):
            raise ValueError("a stop string must not be empty")
        return stop


class SlotRequest(_Sampled):
    """A variable generated in place. What is left out falls back to the request's."""

    response_format: ResponseFormat | None = None
    regex: str | None = None
    transform: Transform | None = None

    @field_validator("regex")
    @classmethod
    def _can_be_matched(cls, pattern: str | None) -> str | None:
        problem = pattern is not None and LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(pattern))
        if problem:
            raise ValueError(f"this regex cannot be held to: {problem}")
        return pattern

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if self.regex is not None and self.response_format is not None:
            raise ValueError("either regex or response_format, not both")
        return self


class Semantic(_Request):
    """The Semantic Variable extension; see API.md."""

    session: SessionId | None = None
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    output: str | None = None
    transform: Transform | None = None
    slots: dict[str, SlotRequest] = Field(default_factory=dict)
    defer: bool | None = None
    objective: Literal["latency", "throughput"] | None = None
    share: bool = True


class _Generation(_Sampled):
    """What chat completions and completions have in common."""

    model: str
    # length and choice
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    # what is told
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # only with the value that changes nothing
    n: Literal[1] | None = None
    # taken and passed on to nobody: it concerns OpenAI's own bookkeeping
    user: str | None = None

    semantic: Semantic | None = None

    @field_validator("logit_bias")
    @classmethod
    def _bias_names_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        bad = next((key for key in bias or () if not key.isdecimal()), None)
        if bad is not None:
            raise ValueError(f"keys are token ids; {bad!r} is none")
        return bias

    @model_validator(mode="after")
    def _streams_with_its_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether the stream tells usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatCompletionRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    # only with the value that changes nothing
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    # taken and passed on to nobody: they concern OpenAI's own bookkeeping
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def length(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def schema_text(self) -> str | None:
        """What the answer is valid for, as JSON; None for any text."""
        return None if self.response_format is None else self.response_format.schema_text

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are told."""
        return bool(self.logprobs)

    @property
    def alternatives(self) -> int:
        """Tokens told at each place."""
        return self.top_logprobs or 0


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: str | list[Annotated[int, Field(ge=0)]] = Field(min_length=1)

    @property
    def length(self) -> int:
        """Most tokens of the answer; OpenAI's own default is 16 here."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def schema_text(self) -> None:
        """What the answer is valid for: any text will do."""
        return None

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are told."""
        return False

    @property
    def alternatives(self) -> int:
        """Tokens told at each place."""
        return 0


class GraphRequest(_Request):
    """POST /v1/graphs. The calls are chat bodies, checked one by one.

    A variable is its value; or an object with nothing but `value` or `template` in it; null declares it.
    """

    variables: dict[str, JsonValue] = Field(default_factory=dict)
    calls: list[Any] = Field(default_factory=list)
    outputs: list[str] | None = None
    session: SessionId | None = None
    stream: bool = False


class SessionRequest(_Request):
    """POST /v1/sessions."""

    id: SessionId | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    ttl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class VariableRequest(_Request):
    """PUT /v1/sessions/{id}/variables/{name}. `value` null declares; `template` derives it from others."""

    value: JsonValue = None
    template: str = ""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.model_fields_set not in ({"value"}, {"template"}):
            raise ValueError("either value or template is needed, and not both")
        return self
