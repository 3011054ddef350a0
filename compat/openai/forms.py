"""Requests of the forms of a graph: map, branch, repeat, tool, agent; see docs/graphs.md."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator
from pydantic_core import PydanticCustomError

from compat.openai.base import Request, field_error

FORM_KEYS = ("map", "if", "repeat", "tool", "agent")
"""Keys that make an entry of `calls` a form. Other entries are bodies of chat completions."""
MAX_BODY = 100
"""Maximum number of calls on a side of a branch, and in a round: they are added together."""
MAX_ITEMS = 1_000
"""Default of the maximum length of a map's list."""


class ConditionRequest(Request):
    """A condition on a text, with exactly one operator."""

    value: str
    equals: str | None = None
    in_: list[str] | None = Field(None, alias="in", min_length=1, max_length=1_000)
    matches: str | None = None
    less_than: Annotated[float, Field(allow_inf_nan=False)] | None = None
    json_: JsonValue = Field(None, alias="json")

    @model_validator(mode="after")
    def _has_one_operator(self) -> Self:
        operators = sorted(self.model_fields_set - {"value"})
        if len(operators) != 1:
            found = ", ".join(name.rstrip("_") for name in operators) or "none"
            names = "equals, in, matches, less_than and json"
            raise ValueError(f"a condition needs exactly one of {names}; this one has {found}")
        (name,) = operators
        if getattr(self, name) is None and name != "json_":
            raise field_error(name.rstrip("_"), f"{name.rstrip('_')} must not be null")
        return self


class EachRequest(Request):
    """A call for each element of a JSON list. `over`: a reference to the list, or the list itself."""

    over: str | list[JsonValue]
    as_: str = Field("item", alias="as")
    max_items: Annotated[int, Field(ge=1, le=10_000)] = MAX_ITEMS
    on_error: Literal["fail", "skip", "null"] = "fail"


class MapRequest(EachRequest):
    """A map: the body of the call for each element."""

    call: dict[str, Any]


class MapForm(Request):
    """A map, as an entry of `calls`."""

    map: MapRequest
    output: str | None = None


class BranchForm(Request):
    """A branch, as an entry of `calls`."""

    if_: ConditionRequest = Field(alias="if")
    then: list[dict[str, Any]] = Field(default_factory=list, max_length=MAX_BODY)
    else_: list[dict[str, Any]] = Field(default_factory=list, max_length=MAX_BODY, alias="else")
    default: JsonValue = None

    @model_validator(mode="after")
    def _has_calls(self) -> Self:
        if not self.then and not self.else_:
            raise field_error("then", "then and else are both empty")
        return self


class RepeatRequest(Request):
    """Rounds of calls. `carry`: texts of names in the next round. `start`: their texts in the first round."""

    calls: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_BODY)
    carry: dict[str, str] = Field(default_factory=dict, max_length=100)
    start: dict[str, JsonValue] = Field(default_factory=dict, max_length=100)
    until: ConditionRequest
    max: Annotated[int, Field(ge=1, le=100)]
    on_max: Literal["fail", "last"] = "fail"

    @model_validator(mode="after")
    def _starts_what_it_carries(self) -> Self:
        for name in self.start:
            if name not in self.carry:
                raise field_error("start", f"start has {name!r}, which carry does not have")
        return self


class RepeatForm(Request):
    """A repeat, as an entry of `calls`."""

    repeat: RepeatRequest
    outputs: list[str] = Field(min_length=1, max_length=100)


class ToolRequest(Request):
    """A run of a tool."""

    server: str
    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class ToolForm(Request):
    """A run of a tool, as an entry of `calls`."""

    tool: ToolRequest
    output: str | None = None


class AgentForm(Request):
    """An agent, as an entry of `calls`. `agent`: the body of a chat completion, with `tools` as a list of patterns
    `server/name` and with `max_turns`."""

    agent: dict[str, Any]
    output: str | None = None


class LimitsRequest(Request):
    """Limits of what the calls of a session, or of an agent, may use together.

    `cost`: in the currency of the operator's prices. `calls`: number of calls of models and tools. `seconds`: time from
    the creation of the session, or from the addition of the agent.
    """

    tokens: Annotated[int, Field(ge=1)] | None = None
    cost: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    calls: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class AgentOptions(Request):
    """The fields of an agent beside those of a chat completion. `on_max`: `fail`: the agent fails if the last of
    `max_turns` answers calls tools; `answer`: the model gets no tools for the last answer."""

    tools: list[str] = Field(default_factory=list, max_length=100)
    max_turns: Annotated[int, Field(ge=1, le=100)] = 10
    on_max: Literal["fail", "answer"] = "fail"
    limits: LimitsRequest | None = None

    @field_validator("tools", mode="before")
    @classmethod
    def _names_tools(cls, tools: Any) -> Any:
        """Say what an agent's tools are to clients that send tools of a chat completion."""
        if isinstance(tools, list) and any(isinstance(tool, dict) for tool in tools):
            message = (
                "an agent's tools are patterns of tools that the server runs, such as 'files/*'; "
                "for functions of the client, use a chat completion"
            )
            raise PydanticCustomError("agent_tools", "{message}", {"message": message})
        return tools
