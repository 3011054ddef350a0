"""What an answer is held to: OpenAI's formats, and vLLM's."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from llguidance import LLMatcher  # what answers are held to: refused here is what would be refused there
from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from compat.openai.base import Request


def _must_be_held_to(grammar: str, what: str) -> None:
    """Raises ValueError if an engine would refuse it."""
    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        raise ValueError(f"this {what} cannot be held to: {problem}")


_OPENS = {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
"""What says of an object that there may be more in it than its `properties`."""


def closed(schema: Any) -> Any:
    """The schema with no properties but those that it names, in objects that name some, or say that there are
    none, and do not speak of others.

    A model that may add some does, without end if it is a weak one. vLLM and OpenAI's strict schemas close them too.
    """
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            made[key] = {name: closed(one) for name, one in value.items()} if isinstance(value, dict) else value
        elif key in ("enum", "const", "default", "examples", "allOf", "not", "if", "then", "else"):
            made[key] = value  # values; and schemas of which each says a part
        else:
            made[key] = closed(value)
    if "properties" in made and not _OPENS & made.keys():
        made["additionalProperties"] = False
    return made


def valid_schema(schema: Any) -> str:
    """A JSON schema as text, closed. Raises ValueError."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"this schema is no JSON: {error}") from None
    text = json.dumps(closed(schema))
    _must_be_held_to(LLMatcher.grammar_from_json_schema(text), "schema")
    return text


def _held_to(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    valid_schema(schema)
    return schema


Schema = Annotated[dict[str, JsonValue], AfterValidator(_held_to)]
"""A JSON schema that an engine would not refuse."""


def valid_regex(pattern: str) -> str:
    """The pattern. Raises ValueError if it cannot be held to."""
    _must_be_held_to(LLMatcher.grammar_from_regex(pattern), "regex")
    return pattern


def valid_grammar(grammar: str) -> str:
    """The grammar, in Lark. Raises ValueError if it cannot be held to."""
    _must_be_held_to(LLMatcher.grammar_from_lark(grammar), "grammar")
    return grammar


def one_of(choices: list[str]) -> str:
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


class JsonSchema(Request):
    """A schema by name; `strict` changes nothing: it is always held to."""

    name: str
    schema_: dict[str, JsonValue] | bool = Field(True, alias="schema")
    description: str | None = None
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _can_be_held_to(cls, schema: dict[str, JsonValue] | bool) -> dict[str, JsonValue] | bool:
        valid_schema(schema)
        return schema


class ResponseFormat(Request):
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
        return json.dumps({"type": "object"} if self.json_schema is None else closed(self.json_schema.schema_))


class StructuredOutputs(Request):
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
            return Form(json_schema=valid_schema(self.json_))
        if self.regex is not None:
            return Form(regex=valid_regex(self.regex))
        if self.choice is not None:
            return Form(grammar=one_of(self.choice))
        if self.grammar is not None:
            return Form(grammar=valid_grammar(self.grammar))
        return Form(json_schema='{"type": "object"}')
