"""Requests of OpenAI's endpoints, and of vLLM's endpoints for tokens."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from compat.bounds import MAX_STOP_TOKENS, TokenCount, check_biases
from compat.openai.base import LimitedSamplingFields, Metadata, Request, SamplingFields, field_error
from compat.openai.custom_tools import CustomToolDefinition, SmallGrammars
from compat.openai.messages import (
    MAX_TOOLS,
    AllowedTools,
    AllowedToolSet,
    Message,
    NamedCustomTool,
    NamedTool,
    TextPart,
    ToolDefinition,
)
from compat.openai.response_formats import (
    OutputConstraint,
    ResponseFormat,
    StructuredOutputs,
    choice_grammar,
    validate_grammar,
    validate_regex,
    validate_schema,
)
from compat.openai.semantic import Semantic

_Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]

_Tool = Annotated[ToolDefinition | CustomToolDefinition, Field(discriminator="type")]
_ToolChoice = Annotated[NamedTool | NamedCustomTool | AllowedTools, Field(discriminator="type")]
ServiceTier = Literal["auto", "default", "flex", "priority", "scale", "fast", "ultrafast"]
CacheRetention = Literal["in_memory", "in-memory", "24h"]


class CacheOptions(Request):
    """Hints for the prompt cache, without effect: the server itself decides what stays in the cache."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Annotated[str, Field(max_length=32)] | None = None
    comparison_response_id: str | None = None
    prewarm: bool | None = None


MAX_CHOICES = 128
"""Maximum number of answers to one prompt."""
MAX_ANSWERS = 1024
"""Maximum number of answers to all prompts of one completion."""
MAX_PROMPTS = 1024
"""Maximum number of prompts of one completion."""


class StreamOptions(Request):
    """Options of a stream."""

    include_usage: bool = False
    # as in vLLM: every chunk has the usage so far, if include_usage is true
    continuous_usage_stats: bool = False
    # a hint without effect: events have no padding
    include_obfuscation: bool | None = None


class Generation(SamplingFields):
    """Fields of all endpoints that generate text."""

    model: str
    # length and sampling
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
    # cache isolation: keys never share a cache, and requests of one key share it only with equal salts
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    stream: bool | None = None
    # accepted and ignored: only OpenAI's own service uses it
    user: str | None = None

    semantic: Semantic | None = None

    @field_validator("logit_bias")
    @classmethod
    def _bias_names_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        check_biases(bias)
        return bias

    @property
    def is_streamed(self) -> bool:
        """Return whether the answer is a stream."""
        return bool(self.stream)


