"""Sampling parameters, of the engine and of the gateway. This module imports nothing of the project."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one generated text.

    `max_tokens`: maximum number of tokens to generate; None for as many as fit the window.
    `temperature`: 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off.
    `seed`: makes the text a function of prompt and parameters alone.
    `repetition_penalty`: applies to the raw logits of tokens in prompt and output; `presence_penalty` and
        `frequency_penalty` to those in the output.
    `top_logprobs`: number of alternatives reported with each token.
    `regex`, `json_schema`, `grammar`: constraint of the whole text, at most one of them: a regular expression in Rust's
        syntax, a JSON schema as JSON, or a grammar in llguidance's Lark.
    `thinks`: reasoning may precede the constrained text, up to `</think>`. With `perhaps` the text may begin with
        `<think>`; with `begun` the prompt ends with it.
    `prediction`: a text that the output probably contains. It changes only the speed.
    `given`: names of the fields that the client specified, including those set to the default here, because upstream
        servers may have other defaults. The engine ignores it.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    regex: str | None = None
    json_schema: str | None = None
    grammar: str | None = None
    thinks: Literal["perhaps", "begun"] | None = None
    prediction: str = field(default="", compare=False)
    given: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @cached_property
    def specified(self) -> Mapping[str, Any]:
        """The parameters that the client specified or that differ from their defaults, by name."""
        defaults = ((parameter.name, getattr(_DEFAULTS, parameter.name)) for parameter in fields(self))
        return {
            name: value for name, default in defaults if (value := getattr(self, name)) != default or name in self.given
        }

    @property
    def is_constrained(self) -> bool:
        """Whether a regular expression, JSON schema or grammar constrains the text."""
        return self.regex is not None or self.json_schema is not None or self.grammar is not None

    @property
    def is_deterministic(self) -> bool:
        """Whether the same prompt always gives the same text."""
        return self.temperature == 0.0 or self.top_p == 0.0 or self.seed is not None

    @property
    def with_positive_top_p(self) -> "SamplingParams":
        """The same sampling for engines without `top_p` 0. That leaves one token, as temperature 0 does."""
        return self if self.top_p else replace(self, temperature=0.0, top_p=1.0)


_DEFAULTS = SamplingParams()
