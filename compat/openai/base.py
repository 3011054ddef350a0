"""Base classes of requests. They are strict: unknown fields are refused."""

from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from compat.bounds import BoundedModel, TokenCount, check_members

_Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]

Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
"""Pairs of texts that a client attaches to an object, within OpenAI's limits."""

MAX_STOPS = 16
"""Maximum number of stop strings; OpenAI allows four."""

MAX_STOP_LENGTH = 1_000
"""Maximum length of a stop string, in characters."""


def field_error(field: str, message: str) -> PydanticCustomError:
    """Return an error for a validator of a whole model to raise. `field`: path of the invalid field in the model."""
    return PydanticCustomError(FIELD_ERROR, "{message}", {"message": message, "field": field})


FIELD_ERROR = "field_error"
"""Type of the errors that `field_error` returns; their context has the path under `field`."""


class Request(BoundedModel):
    """Base of all requests. Unknown fields, and known ones with unsupported values, are refused.

    A field that is null counts as left out, unless null is a value of its own.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_members(cls, content: Any) -> Any:
        """Check the number of members, as the overridden validator does, and remove nulls.

        One validator does both, because a second one would cost every request time.
        """
        if type(content) is not dict:
            return content
        check_members(content)
        if None not in content.values():
            return content
        accepts_null = _fields_with_null(cls)
        return {name: value for name, value in content.items() if value is not None or name in accepts_null}


@cache
def _fields_with_null(model: type[BoundedModel]) -> frozenset[str]:
    """Return the fields for which a null is kept: required fields, and those whose default is null."""
    return frozenset(
        field.alias or name
        for name, field in model.model_fields.items()
        if field.is_required() or (field.default is None and field.default_factory is None)
    )


class SamplingFields(Request):
    """Sampling fields of a request, and its stop strings. None: use the default."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: _Seed | None = None
    stop: str | list[str] | None = None

    @field_validator("stop")
    @classmethod
    def _check_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
        if any(not text for text in stops):
            raise ValueError("a stop string must not be empty")
        if any(len(text) > MAX_STOP_LENGTH for text in stops):
            raise ValueError(f"a stop string has at most {MAX_STOP_LENGTH} characters")
        return stop


class LimitedSamplingFields(SamplingFields):
    """Sampling fields of a request, with the maximum number of tokens to generate."""

    max_tokens: TokenCount | None = None
