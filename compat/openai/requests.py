"""Requests. Unknown fields are refused, and so are known ones with values that are not supported yet."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import regex  # what transforms are run with: a pattern is refused here if it would be refused there
from llguidance import LLMatcher  # what answers are held to: refused here is what would be refused there
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)

SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]
_Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
_Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]

MAX_STOPS = 16
"""Stop strings; OpenAI allows four."""
MAX_CHOICES = 128
"""Answers to one prompt."""
MAX_PROMPTS = 1024
"""Prompts of one completion."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Request):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(_Request):
    """What an assistant called, with arguments as JSON."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _are_json(cls, arguments: str) -> str:
        try:
            json.loads(arguments or "{}")
        except ValueError as error:
            raise ValueError(f"arguments are JSON: {error}") from None
        return arguments


class ToolCall(_Request):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Request):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    # what clients pass on from answers, where there was nothing
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[JsonValue] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant calls tools")
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError("a tool's message, and no other, names the call that it answers in tool_call_id")
        return self

    @property
    def texts(self) -> str | list[str]:
        """The content, or the texts of its parts."""
        if isinstance(self.content, list):
            return [part.text for part in self.content]
        return self.content or ""

    @property
    def called(self) -> list[dict[str, Any]]:
        """Its calls as templates know them: arguments are no text there."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments or "{}")},
            }
            for call in self.tool_calls or ()
        ]


class StreamOptions(_Request):
    """How a stream is told."""

    include_usage: bool = False


def _must_be_held_to(grammar: str, what: str) -> None:
    """Raises ValueError if an engine would refuse it."""
    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        raise ValueError(f"this {what} cannot be held to: {problem}")


