"""Tests of compat/openai/schemas/size.py and of the limits of the other modules: large schemas are refused."""

from typing import Any

import pytest

from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.size import MAX_SCHEMA_DEPTH
from tests.compat.openai.schemas.answers import LENIENT, fits


def test_sizes_are_limited() -> None:
    deep: Any = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        deep = {"items": deep}
    chain = {
        "$ref": "#/$defs/a0",
        "$defs": {f"a{index}": {"$ref": f"#/$defs/a{index + 1}", "minimum": 1} for index in range(3000)},
    }
    many = {
        "allOf": [
            {"anyOf": [{"type": "string", "pattern": f"^{first}{second}"} for second in range(3)]} for first in range(9)
        ]
    }
    for schema in (deep, chain, many, {"enum": list(range(30_000))}, {"const": "x" * 300_000}):
        with pytest.raises(ValueError, match="cannot be enforced"):
            enforced_schema(schema)
        assert enforced_schema(schema, LENIENT) == {"type": "object"}
    pure: dict[str, Any] = {f"a{index}": {"$ref": f"#/$defs/a{index + 1}"} for index in range(3000)}
    assert fits(enforced_schema({"$ref": "#/$defs/a0", "$defs": {**pure, "a3000": {"type": "null"}}}), None)
