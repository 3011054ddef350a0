"""The keywords of JSON Schema, by their treatment."""

from typing import Any

ANNOTATIONS = ("title", "description")
"""Annotations that are preserved, because prompts may contain them."""
UNSUPPORTED = (
    *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems"),
    *("$dynamicRef", "$recursiveRef"),
)
"""Keywords that llguidance lacks."""
NO_CONSTRAINT_IF_FALSE = frozenset(("not", "if", "uniqueItems"))
"""Unsupported keywords that allow every value if they are `false`. Others forbid something then, such as `contains`."""
OPENING = ("additionalProperties", "patternProperties")
"""Keywords that constrain properties which `properties` does not name."""
JOINING = ("allOf", "anyOf", "oneOf", "$ref")
TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
TEXTUAL = ("minLength", "maxLength", "pattern", "format")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
DESCRIBING = frozenset(
    (
        *(*UNSUPPORTED, *OPENING, *NUMERIC, *TEXTUAL, *COUNTS),
        *("type", "const", "enum", "properties", "required", "items", "prefixItems", "additionalItems"),
        "unevaluatedProperties",
    )
)
"""Keywords that can make a value invalid, except those that join schemas."""


def allows_type(node: Any, kind: str, *, exactly: bool = False) -> bool:
    """Return whether the schema's `type` allows values of type `kind`; if `exactly`, whether it allows only these."""
    types = node.get("type") if isinstance(node, dict) else None
    if exactly:
        return types in (kind, [kind])
    return types is None or kind == types or (isinstance(types, list) and kind in types)
