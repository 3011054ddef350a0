"""Custom tools, whose input is a text. A model reads them as functions with the one argument `input`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from compat.openai.base import Request, field_error
from compat.openai.messages import INPUT_FIELD, FunctionDefinition, FunctionName
from compat.openai.response_formats import enforced_schema, validate_grammar, validate_regex

GrammarSyntax = Literal["lark", "regex"]
"""Syntax of a grammar that the input of a custom tool must match."""


MAX_GRAMMARS_LENGTH = 256 << 10
"""Maximum length of all grammars of custom tools and patterns of strict tools in a request, in characters."""


@dataclass(frozen=True)
class InputGrammar:
    """A grammar that the input of a custom tool must match."""

    syntax: GrammarSyntax
    definition: str

    def check(self) -> None:
        """Raise ValueError if the grammar is invalid, or too large."""
        if self.syntax == "lark":
            validate_grammar(self.definition)
        else:
            validate_regex(self.definition)

    @property
    def lark(self) -> str | None:
        """The grammar in Lark that is enforced; None for a regex."""
        return validate_grammar(self.definition) if self.syntax == "lark" else None

    @property
    def schema_of_input(self) -> dict[str, Any]:
        """JSON schema of the input."""
        return {"type": "string", "pattern": f"^(?:{self.definition})$"} if self.syntax == "regex" else _TEXT

    @property
    def description(self) -> str:
        """Description of the grammar for the model."""
        if self.syntax == "lark":
            return f"The input must match this grammar in Lark:\n{self.definition}"
        return f"The input must match this regular expression: {self.definition}"


_TEXT: dict[str, Any] = {"type": "string"}


class CustomFunction(FunctionDefinition):
    """A custom tool as a function. `input_lark`: grammar in Lark that the input must match, if there is one."""

    input_lark: str | None = None


def custom_function(name: str, description: str | None, grammar: InputGrammar | None) -> CustomFunction:
    """Return the function that a model reads for a custom tool. `grammar`: grammar of its input; None for any text."""
    texts = [description or "", f"The argument `{INPUT_FIELD}` is a text.", grammar.description if grammar else ""]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {INPUT_FIELD: _TEXT if grammar is None else grammar.schema_of_input},
        "required": [INPUT_FIELD],
        "additionalProperties": False,
    }
    return CustomFunction.model_construct(  # everything is checked already: another compilation may take 0.1 s
        name=name,
        description="\n".join(text for text in texts if text),
        parameters=schema,
        strict=_is_enforceable(schema),
        input_lark=None if grammar is None else grammar.lark,
    )


def _is_enforceable(schema: Any) -> bool:
    try:
        enforced_schema(schema)
    except ValueError:
        return False
    return True


def check_size_of_grammars(content: Any) -> Any:
    """Return tools of a request, or items that contain tools. Raises ValueError if their grammars and patterns are too
    large.

    It is the validator of a field before its content is checked: to compile a grammar of 64 KiB may take 0.2 s.
    """
    if sum(_lengths_of_grammars(content)) > MAX_GRAMMARS_LENGTH:
        raise ValueError(
            f"the grammars of all custom tools and the patterns of all strict tools have at most {MAX_GRAMMARS_LENGTH} "
            "characters together"
        )
    return content


def _lengths_of_grammars(tools: Any, levels: int = 3) -> Iterator[int]:
    """Yield the length of each grammar and pattern. `levels`: levels of tools, of which an item with namespaces has
    three."""
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue
        custom = tool.get("custom")
        format = custom.get("format") if isinstance(custom, dict) else tool.get("format")
        if isinstance(format, dict):
            grammar = format.get("grammar")
            definition = (grammar if isinstance(grammar, dict) else format).get("definition")
            yield len(definition) if isinstance(definition, str) else 0
        function = tool.get("function")
        described = function if isinstance(function, dict) else tool
        if described.get("strict"):
            yield from _lengths_of_patterns(described.get("parameters") or described.get("input_schema"))
        if levels > 1 and "tools" in tool:
            yield from _lengths_of_grammars(tool["tools"], levels - 1)


def _lengths_of_patterns(schema: Any) -> Iterator[int]:
    """Yield the length of each pattern in a JSON schema."""
    if isinstance(schema, list):
        for each in schema:
            yield from _lengths_of_patterns(each)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key == "pattern" and isinstance(value, str):
                yield len(value)
            elif key == "patternProperties" and isinstance(value, dict):
                yield from map(len, value)
            yield from _lengths_of_patterns(value)


SmallGrammars = BeforeValidator(check_size_of_grammars)
"""Limit of the grammars of all tools in a field."""


def check_definition(grammar: InputGrammar) -> None:
    """Raise the error of a request's field `definition` if the grammar is invalid."""
    try:
        grammar.check()
    except ValueError as error:
        raise field_error("definition", str(error)) from None


class GrammarDefinition(Request):
    """Grammar of a custom tool's input, in a chat completion."""

    syntax: GrammarSyntax
    definition: str

    @model_validator(mode="after")
    def _is_valid(self) -> Self:
        check_definition(self.grammar)
        return self

    @property
    def grammar(self) -> InputGrammar:
        """The grammar."""
        return InputGrammar(self.syntax, self.definition)


class CustomToolFormat(Request):
    """Format of a custom tool's input, in a chat completion: any text, or a text that matches a grammar."""

    type: Literal["text", "grammar"]
    grammar: GrammarDefinition | None = None

    @model_validator(mode="after")
    def _has_its_grammar(self) -> Self:
        if (self.grammar is None) == (self.type == "grammar"):
            raise field_error("grammar", "the type grammar needs the field grammar, and the type text does not have it")
        return self


class CustomDefinition(Request):
    """Name, description and format of a custom tool."""

    name: FunctionName
    description: str | None = None
    format: CustomToolFormat | None = None


class CustomToolDefinition(Request):
    """A tool of a chat completion that the client can run for the model, and whose input is a text."""

    type: Literal["custom"]
    custom: CustomDefinition

    @cached_property
    def function(self) -> CustomFunction:
        """The function that the model reads."""
        format = self.custom.format
        grammar = None if format is None or format.grammar is None else format.grammar.grammar
        return custom_function(self.custom.name, self.custom.description, grammar)
