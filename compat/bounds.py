"""Limits of all requests, whichever API they belong to."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function

MAX_INTEGER = 2**31 - 1
"""Largest absolute value of an integer field without a bound of its own. Engines and the frames to them use 32 bits."""

MAX_NUMBER = 1e15
"""Largest absolute value of a float field without a bound of its own: times in microseconds stay exact."""

MAX_MEMBERS = 1_000
"""Maximum number of members of an object with known fields. No request has a tenth as many fields."""

MAX_ELEMENTS = 10_000
"""Maximum number of elements of a list of objects, such as messages, that has no bound of its own."""

MAX_ENTRIES = 10_000
"""Maximum number of entries of an object with free keys and typed values, such as `logit_bias`."""


def _check_entries(content: Any) -> Any:
    if isinstance(content, dict) and len(content) > MAX_ENTRIES:
        raise ValueError(f"{len(content)} entries; at most {MAX_ENTRIES} are allowed here")
    return content


_SCALARS = ("int", "float", "str", "any", None)


def _type_of(schema: Any) -> str | None:
    """Return the type of a core schema inside its validators; None for no schema."""
    while schema is not None and schema["type"] in ("function-before", "function-after", "function-wrap", "nullable"):
        schema = schema["schema"]
    return None if schema is None else str(schema["type"])


def _add_bounds(node: Any, seen: set[int]) -> None:
    """Add the bounds to a core schema, in place."""
    if id(node) in seen:
        return
    if isinstance(node, dict):
        seen.add(id(node))
        match node.get("type"):
            case "int":
                if "le" not in node and "lt" not in node:
                    node["le"] = MAX_INTEGER
                if "ge" not in node and "gt" not in node:
                    node["ge"] = -MAX_INTEGER
            case "float":
                if "le" not in node and "lt" not in node:
                    node["le"] = MAX_NUMBER
                if "ge" not in node and "gt" not in node:
                    node["ge"] = -MAX_NUMBER
                node["allow_inf_nan"] = False
            case "list":
                node["fail_fast"] = True
                if _type_of(node.get("items_schema")) not in _SCALARS:
                    node.setdefault("max_length", MAX_ELEMENTS)
        for key, child in node.items():
            if key not in ("metadata", "serialization"):
                _add_bounds(child, seen)
        if node.get("type") == "dict" and node["values_schema"].get("type") not in ("any", "json", "definition-ref"):
            inner = dict(node)
            node.clear()
            node.update(no_info_before_validator_function(_check_entries, inner))
            seen.add(id(inner))
    elif isinstance(node, (list, tuple)):
        for child in node:
            _add_bounds(child, seen)


def check_members(content: dict[str, Any]) -> None:
    """Raise ValueError if an object has more members than any request has fields."""
    if len(content) > MAX_MEMBERS:
        raise ValueError(f"{len(content)} members; at most {MAX_MEMBERS} are allowed here")


MAX_STOP_TOKENS = 1_000
"""Maximum number of tokens in `stop_token_ids`."""

MAX_BIASES = 1_024
"""Maximum number of tokens in `logit_bias`, as in OpenAI's API. Each costs time in every step of the answer."""


def check_biases(bias: Mapping[str, float] | None) -> None:
    """Raise ValueError if there are too many biases, or a key is not a token id."""
    if bias is not None and len(bias) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens can have a bias")
    bad = next((key for key in bias or () if not (key.isascii() and key.isdecimal() and len(key) <= 10)), None)
    if bad is not None:
        raise ValueError(f"keys must be token ids; {bad[:20]!r} is not one")


def _clamp(count: int) -> int:
    return min(count, MAX_INTEGER)


TokenCount = Annotated[int, Field(ge=1, le=2**63 - 1), AfterValidator(_clamp)]
"""Maximum number of tokens of an answer. Clients send huge numbers for "no limit": these become MAX_INTEGER."""


class BoundedModel(BaseModel):
    """A model whose numbers are all bounded, and whose validation stops at the first invalid element of a list.

    Otherwise a list of a million invalid elements costs seconds and gigabytes: pydantic collects an error for each
    element, each unknown member, and each alternative of a union.
    """

    @model_validator(mode="before")
    @classmethod
    def _check_members(cls, content: Any) -> Any:
        if isinstance(content, dict):
            check_members(content)
        return content

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _add_bounds(schema, set())
        return schema
