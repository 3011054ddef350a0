"""Requests of OpenAI's endpoints, and of vLLM's two for tokens."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from compat.bounds import MAX_STOP_TOKENS, TokenCount, check_biases
from compat.openai.base import Chosen, Metadata, Request, Sampled, fault
from compat.openai.messages import Message, NamedTool, TextPart, ToolDefinition
from compat.openai.response_formats import (
    Form,
    ResponseFormat,
    StructuredOutputs,
    one_of,
    valid_grammar,
    valid_regex,
    valid_schema,
)
from compat.openai.semantic import Semantic

_Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]

ServiceTier = Literal["auto", "default", "flex", "priority", "scale"]
CacheRetention = Literal["in_memory", "in-memory", "24h"]

MAX_CHOICES = 128
"""Answers to one prompt."""
MAX_ANSWERS = 1024
"""Answers to all prompts of one completion."""
MAX_PROMPTS = 1024
"""Prompts of one completion."""


class StreamOptions(Request):
    """How a stream is told."""

    include_usage: bool = False
    # as in vLLM: every chunk has the usage so far, if include_usage is true
    continuous_usage_stats: bool = False
    # a hint without effect: events have no padding
    include_obfuscation: bool | None = None


class Generation(Chosen):
    """What all endpoints that generate have in common."""

    model: str
    # length and choice
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    # whose cache it shares: keys never share one, and of one key only requests with the same salt
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    stream: bool | None = None
    # taken and passed on to nobody: it concerns OpenAI's own bookkeeping
    user: str | None = None

    semantic: Semantic | None = None

    @field_validator("logit_bias")
    @classmethod
    def _bias_names_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        check_biases(bias)
        return bias

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream."""
        return bool(self.stream)


_FORMS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
"""Fields that constrain the form of an answer. A request may have one of them."""


class _Choices(Generation, Sampled):
    """What chat completions and completions have in common: several answers, in `choices`."""

    # what the answer looks like; the guided ones are vLLM's older names
    response_format: ResponseFormat | None = None
    guided_json: dict[str, JsonValue] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1)
    guided_grammar: str | None = None
    # what is told
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        told = [name for name in _FORMS if getattr(self, name) is not None]
        if len(told) > 1:
            message = "only one of response_format, structured_outputs and guided_… may be given"
            raise fault(told[1], message)
        if told:
            try:
                _ = self.form  # refused here is what would be refused later
            except ValueError as error:
                raise fault(told[0], str(error)) from None
        return self

    @cached_property
    def form(self) -> Form:
        """What the answer is held to."""
        if self.response_format is not None:
            return self.response_format.form
        if self.structured_outputs is not None:
            return self.structured_outputs.form
        if self.guided_json is not None:
            return Form(json_schema=valid_schema(self.guided_json))
        if self.guided_regex is not None:
            return Form(regex=valid_regex(self.guided_regex))
        if self.guided_choice is not None:
            return Form(grammar=one_of(self.guided_choice))
        return Form() if self.guided_grammar is None else Form(grammar=valid_grammar(self.guided_grammar))

    @model_validator(mode="after")
    def _ends_behind_its_beginning(self) -> Self:
        most = self.length
        if self.min_tokens is not None and most is not None and self.min_tokens > most:
            raise fault("min_tokens", f"min_tokens is {self.min_tokens}, and the answer has at most {most} tokens")
        return self

    @property
    def length(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens

    @model_validator(mode="after")
    def _streams_with_its_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "stream_options needs stream to be true")
        return self

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether the stream tells usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether each chunk of the stream has the usage so far."""
        return self.wants_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats


class Prediction(Request):
    """What much of an answer may be."""

    type: Literal["content"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(_Choices):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    tools: list[ToolDefinition] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    # how they become a prompt
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # for servers elsewhere that can do something with it
    reasoning_effort: str | None = Field(None, min_length=1, max_length=32)
    verbosity: Literal["low", "medium", "high"] | None = None
    # changes nothing but how fast the answer comes
    prediction: Prediction | None = None
    # only with the value that changes nothing
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    # hints without effect: all requests have the same tier, and the server itself decides what stays in the cache
    service_tier: ServiceTier | None = None
    prompt_cache_retention: CacheRetention | None = None
    # taken and passed on to nobody: they concern OpenAI's own bookkeeping
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise fault("max_completion_tokens", "max_tokens and max_completion_tokens differ; give one of them")
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt cannot both be true"
            raise fault("continue_final_message", message)
        if self.continue_final_message and self.messages[-1].role != "assistant":
            message = "continue_final_message needs an assistant's message as the last one"
            raise fault("continue_final_message", message)
        if self.top_logprobs and not self.logprobs:
            raise fault("top_logprobs", "top_logprobs needs logprobs to be true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise fault("tools", "two tools have the same name")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise fault("tool_choice", "tool_choice requires a call, but there are no tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            message = f"tool_choice names {self.tool_choice.function.name!r}, but the tools are {', '.join(names)}"
            raise fault("tool_choice", message)
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

    @property
    def passed_on(self) -> dict[str, str]:
        """What only a server elsewhere can do something with."""
        told = {}
        if self.reasoning_effort is not None:
            told["reasoning_effort"] = self.reasoning_effort
        if self.verbosity is not None:
            told["verbosity"] = self.verbosity
        return told

    @property
    def predicted(self) -> str:
        """What much of the answer may be."""
        return "" if self.prediction is None else self.prediction.text


_Tokens = list[Annotated[int, Field(ge=0)]]


class CompletionRequest(_Choices):
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
            message = "best_of must not be less than n: it is the number of answers from which n are chosen"
            raise fault("best_of", message)
        if len(self.prompts) * self.candidates > MAX_ANSWERS:
            raise fault("prompt", f"at most {MAX_ANSWERS} answers can be made for one request, all prompts together")
        if self.best_of is not None and self.best_of > self.choices and self.stream:
            raise fault("best_of", "best_of cannot be streamed: the best answers are known only at the end")
        if self.echo and self.logprobs is not None:
            raise fault("echo", "echo with logprobs is not supported: log probabilities of prompts are not computed")
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

    @property
    def predicted(self) -> str:
        """None is taken here."""
        return ""


class TokenizeRequest(Request):
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
            raise fault("prompt", "either prompt or messages is required, but not both")
        return self


class DetokenizeRequest(Request):
    """POST /detokenize, vLLM's."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
