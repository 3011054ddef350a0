"""The Semantic Variable extension's part of requests, and the requests of its own endpoints; see docs/api.md."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, field_validator, model_validator

from compat.openai.base import LimitedSamplingFields, Metadata, Request, field_error
from compat.openai.forms import EachRequest, LimitsRequest
from compat.openai.response_formats import ResponseFormat, validate_regex

SessionId = Annotated[
    str, StringConstraints(max_length=128, pattern=r"^(\.{0,2}[A-Za-z0-9_:-]|\.{3})[A-Za-z0-9._:-]*$")
]


class Transform(Request):
    """Transform of a generated text into a value. Several keys apply in this order."""

    strip: bool = False
    line: int | None = None
    regex: str | None = None
    group: Annotated[int, Field(ge=0)] = 0
    json_: str | None = Field(None, alias="json", min_length=1)

    @model_validator(mode="after")
    def _group_has_its_regex(self) -> Self:
        if self.regex is None and self.group:
            raise field_error("group", "group needs regex")
        return self


class SlotRequest(LimitedSamplingFields):
    """A variable that is generated inside a message. Fields that are omitted have the values of the request."""

    response_format: ResponseFormat | None = None
    regex: str | None = None
    transform: Transform | None = None

    @field_validator("regex")
    @classmethod
    def _check_regex(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else validate_regex(pattern)

    @model_validator(mode="after")
    def _has_one_constraint(self) -> Self:
        if self.regex is not None and self.response_format is not None:
            raise field_error("regex", "only one of regex and response_format is allowed")
        return self


class Semantic(Request):
    """The Semantic Variable extension; see docs/api.md."""

    session: SessionId | None = None
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    defaults: dict[str, JsonValue] = Field(default_factory=dict, max_length=1_000)
    output: str | None = None
    transform: Transform | None = None
    slots: dict[str, SlotRequest] = Field(default_factory=dict, max_length=1_000)
    defer: bool | None = None
    objective: Literal["latency", "throughput"] | None = None
    share: bool = True
    each: EachRequest | None = None


class GraphRequest(Request):
    """POST /v1/graphs. The calls are bodies of chat completions, which are checked one by one.

    Each variable is given by its value, or by an object with only `value` or only `template`; null declares it.
    """

    variables: dict[str, JsonValue] = Field(default_factory=dict)
    calls: list[Any] = Field(default_factory=list)
    outputs: list[str] | None = None
    session: SessionId | None = None
    stream: bool = False
    limits: LimitsRequest | None = None


class SessionRequest(Request):
    """POST /v1/sessions."""

    id: SessionId | None = None
    metadata: Metadata = Field(default_factory=dict)
    ttl: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    limits: LimitsRequest | None = None


class VariableRequest(Request):
    """PUT /v1/sessions/{id}/variables/{name}. `value` null declares the variable; `template` derives it from others."""

    value: JsonValue = None
    template: str = Field("", max_length=2_000_000)

    @model_validator(mode="after")
    def _has_value_or_template(self) -> Self:
        if self.model_fields_set not in ({"value"}, {"template"}):
            raise field_error("value", "either value or template is required, but not both")
        return self
