"""Rewriting of the keywords that contain no schema: types, constants, and limits of strings, numbers and sizes."""

import json
import math
from fractions import Fraction
from typing import Any

from compat.openai.schemas.keywords import COUNTS, NUMERIC, TEXTUAL, TYPES, allows_type
from compat.openai.schemas.policy import RefusalPolicy
from compat.openai.schemas.problems import is_unsatisfiable, problem_of_leaf

MAX_MULTIPLE = 10_000
"""Largest `multipleOf`, in units of its last digit: the automaton has a state for each remainder."""
_EXACT = 2**53
"""Largest absolute value up to which all integers are exact as floats."""
_LARGEST = 10**18
"""Absolute value from which integers are too long for llguidance's ranges; -2**63 overflows its stack."""
_MAX_CHARACTERS = 10_000_000
"""Length that no answer reaches, since it fits no model's window: a larger `maxLength` or `maxItems` has no effect."""


class ValueRewriter:
    """Rewriter of these keywords in one schema. It remembers each `multipleOf`, since llguidance may join several."""

    def __init__(self, policy: RefusalPolicy, *, plain: bool, joins: bool) -> None:
        """`plain`: keep only types, constants and enums. `joins`: whether `allOf`, `anyOf`, `oneOf` or `$ref` occur, so
        that llguidance may join parts of the schema."""
        self._policy = policy
        self._plain = plain
        self._joins = joins
        self._multiples: set[Fraction] = set()

    def add_types(self, node: dict[str, Any], result: dict[str, Any]) -> None:
        """Copy `type` from `node` to `result`, without types that JSON Schema does not have."""
        types = node.get("type")
        if types is None:
            if "type" in node:
                self._policy.refuse("type", "must not be null")
            return
        listed = types if isinstance(types, list) else [types]
        known = list(dict.fromkeys([item for item in listed if isinstance(item, str) and item in TYPES]))
        unknown = next((item for item in listed if item not in known), None)
        if unknown is not None:
            self._policy.refuse("type", f"{json.dumps(unknown)[:60]} is not a JSON type")
        if known or not listed:
            result["type"] = known[0] if known and not isinstance(types, list) else known

    def add_values(self, node: dict[str, Any], result: dict[str, Any]) -> None:
        """Copy `const`, `enum` and the keywords that limit strings, numbers, and the sizes of arrays and objects from
        `node` to `result`."""
        if "const" in node and self._is_exact(node["const"], "const"):
            result["const"] = node["const"]
        if "enum" in node:
            values = node["enum"]
            if not isinstance(values, list):
                self._policy.refuse("enum", "must be a list")
            elif all(self._is_exact(value, "enum") for value in values):
                result["enum"] = values
        if self._plain:
            return
        counts = {key: count for key in COUNTS if key in node and (count := self._count(key, node[key])) is not None}
        result.update({key: value for key, value in counts.items() if key not in TEXTUAL})
        textual = {key: counts.get(key, node[key]) for key in TEXTUAL if key in node}
        textual = {key: value for key, value in textual.items() if key in counts or key in ("pattern", "format")}
        if textual and allows_type(node, "string"):
            result.update(self._leaf("string", textual, ("pattern", "format", "minLength", "maxLength")))
        numeric = self._numeric(node)
        if numeric:
            kind = "integer" if allows_type(node, "integer", exactly=True) else "number"
            result.update(self._leaf(kind, numeric, tuple(reversed(NUMERIC))))

    def _is_exact(self, value: Any, keyword: str) -> bool:
        """Return whether llguidance enforces the value, and each value in it, exactly. May raise Unenforceable."""
        values = [value]
        while values:
            item = values.pop()
            if isinstance(item, dict):
                values += item.values()
            elif isinstance(item, list):
                values += item
            elif isinstance(item, int) and not isinstance(item, bool) and not _is_float(item):
                self._policy.refuse_number(keyword, item)
                return False
            elif isinstance(item, float) and not math.isfinite(item):
                self._policy.refuse(keyword, f"{item} is not a JSON number")
                return False
        return True

    def _count(self, key: str, value: Any) -> int | None:
        """Return the value of `maxLength`, `minItems` or another keyword of `COUNTS` as an integer; None if the
        keyword is dropped."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self._policy.refuse(key, "must be a non-negative integer")
            return None
        if value > _MAX_CHARACTERS:
            if key.startswith("min"):
                self._policy.refuse(key, f"is above {_MAX_CHARACTERS}; no answer is as long")
            return None
        return value

    def _numeric(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords for numbers. Bounds that a float cannot represent are rounded inward, so that accepted
        values are within the original bounds."""
        found: dict[str, Any] = {}
        for key in NUMERIC:
            value = node.get(key)
            if key not in node:
                continue
            if key.startswith("exclusive") and isinstance(value, bool):  # as in draft 4
                bound = node.get("minimum" if key == "exclusiveMinimum" else "maximum")
                if value and isinstance(bound, int | float):
                    self._policy.refuse(key, "must be a number")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                self._policy.refuse(key, "must be a number")
                continue
            if key == "multipleOf":
                if self._is_countable(value):
                    found[key] = value
                continue
            if abs(value) <= _EXACT:
                found[key] = value
                continue
            # llguidance would make an exclusive bound inclusive by adding one as a float, so it is done here exactly
            inward = _inward(int(value), up="inimum" in key, exclusive=key.startswith("exclusive"))
            if inward is None:
                self._policy.refuse_number(key, value)
                continue
            if "inimum" in key:
                found["minimum"] = max(inward, found.get("minimum", inward))
            else:
                found["maximum"] = min(inward, found.get("maximum", inward))
        return found

    def _is_countable(self, value: int | float) -> bool:
        """Return whether a `multipleOf` has few enough remainders, together with the others it may be joined with."""
        exact = abs(Fraction(str(value)))
        if not exact:
            self._policy.refuse("multipleOf", "must be a positive number")
            return False
        multiples = [exact, *self._multiples] if self._joins else [exact]
        scale = 10 ** max([_decimals(item) for item in multiples])
        if math.lcm(*[int(item * scale) for item in multiples]) > MAX_MULTIPLE:
            self._policy.refuse("multipleOf", f"{value} has too many remainders; up to {MAX_MULTIPLE} are supported")
            return False
        self._multiples.add(exact)
        return True

    def _leaf(self, kind: str, keywords: dict[str, Any], dropped: tuple[str, ...]) -> dict[str, Any]:
        """Return the keywords of a string or number that llguidance enforces together.

        While it does not, drop the keywords in `dropped`, one after another.
        """
        remaining = dict(keywords)
        for key in ("", *dropped):
            remaining.pop(key, None)
            problem = problem_of_leaf(json.dumps({"type": kind, **remaining}))
            if not problem or (is_unsatisfiable(problem) and not self._policy.is_lenient):
                return remaining
            self._policy.refuse(", ".join(remaining), f"cannot be enforced: {problem}")
        return {}


def _is_float(value: int) -> bool:
    """Return whether a float can represent an integer, and llguidance can write it."""
    return abs(value) <= _EXACT or (abs(value) < _LARGEST and int(float(value)) == value)


def _inward(value: int, *, up: bool, exclusive: bool) -> int | None:
    """Return the next integer that a float can represent, upward if `up`, otherwise downward; None if it would be too
    large for llguidance."""
    if exclusive:
        value += 1 if up else -1
    if abs(value) >= _LARGEST:
        limit = _LARGEST - 128  # the largest float below
        return (-limit if up else limit) if (value < 0) == up else None
    rounded = float(value)
    if up and int(rounded) < value:
        rounded = math.nextafter(rounded, math.inf)
    elif not up and int(rounded) > value:
        rounded = math.nextafter(rounded, -math.inf)
    return int(rounded) if abs(rounded) < _LARGEST else None


def _decimals(value: Fraction) -> int:
    """Return the number of digits after the decimal point of a fraction; at most 400."""
    digits = 0
    while value.denominator != 1 and digits < 400:
        value *= 10
        digits += 1
    return digits
