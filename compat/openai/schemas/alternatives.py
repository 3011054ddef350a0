"""Number of alternatives that result from joining the parts of a schema."""

import math
from typing import Any


def max_alternatives(document: dict[str, Any]) -> int:
    """Return the largest number of alternatives that joining the parts of one schema in the document gives."""
    return _AlternativeCounter(document).maximum


class _AlternativeCounter:
    """Estimator of the number of alternatives that llguidance makes when it joins the parts of a schema.

    It is the product of the numbers of alternatives of the parts.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._definitions = document.get("$defs", {})
        self._known: dict[str, int] = {}
        self.maximum = 1
        """Largest number of alternatives that joining the parts of one schema gives."""
        self._count(document)
        for name in self._definitions:
            self._count_definition(name)

    def _count_definition(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = 1  # ends the recursion, if the definition refers to itself
            self._known[name] = self._count(self._definitions.get(name, True))
        return self._known[name]

    def _count(self, node: Any) -> int:
        if not isinstance(node, dict):
            return 1
        for key in ("properties", "patternProperties"):
            for item in node.get(key, {}).values():
                self._count(item)
        for item in [node.get("items", True), node.get("additionalProperties", True), *node.get("prefixItems", ())]:
            self._count(item)
        widths = [len(node["type"]) if isinstance(node.get("type"), list) else 1, len(node.get("enum", "1"))]
        widths += [self._count(part) for part in node.get("allOf", ())]
        widths += [sum([self._count(part) for part in node[key]]) for key in ("anyOf", "oneOf") if node.get(key)]
        if isinstance(node.get("$ref"), str):
            widths.append(self._count_definition(node["$ref"].removeprefix("#/$defs/")))
        product = math.prod(widths)
        if sum([width > 1 for width in widths]) > 1:
            self.maximum = max(self.maximum, product)
        return product