_CONSTRAINTS = (
    *("response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
"""Fields that constrain the form of an answer. A request may have one of them."""


class _Choices(Generation, LimitedSamplingFields):
    """Fields that chat completions and completions share: several answers, in `choices`."""

    # constraints of the answer; the guided ones are vLLM's older names
    response_format: ResponseFormat | None = None
    guided_json: dict[str, JsonValue] | str | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1)
    guided_grammar: str | None = None
    # output
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _has_one_constraint(self) -> Self:
        present = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if len(present) > 1:
            message = "only one of response_format, structured_outputs and guided_… is allowed"
            raise field_error(present[1], message)
        if present:
            try:
                _ = self.output_constraint  # an invalid constraint must be refused here, not later
            except ValueError as error:
                raise field_error(present[0], str(error)) from None
        return self

    @cached_property
    def output_constraint(self) -> OutputConstraint:
        """Constraint of the answer's form."""
        if self.response_format is not None:
            return self.response_format.output_constraint
        if self.structured_outputs is not None:
            return self.structured_outputs.output_constraint
        if self.guided_json is not None:
            return OutputConstraint(json_schema=validate_schema(self.guided_json))
        if self.guided_regex is not None:
            return OutputConstraint(regex=validate_regex(self.guided_regex))
        if self.guided_choice is not None:
            return OutputConstraint(grammar=choice_grammar(self.guided_choice))
        if self.guided_grammar is not None:
            return OutputConstraint(grammar=validate_grammar(self.guided_grammar))
        return OutputConstraint()

    @model_validator(mode="after")
    def _min_tokens_is_below_max(self) -> Self:
        maximum = self.token_limit
        if self.min_tokens is not None and maximum is not None and self.min_tokens > maximum:
            raise field_error(
                "min_tokens", f"min_tokens is {self.min_tokens}, but the answer has at most {maximum} tokens"
            )
        return self

    @property
    def token_limit(self) -> int | None:
        """Maximum number of tokens of the answer."""
        return self.max_tokens

    @model_validator(mode="after")
    def _streams_with_its_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "stream_options needs stream to be true")
        return self

    @property
    def choice_count(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Return whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def includes_continuous_usage(self) -> bool:
        """Return whether each chunk of the stream has the usage so far."""
        return self.includes_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats


class Prediction(Request):
    """A text that large parts of the answer may repeat."""

    type: Literal["content"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The predicted text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(_Choices):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    tools: Annotated[list[_Tool] | None, SmallGrammars] = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # how messages become a prompt
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # only upstream servers support them
    reasoning_effort: str | None = Field(None, min_length=1, max_length=32)
    verbosity: Literal["low", "medium", "high"] | None = None
    # affects only the speed of the answer
    prediction: Prediction | None = None
    # only with the value that has no effect
    modalities: list[Literal["text"]] | None = None
    # hints without effect: chat completions are never stored, all requests have the same tier, and the server itself
    # decides what stays in the cache
    store: bool | None = None
    service_tier: ServiceTier | None = None
    prompt_cache_retention: CacheRetention | None = None
    prompt_cache_options: CacheOptions | None = None
    # accepted and ignored: only OpenAI's own service uses them
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise field_error(
                "max_completion_tokens", "max_tokens and max_completion_tokens differ; use only one of them"
            )
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt cannot both be true"
            raise field_error("continue_final_message", message)
        if self.continue_final_message and self.messages[-1].role != "assistant":
            message = "continue_final_message needs an assistant's message as the last one"
            raise field_error("continue_final_message", message)
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "top_logprobs needs logprobs to be true")
        if self.tools is None and self.tool_choice is None:  # most requests
            return self
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise field_error("tools", "two tools have the same name")
        if isinstance(self.tool_choice, AllowedTools):
            names = self._choose_allowed_tools(self.tool_choice.allowed_tools)
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise field_error("tool_choice", "tool_choice requires a tool call, but there are no tools")
        if isinstance(self.tool_choice, NamedTool | NamedCustomTool) and not self._has_tool(self.tool_choice):
            kind = "" if self.tool_choice.type == "function" else "custom tool "
            message = f"tool_choice names {kind}{self.tool_choice.name!r}, but the tools are {', '.join(names)}"
            raise field_error("tool_choice", message)
        return self

    def _has_tool(self, named: NamedTool | NamedCustomTool) -> bool:
        """Return whether the request has a tool of this type and name."""
        return any((tool.type, tool.function.name) == (named.type, named.name) for tool in self.tools or ())

    def _choose_allowed_tools(self, allowed: AllowedToolSet) -> list[str]:
        """Remove all tools but the allowed ones, replace the choice by its mode, and return the names of the tools."""
        for index, tool in enumerate(allowed.tools):
            if not self._has_tool(tool):
                message = f"the request has no tool {tool.name!r} of the type {tool.type}"
                raise field_error(f"tool_choice.allowed_tools.tools.{index}", message)
        chosen = {tool.name for tool in allowed.tools}
        self.tools = [tool for tool in self.tools or () if tool.function.name in chosen]
        self.tool_choice = allowed.mode
        return [tool.function.name for tool in self.tools]

    @property
    def token_limit(self) -> int | None:
        """Maximum number of tokens of the answer."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def named_tool(self) -> str | None:
        """Name of the tool that the model has to call; None if `tool_choice` names none."""
        return self.tool_choice.name if isinstance(self.tool_choice, NamedTool | NamedCustomTool) else None

    @property
    def custom_tool_names(self) -> frozenset[str]:
        """Names of the custom tools."""
        if not self.tools:
            return frozenset()
        return frozenset([tool.custom.name for tool in self.tools if isinstance(tool, CustomToolDefinition)])

    @property
    def includes_logprobs(self) -> bool:
        """Return whether the answer has log probabilities."""
        return bool(self.logprobs)

    @property
    def top_logprob_count(self) -> int:
        """Number of alternatives to report for each token."""
        return self.top_logprobs or 0

    @property
    def upstream_fields(self) -> dict[str, str]:
        """Fields that only upstream servers support, by name."""
        fields = {}
        if self.reasoning_effort is not None:
            fields["reasoning_effort"] = self.reasoning_effort
        if self.verbosity is not None:
            fields["verbosity"] = self.verbosity
        return fields

    @property
    def predicted_text(self) -> str:
        """Predicted text, or empty."""
        return "" if self.prediction is None else self.prediction.text


_Tokens = list[Annotated[int, Field(ge=0)]]


class CompletionRequest(_Choices):
    """POST /v1/completions."""

    prompt: str | _Tokens | list[str] | list[_Tokens] = Field(min_length=1, max_length=16 << 20)
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    # only with the value that has no effect
    suffix: Literal[""] | None = None

    @field_validator("prompt")
    @classmethod
    def _check_prompts(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and not isinstance(prompt[0], int):
            if len(prompt) > MAX_PROMPTS:
                raise ValueError(f"at most {MAX_PROMPTS} prompts are allowed")
            if not all(prompt):
                raise ValueError("a prompt must not be empty")
        return prompt

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.best_of is not None and self.best_of < self.choice_count:
            message = "best_of must not be less than n: it is the number of answers from which n are chosen"
            raise field_error("best_of", message)
        if len(self.prompts) * self.candidate_count > MAX_ANSWERS:
            raise field_error("prompt", f"at most {MAX_ANSWERS} answers can be generated for all prompts together")
        if self.best_of is not None and self.best_of > self.choice_count and self.stream:
            raise field_error("best_of", "best_of cannot be streamed: the best answers are known only at the end")
        if self.echo and self.logprobs is not None:
            raise field_error(
                "echo", "echo with logprobs is not supported: log probabilities of prompts are not computed"
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, as texts or lists of tokens."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def candidate_count(self) -> int:
        """Number of answers that are generated for each prompt."""
        return self.best_of or self.choice_count

    @property
    def token_limit(self) -> int:
        """Maximum number of tokens of the answer; 16 by default, as in OpenAI's API."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def includes_logprobs(self) -> bool:
        """Return whether log probabilities are needed."""
        return self.logprobs is not None or self.candidate_count > self.choice_count

    @property
    def top_logprob_count(self) -> int:
        """Number of alternatives to report for each token."""
        return self.logprobs or 0

    @property
    def predicted_text(self) -> str:
        """Empty: completions have no prediction."""
        return ""


class TokenizeRequest(Request):
    """POST /tokenize of vLLM: a text like a completion's prompt, or messages like a chat's."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _has_prompt_or_messages(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise field_error("prompt", "either prompt or messages is required, but not both")
        return self


class DetokenizeRequest(Request):
    """POST /detokenize of vLLM."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