def _valid_schema(schema: Any) -> str:
    """A JSON schema as text. Raises ValueError."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    try:
        json.loads(text)
    except ValueError as error:
        raise ValueError(f"this schema is no JSON: {error}") from None
    _must_be_held_to(LLMatcher.grammar_from_json_schema(text), "schema")
    return text


def _valid_regex(pattern: str) -> str:
    _must_be_held_to(LLMatcher.grammar_from_regex(pattern), "regex")
    return pattern


def _valid_grammar(grammar: str) -> str:
    _must_be_held_to(LLMatcher.grammar_from_lark(grammar), "grammar")
    return grammar


def _one_of(choices: list[str]) -> str:
    """A grammar for one of some texts. Raises ValueError."""
    if not all(choices):
        raise ValueError("a choice must not be empty")
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


@dataclass(frozen=True)
class Form:
    """What an answer is held to: at most one of a JSON schema, a regular expression, a grammar in Lark."""

    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None


class JsonSchema(_Request):
    """A schema by name; `strict` changes nothing: it is always held to."""

    name: str
    schema_: dict[str, JsonValue] | bool = Field(True, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _can_be_held_to(cls, schema: dict[str, JsonValue] | bool) -> dict[str, JsonValue] | bool:
        _valid_schema(schema)
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


class StructuredOutputs(_Request):
    """vLLM's ways to say what the answer looks like; one of them."""

    json_: dict[str, JsonValue] | str | bool | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        said = [self.json_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(one is not None for one in said) != 1:
            raise ValueError("one of json, regex, choice, grammar and json_object is needed, and not more")
        _ = self.form  # refused here is what would be refused later
        return self

    @property
    def form(self) -> Form:
        """The same for an engine. Raises ValueError."""
        if self.json_ is not None:
            return Form(json_schema=_valid_schema(self.json_))
        if self.regex is not None:
            return Form(regex=_valid_regex(self.regex))
        if self.choice is not None:
            return Form(grammar=_one_of(self.choice))
        if self.grammar is not None:
            return Form(grammar=_valid_grammar(self.grammar))
        return Form(json_schema='{"type": "object"}')


_FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionDefinition(_Request):
    """A function that the client can call for the model."""

    name: _FunctionName
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _can_be_held_to(cls, schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        if schema is not None:
            _valid_schema(schema)
        return schema


class ToolDefinition(_Request):
    """A tool: a function."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(_Request):
    """A function by its name."""

    name: str


class NamedTool(_Request):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


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
        return pattern if pattern is None else _valid_regex(pattern)

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
    # what the answer looks like; the guided ones are vLLM's older names
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, JsonValue] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1)
    guided_grammar: str | None = None
    # whose cache it shares: keys never share one, and of one key only requests with the same salt
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    # what is told
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    # taken and passed on to nobody: it concerns OpenAI's own bookkeeping
    user: str | None = None

    semantic: Semantic | None = None

    _form: Form = PrivateAttr(default_factory=Form)

    @field_validator("logit_bias")
    @classmethod
    def _bias_names_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        bad = next((key for key in bias or () if not key.isdecimal()), None)
        if bad is not None:
            raise ValueError(f"keys are token ids; {bad!r} is none")
        return bias

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        forms = [
            self.response_format,
            self.structured_outputs,
            self.guided_json,
            self.guided_regex,
            self.guided_choice,
            self.guided_grammar,
        ]
        if sum(form is not None for form in forms) > 1:
            raise ValueError(
                "response_format, structured_outputs and guided_… say what the answer looks like; one does"
            )
        self._form = self._told_form()
        return self

    def _told_form(self) -> Form:
        if self.response_format is not None:
            return Form(json_schema=self.response_format.schema_text)
        if self.structured_outputs is not None:
            return self.structured_outputs.form
        if self.guided_json is not None:
            return Form(json_schema=_valid_schema(self.guided_json))
        if self.guided_regex is not None:
            return Form(regex=_valid_regex(self.guided_regex))
        if self.guided_choice is not None:
            return Form(grammar=_one_of(self.guided_choice))
        return Form() if self.guided_grammar is None else Form(grammar=_valid_grammar(self.guided_grammar))

    @property
    def form(self) -> Form:
        """What the answer is held to."""
        return self._form

    @model_validator(mode="after")
    def _streams_with_its_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream to be true")
        return self

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

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
    tools: list[ToolDefinition] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    # how they become a prompt
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
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
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "continue_final_message goes on with the last message, add_generation_prompt begins another"
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message goes on with an assistant's message; the last one is none")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have one name")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice asks for a call, and there are no tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}; the tools are {', '.join(names)}")
        return self

    @property
    def length(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are told."""
        return bool(self.logprobs)

    @property
    def alternatives(self) -> int:
        """Tokens told at each place."""
        return self.top_logprobs or 0


_Tokens = list[Annotated[int, Field(ge=0)]]


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: str | _Tokens | list[str] | list[_Tokens] = Field(min_length=1, max_length=16 << 20)
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    # only with the value that changes nothing
    suffix: Literal[""] | None = None

    @field_validator("prompt")
    @classmethod
    def _prompts_say_something(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and not isinstance(prompt[0], int):
            if len(prompt) > MAX_PROMPTS:
                raise ValueError(f"at most {MAX_PROMPTS} prompts are allowed")
            if not all(prompt):
                raise ValueError("a prompt must not be empty")
        return prompt

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.best_of is not None and self.best_of < self.choices:
            raise ValueError("best_of is the number of answers from which n are chosen; it cannot be less than n")
        if self.best_of is not None and self.best_of > self.choices and self.stream:
            raise ValueError("best_of cannot be streamed: which answers are told is known only at the end")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported: those of prompts are not computed")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """All of them."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def candidates(self) -> int:
        """Answers that are made to each prompt."""
        return self.best_of or self.choices

    @property
    def length(self) -> int:
        """Most tokens of the answer; OpenAI's own default is 16 here."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are needed."""
        return self.logprobs is not None or self.candidates > self.choices

    @property
    def alternatives(self) -> int:
        """Tokens told at each place."""
        return self.logprobs or 0


class TokenizeRequest(_Request):
    """POST /tokenize, vLLM's: a text as a completion's prompt, or messages as a chat's."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is needed, and not both")
        return self


class DetokenizeRequest(_Request):
    """POST /detokenize, vLLM's."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


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
