"""The tools of a request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Tool:
    """A function that the client can run for the model.

    `schema`: schema of the arguments that the model reads. `enforced`: schema that constrains the arguments. `strict`:
    whether it constrains calls that the model is free to make as well. `input_lark`: grammar in Lark of a tool whose
    one argument is a text; the model writes the text as it is, after the name, instead of arguments in JSON.
    """

    name: str
    description: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False
    enforced: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    input_lark: str | None = None

    def as_openai(self) -> dict[str, Any]:
        """Return the tool in OpenAI's format, which chat templates expect."""
        return self._describe(self.description if self.input_lark is None else f"{self.description}\n{_TEXT_CALL}")

    def as_upstream(self) -> dict[str, Any]:
        """Return the tool for an upstream server, which may constrain calls by `strict`."""
        described = self._describe(self.description)
        if self.strict:
            described["function"]["strict"] = True
        return described

    def _describe(self, description: str) -> dict[str, Any]:
        function = {"name": self.name, "description": description, "parameters": dict(self.schema)}
        return {"type": "function", "function": function}


_TEXT_CALL = (
    "To call this tool, write only its name as JSON, then a line break, then the input as it is, without JSON and "
    "without escapes."
)
"""Description of a call whose input is a text; see `text_call_head`."""

Choice = Literal["none", "auto", "forced"]


@dataclass(frozen=True)
class Tools:
    """The tools of a request. With `forced`, the answer is one call of `callable`, or several if `parallel`."""

    known: Sequence[Tool]
    choice: Choice = "auto"
    callable: Sequence[Tool] = ()
    parallel: bool = False
    parallel_tool_calls: bool | None = None
    """Value of `parallel_tool_calls` in the request."""

    def request_fields(self) -> dict[str, Any]:
        """Return the fields of a request in OpenAI's format."""
        if self.choice == "none":
            return {}
        fields: dict[str, Any] = {"tools": [tool.as_upstream() for tool in self.known]}
        if self.choice == "forced":
            (only, *others) = self.callable
            named = len(self.known) > 1 and not others
            fields["tool_choice"] = {"type": "function", "function": {"name": only.name}} if named else "required"
        if self.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = self.parallel_tool_calls
        return fields
