"""The parts of a schema that are joined, and the properties that they describe together."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from compat.openai.schemas.definitions import Definitions
from compat.openai.schemas.keywords import OPENING
from compat.openai.schemas.policy import Unenforceable

MAX_VISITS = 50_000
"""Maximum number of parts visited, for a whole schema, to find the properties that joined parts name: about 0.1 s."""


class PartFinder:
    """Finder of the parts that `allOf`, `anyOf`, `oneOf` and `$ref` join. It counts the parts that it visits, so that a
    hostile schema cannot take long."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._visits = 0

    def parts(self, node: Any) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield the schema and all parts that are joined with it, each once. The bool says whether the part is inside
        an `anyOf` or `oneOf`."""
        stack, seen = [(node, False)], set()
        while stack:
            part, is_choice = stack.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            self._visits += 1
            if self._visits > MAX_VISITS:
                raise Unenforceable("it joins too many parts")
            yield part, is_choice
            if "$ref" in part:
                stack.append((self._definitions.find_target(part["$ref"]), is_choice))
            for key in ("allOf", "anyOf", "oneOf"):
                if isinstance(part.get(key), list):
                    stack += [(item, is_choice or key != "allOf") for item in part[key]]

    def count_names(self, node: Any) -> Counter[str]:
        """Return for each property how many parts of the schema describe it; 0 if it is only required."""
        counts: Counter[str] = Counter()
        for part, _ in self.parts(node):
            if isinstance(part.get("properties"), dict):
                counts.update(part["properties"].keys())
            if isinstance(part.get("required"), list):
                counts.update({name: 0 for name in part["required"] if isinstance(name, str)})
        return counts

    def allows_others(self, node: Any) -> bool:
        """Return whether one of the parts allows or constrains properties that `properties` does not name."""
        return any(
            any(key in part for key in OPENING) or part.get("unevaluatedProperties", False) is not False
            for part, _ in self.parts(node)
        )
