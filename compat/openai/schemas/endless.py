"""Definitions without a finite valid value, which llguidance would follow without end."""

from collections.abc import Iterable
from typing import Any

from compat.openai.schemas.keywords import allows_type
from compat.openai.schemas.policy import Unenforceable


def cut_endless(top: Any, definitions: dict[str, Any]) -> None:
    """Replace references to definitions without a finite valid value by false. Raises Unenforceable if nothing else is
    valid for the schema."""
    finite: set[str] = set()
    grown = True
    while grown:
        more = {name for name, item in definitions.items() if name not in finite and _is_finite(item, finite)}
        grown = bool(more)
        finite |= more
    endless = definitions.keys() - finite
    if endless:
        if not _is_finite(top, finite):
            raise Unenforceable("unsatisfiable: no finite value is valid for it")
        references = {f"#/$defs/{name}" for name in endless}
        for schema in [top, *definitions.values()]:
            _replace(schema, references)
        for name in endless:
            del definitions[name]


def _is_finite(node: Any, finite: set[str]) -> bool:
    """Return whether a finite value may be valid. `finite`: definitions that are known to have one."""
    if not isinstance(node, dict):
        return node is not False
    if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in finite:
        return False
    if not all(_is_finite(part, finite) for part in node.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if node.get(key) and not any(_is_finite(part, finite) for part in node[key]):
            return False
    if allows_type(node, "object", exactly=True):
        properties = node.get("properties", {})
        return all(_is_finite(properties.get(name, True), finite) for name in node.get("required", ()))
    if allows_type(node, "array", exactly=True):
        prefix, minimum = node.get("prefixItems", []), node.get("minItems", 0)
        first = all(_is_finite(item, finite) for item in prefix[:minimum])
        return first and (minimum <= len(prefix) or _is_finite(node.get("items", True), finite))
    return True


def _replace(node: Any, references: set[str]) -> None:
    """Replace the references by false."""
    stack = [node]
    while stack:
        current = stack.pop()
        pairs: Iterable[tuple[Any, Any]] = ()
        if isinstance(current, dict):
            pairs = [(key, value) for key, value in current.items() if key not in ("const", "enum", "required")]
        elif isinstance(current, list):
            pairs = list(enumerate(current))
        for key, value in pairs:
            if isinstance(value, dict) and value.get("$ref") in references:
                current[key] = False
            else:
                stack.append(value)
