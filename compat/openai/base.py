"""What all requests are: strict, and without fields that nobody knows."""

from typing import Annotated

from pydantic import ConfigDict, Field, field_validator

from compat.bounds import BoundedModel

_Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]

MAX_STOPS = 16
"""Stop strings; OpenAI allows four."""


class Request(BoundedModel):
    """Unknown fields are refused, and so are known ones with values that are not supported."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Chosen(Request):
    """How a text is chosen and when it ends; None falls back."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: _Seed | None = None
    stop: str | list[str] | None = None

    @field_validator("stop")
    @classmethod
    def _stops_say_something(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
        if any(not text for text in stops):
            raise ValueError("a stop string must not be empty")
        return stop


class Sampled(Chosen):
    """The same, and how long it may get."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
