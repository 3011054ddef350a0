"""Requests and answers of /v1/admin/keys: virtual API keys with limits and budgets."""

import re
from typing import Annotated, Literal, Self, TypedDict

from pydantic import AfterValidator, Field, StringConstraints, WithJsonSchema, model_validator

from compat.openai.base import Request, field_error

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$"
_MAX_TIME = 253_402_300_799
"""Last second of the year 9999."""

_Text = Annotated[str, StringConstraints(max_length=200, pattern=_PRINTABLE)]
_ModelPattern = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PRINTABLE)]
_Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_PRINTABLE)]
_Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
_PERIOD = r"^([1-9][0-9]{0,3}[hd]|month)$"


def _check_period(text: str) -> str:
    if not re.fullmatch(_PERIOD, text):
        raise ValueError("must be month, or a number of hours or days such as 1h or 30d")
    return text


_Period = Annotated[str, AfterValidator(_check_period), WithJsonSchema({"type": "string", "pattern": _PERIOD})]


class CreateKeyRequest(Request):
    """POST /v1/admin/keys. A limit that is left out does not apply."""

    name: _Text = ""
    models: Annotated[list[_ModelPattern], Field(min_length=1, max_length=100)] | None = None
    weight: Annotated[float, Field(ge=0.001, le=1_000_000, allow_inf_nan=False)] = 1.0
    parallel: _Count | None = None
    rpm: _Count | None = None
    tpm: Annotated[int, Field(ge=1, le=1_000_000_000_000)] | None = None
    budget_cost: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] | None = None
    budget_tokens: Annotated[int, Field(ge=0, le=1_000_000_000_000_000)] | None = None
    budget_period: _Period | None = None
    expires_at: Annotated[int, Field(ge=0, le=_MAX_TIME)] | None = None
    tags: Annotated[list[_Tag], Field(max_length=16)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _period_has_a_budget(self) -> Self:
        has_budget = self.budget_cost is not None or self.budget_tokens is not None
        if type(self) is CreateKeyRequest and self.budget_period is not None and not has_budget:
            raise field_error("budget_period", "budget_period needs budget_cost or budget_tokens")
        return self


class UpdateKeyRequest(CreateKeyRequest):
    """PATCH /v1/admin/keys/{id}. Fields that are left out keep their values. Null removes a limit."""

    disabled: bool = False


class RotateKeyRequest(Request):
    """POST /v1/admin/keys/{id}/rotate. `grace_seconds`: time for which the secret before is still accepted."""

    grace_seconds: Annotated[float, Field(ge=0, le=30 * 86_400, allow_inf_nan=False)] = 0.0


class KeyUsage(TypedDict):
    """Use of a key's budgets in the current period. Times are seconds of the Unix clock. Only the budgets
    that the key has are counted; the others are null."""

    tokens: int | None
    cost: float | None
    reserved_tokens: int | None
    reserved_cost: float | None
    period_start: int | None
    period_end: int | None


class KeyObject(TypedDict):
    """A virtual API key, without the key itself."""

    id: str
    object: Literal["api_key"]
    name: str
    created_at: int
    expires_at: int | None
    disabled: bool
    models: list[str] | None
    weight: float
    parallel: int | None
    rpm: int | None
    tpm: int | None
    budget_cost: float | None
    budget_tokens: int | None
    budget_period: str | None
    tags: list[str]
    usage: KeyUsage


class KeyWithSecret(KeyObject):
    """A virtual API key that was made or rotated. `key`: the key, which no other answer has."""

    key: str


class KeyList(TypedDict):
    """A page of virtual API keys, newest first."""

    object: Literal["list"]
    data: list[KeyObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class KeyDeleted(TypedDict):
    """Answer to a deletion."""

    id: str
    object: Literal["api_key.deleted"]
    deleted: bool
