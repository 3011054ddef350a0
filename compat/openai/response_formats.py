"""Constraints of an answer's form: OpenAI's formats, and vLLM's."""

import json
from dataclasses import dataclass
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from compat.openai.base import Request
from compat.openai.grammars import (
    MAX_CHOICE_BYTES,
    MAX_CHOICES,
    MAX_FORM_BYTES,
    MAX_PATTERN_BYTES,
    problem_of_lark,
    problem_of_regex,
)
from compat.openai.lark import BadGrammar, check_grammar
from compat.openai.schemas.enforceable import make_enforceable
from compat.openai.schemas.policy import Enforcement
from compat.short_cache import cache_short

_MAX_CACHED = 16_384
"""Maximum length of schemas, patterns and grammars that are cached with their results, in characters."""


def enforced_schema(schema: Any, enforcement: Enforcement = Enforcement.STRICT) -> dict[str, Any]:
    """Return the schema that is enforced for a JSON schema. Requests share it: do not change it. Raises ValueError if
    it cannot be enforced."""
    try:
        text = json.dumps(schema)
        if len(text) > MAX_FORM_BYTES:
            return make_enforceable(schema, enforcement)
        return _enforced_schema(text, enforcement)
    except RecursionError:
        raise ValueError("this schema cannot be enforced: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"this schema cannot be enforced: {error}") from None


@cache_short(256, _MAX_CACHED)
def _enforced_schema(schema: str, enforcement: Enforcement) -> dict[str, Any]:
    """Return the enforced schema, cached: clients send the same tools with every turn of a conversation."""
    return make_enforceable(json.loads(schema), enforcement)


def validate_schema(schema: Any, enforcement: Enforcement = Enforcement.STRICT) -> str:
    """Return the text of the schema that is enforced for a JSON schema, which may be text. Raises ValueError if it
    cannot be enforced."""
    if isinstance(schema, str):
        if len(schema) > MAX_FORM_BYTES:
            raise ValueError(f"a schema has at most {MAX_FORM_BYTES} bytes")
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise ValueError(f"this schema is not JSON: {error}") from None
        except RecursionError:
            raise ValueError("this schema is nested too deeply") from None
    return json.dumps(enforced_schema(schema, enforcement))


def validate_regex(pattern: str) -> str:
    """Return the pattern. Raises ValueError if it cannot be enforced."""
    return _validate_regex(_check_length(pattern, "regex"))


@cache_short(256, _MAX_CACHED)
def _validate_regex(pattern: str) -> str:
    if problem := problem_of_regex(pattern):
        raise ValueError(f"this regex cannot be enforced: {problem}")
    return pattern


def validate_grammar(grammar: str) -> str:
    """Return the Lark grammar that is enforced for a client's. Raises ValueError if it cannot be enforced."""
    return _validate_grammar(_check_length(grammar, "grammar"))


@cache_short(256, _MAX_CACHED)
def _validate_grammar(grammar: str) -> str:
    try:
        grammar = check_grammar(grammar, enforced_schema)
    except BadGrammar as error:
        raise ValueError(f"this grammar cannot be enforced: {error}") from None
    if problem := problem_of_lark(grammar):
        raise ValueError(f"this grammar cannot be enforced: {problem}")
    return grammar


def _check_length(text: str, kind: str) -> str:
    """Return the text. Raises ValueError if it is too long to be compiled."""
    if len(text) > MAX_PATTERN_BYTES or len(text.encode(errors="surrogatepass")) > MAX_PATTERN_BYTES:
        raise ValueError(f"a {kind} has at most {MAX_PATTERN_BYTES} bytes")
    return text


def choice_grammar(choices: list[str]) -> str:
    """Return a grammar that only these texts match. Raises ValueError if they exceed a limit."""
    if not all(choices):
        raise ValueError("a choice must not be empty")
    if len(choices) > MAX_CHOICES:
        raise ValueError(f"at most {MAX_CHOICES} choices are supported")
    if sum([len(choice) for choice in choices]) > MAX_CHOICE_BYTES:
        raise ValueError(f"choices have at most {MAX_CHOICE_BYTES} characters together")
    # one terminal: as alternatives of a rule, each text would be an item in each row of the parser
    grammar = "start: CHOICE\nCHOICE: " + " | ".join([json.dumps(choice, ensure_ascii=False) for choice in choices])
    return _compile_choices(grammar)


@cache_short(64, _MAX_CACHED)
def _compile_choices(grammar: str) -> str:
    if problem := problem_of_lark(grammar):
        raise ValueError(f"these choices cannot be enforced: {problem}")
    return grammar


@dataclass(frozen=True)
class OutputConstraint:
    """Constraint of an answer's form: at most one of a JSON schema, a regular expression, a grammar in Lark."""

    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    original_schema: Any = None
    """The JSON schema as the client wrote it."""

    @property
    def upstream_json_schema(self) -> str | None:
        """JSON schema for an upstream server, which may enforce keywords that this server drops."""
        if self.original_schema is None:
            return self.json_schema
        try:
            return validate_schema(self.original_schema)
        except ValueError:
            return json.dumps(self.original_schema)


class JsonSchema(Request):
    """A schema with a name. With `strict`, a keyword that cannot be enforced is refused; otherwise it is dropped."""

    name: str
    strict: bool | None = None  # before the schema, whose check depends on it
    schema_: dict[str, JsonValue] | bool = Field(True, alias="schema")
    description: str | None = None

    @field_validator("schema_")
    @classmethod
    def _can_be_enforced(cls, schema: Any, info: ValidationInfo) -> Any:
        enforced_schema(schema, Enforcement.STRICT if info.data.get("strict") else Enforcement.BEST_EFFORT)
        return schema

    @property
    def enforced(self) -> dict[str, Any]:
        """The schema that is enforced. Raises ValueError if the schema cannot be enforced."""
        return enforced_schema(self.schema_, Enforcement.STRICT if self.strict else Enforcement.BEST_EFFORT)


class ResponseFormat(Request):
    """Form of the answer: any text, any JSON object, or JSON that is valid for a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.json_schema is None) == (self.type == "json_schema"):
            raise ValueError("json_schema is required with the type json_schema, and not allowed with others")
        return self

    @property
    def schema_text(self) -> str | None:
        """Schema of the answer, as JSON; None for any text."""
        if self.type == "text":
            return None
        return json.dumps({"type": "object"} if self.json_schema is None else self.json_schema.enforced)

    @property
    def output_constraint(self) -> OutputConstraint:
        """The constraint for an engine."""
        original_schema = None if self.json_schema is None else self.json_schema.schema_
        return OutputConstraint(json_schema=self.schema_text, original_schema=original_schema)


class StructuredOutputs(Request):
    """vLLM's constraints of the answer's form. Exactly one of them is required."""

    json_: dict[str, JsonValue] | str | bool | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _has_one_constraint(self) -> Self:
        constraints = [self.json_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(constraint is not None for constraint in constraints) != 1:
            raise ValueError("exactly one of json, regex, choice, grammar and json_object is required")
        _ = self.output_constraint  # an invalid constraint must be refused here, not later
        return self

    @property
    def output_constraint(self) -> OutputConstraint:
        """The constraint for an engine. Raises ValueError if the constraint cannot be enforced."""
        if self.json_ is not None:
            return OutputConstraint(json_schema=validate_schema(self.json_))
        if self.regex is not None:
            return OutputConstraint(regex=validate_regex(self.regex))
        if self.choice is not None:
            return OutputConstraint(grammar=choice_grammar(self.choice))
        if self.grammar is not None:
            return OutputConstraint(grammar=validate_grammar(self.grammar))
        return OutputConstraint(json_schema='{"type": "object"}')
