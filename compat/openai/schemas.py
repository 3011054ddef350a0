"""Rewrite JSON schemas, so that llguidance enforces what the client asked for.

llguidance joins the parts of a schema (`allOf`, `$ref`, `anyOf` beside other keywords) by itself. But it lacks some
keywords, rounds integers to floats, and follows a recursive `$ref` without end. `enforceable` changes a schema so that
every answer that llguidance accepts is valid for the original, except for keywords that `enforceable` may drop.
"""

import json
import math
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from enum import Enum
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from compat.openai.grammars import MAX_FORM_BYTES, problem_of_schema
from compat.short_cache import cache_short

MAX_SCHEMA_NODES = 20_000
"""Maximum number of objects, lists and scalar values in a schema, as the client sends it."""
MAX_SCHEMA_DEPTH = 100
"""Maximum nesting of a schema, in levels. llguidance accepts 127 levels of JSON, and joining parts adds some."""
MAX_DEFINITIONS = 200
"""Maximum number of definitions that a schema refers to. llguidance resolves a chain of them recursively, on the
thread's stack."""
MAX_ALTERNATIVES = 1_000
"""Maximum number of alternatives that result from joining the parts of a schema."""
MAX_STEPS = 50_000
"""Maximum number of parts visited, for a whole schema, to find the properties that joined parts name: about 0.1 s."""
MAX_MULTIPLE = 10_000
"""Largest `multipleOf`, in units of its last digit: the automaton has a state for each remainder."""
_EXACT = 2**53
"""Largest absolute value up to which all integers are exact as floats."""
_LARGEST = 10**18
"""Absolute value from which integers are too long for llguidance's ranges; -2**63 overflows its stack."""
_MAX_CHARACTERS = 10_000_000
"""Length that no answer reaches, since it fits no model's window: a larger `maxLength` or `maxItems` has no effect."""


class Enforcement(Enum):
    """Treatment of a keyword that cannot be enforced."""

    STRICT = "strict"
    """The schema is refused."""
    BEST_EFFORT = "best effort"
    """The keyword is dropped. Integers that no float represents, and schemas without a valid value, are refused."""
    LENIENT = "lenient"
    """The keyword is dropped. No schema is refused."""


class Unenforceable(ValueError):
    """The schema cannot be enforced. The message names the keyword."""


def enforceable(schema: Any, enforcement: Enforcement = Enforcement.STRICT) -> dict[str, Any]:
    """Return the schema that llguidance enforces. Raises Unenforceable, unless the enforcement is lenient."""
    try:
        return _enforceable(schema, enforcement)
    except Unenforceable:
        if enforcement is Enforcement.LENIENT:
            return {"type": "object"}
        raise


def _enforceable(schema: Any, enforcement: Enforcement) -> dict[str, Any]:
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise Unenforceable(
            "a JSON schema must be an object" if schema is not False else "no value is valid for the schema false"
        )
    _check_size(schema)
    result = _Rewriter(schema, enforcement).document()
    problem = _problem(result)
    if problem and enforcement is not Enforcement.STRICT and not _hopeless(problem):
        result = _Rewriter(schema, enforcement, plain=True).document()
        problem = _problem(result)
        if problem and not _hopeless(problem):  # references in a circle, beside other keywords
            return {"type": "object"} if schema.get("type") == "object" else {}
    if problem:
        raise Unenforceable(problem)
    return result


def _problem(schema: dict[str, Any]) -> str:
    text = json.dumps(schema)
    if len(text) > 2 * MAX_FORM_BYTES:
        return f"it has more than {2 * MAX_FORM_BYTES} bytes once its parts are joined"
    problem = problem_of_schema(text)
    if problem.startswith("oneOf"):
        return "oneOf is supported only if its alternatives exclude each other by a constant or a type"
    return problem


def _hopeless(problem: str) -> bool:
    """Return whether the problem is that the schema has no valid value: dropping keywords must not hide that."""
    return "nsatisfiable" in problem


def _check_size(schema: Any) -> None:
    """Raise Unenforceable for a schema that is too large to process."""
    nodes, size, layer, depth = 0, 0, [schema], 0
    while layer:
        nodes += len(layer)
        depth += 1
        if depth > MAX_SCHEMA_DEPTH:
            raise Unenforceable(f"it is nested deeper than {MAX_SCHEMA_DEPTH} levels")
        below: list[Any] = []
        for node in layer:
            if isinstance(node, dict):
                size += sum([len(key) for key in node])
                below += node.values()
            elif isinstance(node, list):
                below += node
            elif isinstance(node, str):
                size += len(node)
        if nodes + len(below) > MAX_SCHEMA_NODES:
            raise Unenforceable(f"it has more than {MAX_SCHEMA_NODES} values")
        if size > MAX_FORM_BYTES:
            raise Unenforceable(f"its texts are longer than {MAX_FORM_BYTES} characters")
        layer = below


_ANNOTATIONS = ("title", "description")
"""Annotations that are preserved, because prompts may contain them."""
_UNSUPPORTED = (
    *("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems"),
    *("$dynamicRef", "$recursiveRef"),
)
"""Keywords that llguidance lacks."""
_OPENING = ("additionalProperties", "patternProperties")
"""Keywords that constrain properties which `properties` does not name."""
_JOINING = ("allOf", "anyOf", "oneOf", "$ref")
_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TEXTUAL = ("minLength", "maxLength", "pattern", "format")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_LITERAL_NAMES = re.compile(r"\^(?:\(\?:|\()?([A-Za-z0-9_ -]+(?:\|[A-Za-z0-9_ -]+)*)\)?\$")


class _Rewriter:
    """Rewriter of one schema.

    A definition that stands alone is rewritten in a closed form: objects have no properties but those it names. A
    definition that is joined with other parts (`allOf`, `$ref` beside keywords) is rewritten in an open form, because
    the other parts name properties as well; the joined object is closed. A definition that is used in both ways is
    rewritten twice.
    """

    def __init__(self, root: dict[str, Any], enforcement: Enforcement, *, plain: bool = False) -> None:
        """`plain`: keep only types, properties and items, because llguidance did not accept the other keywords."""
        self._root = root
        self._strict = enforcement is Enforcement.STRICT
        self._lenient = enforcement is Enforcement.LENIENT
        self._plain = plain
        self._names: dict[tuple[int, frozenset[str] | None], str] = {}
        self._queue: deque[tuple[str, Any, frozenset[str] | None]] = deque()
        self._ids = _find_ids(root)
        self._opened = False
        """Whether `_patterns` dropped a pattern of names from the object that it processed last."""
        self._steps = 0
        self._multiples: set[Fraction] = set()
        self._joins = any(f'"{key}"' in json.dumps(root) for key in _JOINING)

    def document(self) -> dict[str, Any]:
        """Return the whole schema. Raises Unenforceable."""
        top = self._schema(self._root, None)
        definitions: dict[str, Any] = {}
        while self._queue:
            name, target, shared = self._queue.popleft()
            definitions[name] = self._schema(target, shared)
        if definitions:
            self._cut_endless(top, definitions)
            top = {**top, "$defs": definitions} if isinstance(top, dict) else top
        if top is False or (isinstance(top, dict) and top.get("$ref") is False):
            raise Unenforceable("unsatisfiable: no finite value is valid for it")
        document: dict[str, Any] = top if isinstance(top, dict) else {}
        if _Widths(document).max_alternatives > MAX_ALTERNATIVES:
            raise Unenforceable(f"joining its parts gives more than {MAX_ALTERNATIVES} alternatives")
        return document

    def _refuse(self, keyword: str, why: str = "is not supported") -> None:
        """Raise Unenforceable for a keyword, if the enforcement is strict; otherwise the caller drops it."""
        if self._strict:
            raise Unenforceable(f"{keyword} {why}")

    def _refuse_number(self, keyword: str, value: Any) -> None:
        """Raise Unenforceable for a number that a float cannot represent, unless the enforcement is lenient.

        Best effort must not generate another number instead.
        """
        if not self._lenient:
            raise Unenforceable(f"{keyword}: {value} cannot be represented exactly; integers up to 2^53 always can")

    # one schema

    def _schema(self, node: Any, shared: frozenset[str] | None) -> Any:
        """Return a rewritten schema: closed if `shared` is None, otherwise as a part of an object. `shared`: names of
        properties that other parts of this object constrain as well."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            self._refuse("a schema", "must be an object or a boolean")
            return True
        result: dict[str, Any] = {key: node[key] for key in _ANNOTATIONS if isinstance(node.get(key), str)}
        self._check_unsupported(node)
        self._add_types(node, result)
        self._add_values(node, result)
        joined = [key for key in _JOINING if key in node]
        if not joined:
            closes = shared is None or "unevaluatedProperties" in node
            self._add_children(node, result, shared if shared is not None else _NO_NAMES, closes=closes)
        elif len(joined) == 1 and joined[0] != "allOf" and not any(key in _DESCRIBING for key in node):
            self._add_alternatives(node, result, joined[0], shared)
        else:
            self._add_joined(node, result, shared)
        return result

    def _check_unsupported(self, node: dict[str, Any]) -> None:
        for key in _UNSUPPORTED:
            if key in node and not (key in ("then", "else") and "if" not in node) and node[key] is not False:
                self._refuse(key)

    def _add_types(self, node: dict[str, Any], result: dict[str, Any]) -> None:
        types = node.get("type")
        if types is None:
            if "type" in node:
                self._refuse("type", "must not be null")
            return
        listed = types if isinstance(types, list) else [types]
        known = list(dict.fromkeys([item for item in listed if isinstance(item, str) and item in _TYPES]))
        odd = next((item for item in listed if item not in known), None)
        if odd is not None:
            self._refuse("type", f"{json.dumps(odd)[:60]} is not a JSON type")
        if known or not listed:
            result["type"] = known[0] if known and not isinstance(types, list) else known

    def _add_values(self, node: dict[str, Any], result: dict[str, Any]) -> None:
        """Add `const` and `enum`, and the keywords for strings, numbers and counts."""
        if "const" in node and self._is_exact(node["const"], "const"):
            result["const"] = node["const"]
        if "enum" in node:
            values = node["enum"]
            if not isinstance(values, list):
                self._refuse("enum", "must be a list")
            elif all(self._is_exact(value, "enum") for value in values):
                result["enum"] = values
        if self._plain:
            return
        counts = {key: count for key in _COUNTS if key in node and (count := self._count(key, node[key])) is not None}
        result.update({key: value for key, value in counts.items() if key not in _TEXTUAL})
        textual = {key: counts.get(key, node[key]) for key in _TEXTUAL if key in node}
        textual = {key: value for key, value in textual.items() if key in counts or key in ("pattern", "format")}
        if textual and _allows(node, "string"):
            result.update(self._leaf("string", textual, ("pattern", "format", "minLength", "maxLength")))
        numeric = self._numeric(node)
        if numeric:
            kind = "integer" if _allows(node, "integer", exactly=True) else "number"
            result.update(self._leaf(kind, numeric, tuple(reversed(_NUMERIC))))

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
                self._refuse_number(keyword, item)
                return False
            elif isinstance(item, float) and not math.isfinite(item):
                self._refuse(keyword, f"{item} is not a JSON number")
                return False
        return True

    def _count(self, key: str, value: Any) -> int | None:
        """Return the value of `maxLength`, `minItems` or another keyword of `_COUNTS` as an integer; None if the
        keyword is dropped."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self._refuse(key, "must be a non-negative integer")
            return None
        if value > _MAX_CHARACTERS:
            if key.startswith("min"):
                self._refuse(key, f"is above {_MAX_CHARACTERS}; no answer is as long")
            return None
        return value

    def _numeric(self, node: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords for numbers. Bounds that a float cannot represent are rounded inward, so that accepted
        values are within the original bounds."""
        found: dict[str, Any] = {}
        for key in _NUMERIC:
            value = node.get(key)
            if key not in node:
                continue
            if key.startswith("exclusive") and isinstance(value, bool):  # as in draft 4
                bound = node.get("minimum" if key == "exclusiveMinimum" else "maximum")
                if value and isinstance(bound, int | float):
                    self._refuse(key, "must be a number")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                self._refuse(key, "must be a number")
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
                self._refuse_number(key, value)
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
            self._refuse("multipleOf", "must be a positive number")
            return False
        multiples = [exact, *self._multiples] if self._joins else [exact]
        scale = 10 ** max([_decimals(item) for item in multiples])
        if math.lcm(*[int(item * scale) for item in multiples]) > MAX_MULTIPLE:
            self._refuse("multipleOf", f"{value} has too many remainders; up to {MAX_MULTIPLE} are supported")
            return False
        self._multiples.add(exact)
        return True

    def _leaf(self, kind: str, keywords: dict[str, Any], dropped: tuple[str, ...]) -> dict[str, Any]:
        """Return the keywords of a string or number that llguidance enforces together.

        While it does not, drop the keywords in `dropped`, one after another.
        """
        kept = dict(keywords)
        for key in ("", *dropped):
            kept.pop(key, None)
            problem = _leaf_problem(json.dumps({"type": kind, **kept}))
            if not problem or (_hopeless(problem) and not self._lenient):
                return kept
            self._refuse(", ".join(kept), f"cannot be enforced: {problem}")
        return {}

    # properties and items

    def _add_children(
        self, node: dict[str, Any], result: dict[str, Any], shared: frozenset[str], *, closes: bool
    ) -> None:
        """Add the keywords for an object's properties and an array's items. `closes`: forbid all other properties."""
        self._add_items(node, result)
        properties = self._properties(node)
        self._opened = False
        patterns = self._patterns(node, properties)
        opened = self._opened
        required = node.get("required")
        if required is not None:
            if isinstance(required, list) and all(isinstance(name, str) for name in required):
                names = list(dict.fromkeys(required))
            else:
                self._refuse("required", "must be a list of names")
                names = []
            if self._lenient and node.get("additionalProperties") is False and not patterns:
                names = [name for name in names if name in properties]
            if names:
                result["required"] = names
        if properties or "properties" in node:
            result["properties"] = {
                name: self._schema(value, _NO_NAMES if name in shared else None) for name, value in properties.items()
            }
        if patterns:
            result["patternProperties"] = {pattern: self._schema(value, None) for pattern, value in patterns.items()}
        if opened:
            result["additionalProperties"] = True
        elif "additionalProperties" in node:
            result["additionalProperties"] = self._schema(node["additionalProperties"], None)
        elif closes and "unevaluatedProperties" in node:
            result["additionalProperties"] = self._schema(node["unevaluatedProperties"], None)
        elif closes and "patternProperties" not in node and "properties" in result:
            self._name_required(result)
            result["additionalProperties"] = False

    def _name_required(self, result: dict[str, Any]) -> None:
        """Add each required property that the schema does not describe: any value is valid for it."""
        unknown = [name for name in result.get("required", ()) if name not in result.get("properties", {})]
        if unknown:
            result["properties"] = {**result.get("properties", {}), **dict.fromkeys(unknown, True)}

    def _properties(self, node: dict[str, Any]) -> dict[str, Any]:
        properties = node.get("properties", {})
        if not isinstance(properties, dict):
            self._refuse("properties", "must be an object")
            return {}
        return dict(properties)

    def _patterns(self, node: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
        """Return the patterns of `patternProperties`. A pattern that matches only literal names is added to
        `properties` under these names instead: otherwise llguidance allows a comma where no further name can follow."""
        patterns = node.get("patternProperties", {})
        if not isinstance(patterns, dict):
            self._refuse("patternProperties", "must be an object")
            return {}
        if self._plain:
            self._opened = bool(patterns)
            return {}
        kept: dict[str, Any] = {}
        for pattern, value in patterns.items():
            literal = _LITERAL_NAMES.fullmatch(pattern)
            if literal is not None and ("|" not in literal[1] or "(" in pattern):
                for name in literal[1].split("|"):
                    properties[name] = {"allOf": [properties[name], value]} if name in properties else value
            elif problem := _leaf_problem(json.dumps({"type": "string", "pattern": pattern})):
                self._refuse("patternProperties", f"cannot be enforced: {problem}")
                self._opened = True  # names that the dropped pattern matches must stay allowed
            else:
                kept[pattern] = value
        return kept

    def _add_items(self, node: dict[str, Any], result: dict[str, Any]) -> None:
        prefix, items = node.get("prefixItems"), node.get("items")
        if isinstance(items, list):  # as before draft 2020-12
            prefix, items = items, node.get("additionalItems")
        if prefix is not None:
            if isinstance(prefix, list):
                result["prefixItems"] = [self._schema(item, None) for item in prefix]
            else:
                self._refuse("prefixItems", "must be a list")
        if items is not None:
            result["items"] = self._schema(items, None)

    # parts that are joined

    def _add_alternatives(
        self,
        node: dict[str, Any],
        result: dict[str, Any],
        key: str,
        shared: frozenset[str] | None,
    ) -> None:
        """Add the joining keyword of a schema that has only this one and describes nothing else."""
        if key == "$ref":
            pointer = self._reference(node["$ref"], shared)
            if pointer is not None:
                result["$ref"] = pointer
            return
        branches = node[key]
        if not isinstance(branches, list):
            self._refuse(key, "must be a list")
            return
        # llguidance takes a oneOf only where it can prove that no two alternatives hold at once
        result["anyOf" if not self._strict else key] = [self._schema(branch, shared) for branch in branches]

    def _add_joined(self, node: dict[str, Any], result: dict[str, Any], shared: frozenset[str] | None) -> None:
        """Add parts that must all be valid, and close the object that they describe together."""
        sealed = node.get("unevaluatedProperties", True) is not True
        closes = shared is None or sealed
        mentioned = self._mentioned(node)
        both = frozenset(name for name, count in mentioned.items() if count > 1) | (shared or _NO_NAMES)
        is_open = self._allows_others(node)
        is_object = any(_allows(part, "object", exactly=True) for part, chosen in self._parts(node) if not chosen)
        self._add_children(node, result, both, closes=False)
        if sealed and (is_open or node["unevaluatedProperties"] is not False or ("anyOf" in node and "oneOf" in node)):
            why = "must be false, and cannot be combined with additionalProperties, or with anyOf and oneOf together"
            self._refuse("unevaluatedProperties", why)
            sealed = False
        every: list[Any] = []
        if "$ref" in node:
            pointer = self._reference(node["$ref"], both)
            if pointer is not None:
                every.append({"$ref": pointer})
        if isinstance(node.get("allOf"), list):
            every += [self._schema(part, both) for part in node["allOf"]]
        elif "allOf" in node:
            self._refuse("allOf", "must be a list")
        choices = [key for key in ("anyOf", "oneOf") if isinstance(node.get(key), list)]
        # llguidance takes a oneOf only where it can prove that no two alternatives hold at once
        if not self._strict and choices == ["oneOf"]:
            choices, node = ["anyOf"], {**node, "anyOf": node["oneOf"]}
        own = self._mentioned({key: value for key, value in node.items() if key not in ("anyOf", "oneOf")})
        for key in choices:
            branches = []
            for branch in node[key]:
                part = self._schema(branch, both)
                names = {**own, **self._mentioned(branch)}
                if closes and len(choices) == 1 and not is_open and (names or sealed) and _allows(branch, "object"):
                    part = {"allOf": [part, _closing(names, is_object=is_object)]}
                branches.append(part)
            if key == "oneOf" and not self._strict:
                every.append({"anyOf": branches})
            else:
                result[key] = branches
        if closes and not choices and not is_open and (mentioned or sealed):
            every.append(_closing(mentioned, is_object=is_object))
        if every:
            result["allOf"] = every

    def _reference(self, reference: Any, shared: frozenset[str] | None) -> Any:
        """Return the new `$ref` to the definition that a reference names; None if the reference is dropped."""
        target = self._target(reference)
        if target is _MISSING:
            self._refuse("$ref", f"{json.dumps(reference)[:80]} has no target")
            return None
        key = id(target), shared
        if key not in self._names:
            if len(self._names) >= MAX_DEFINITIONS:
                raise Unenforceable(f"it refers to more than {MAX_DEFINITIONS} definitions")
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(reference).rsplit("/", 1)[-1])[:40] or "root"
            taken = set(self._names.values())
            name = next(
                item for item in (name, *(f"{name}_{number}" for number in range(len(taken) + 1))) if item not in taken
            )
            self._names[key] = name
            self._queue.append((name, target, shared))
        return f"#/$defs/{self._names[key]}"

    def _target(self, reference: Any) -> Any:
        """Return the schema that a reference names; false if it leads back to itself; _MISSING if there is none."""
        seen = set()
        while True:
            if not isinstance(reference, str) or reference in seen:
                return _MISSING if not isinstance(reference, str) else False  # a circle: no finite value is valid
            seen.add(reference)
            target = self._ids.get(reference, _MISSING)
            if target is _MISSING and reference.startswith("#"):
                target = _follow_pointer(self._root, reference[1:])
            if isinstance(target, dict) and "$ref" in target and not (_BESIDE_REF & target.keys()):
                reference = target["$ref"]  # llguidance would follow a chain of references on its stack
                continue
            return target

    def _parts(self, node: Any) -> Iterator[tuple[dict[str, Any], bool]]:
        """Yield the schema and all parts that are joined with it, each once. The bool says whether the part is inside
        an `anyOf` or `oneOf`."""
        stack, seen = [(node, False)], set()
        while stack:
            part, chosen = stack.pop()
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise Unenforceable("it joins too many parts")
            yield part, chosen
            if "$ref" in part:
                stack.append((self._target(part["$ref"]), chosen))
            for key in ("allOf", "anyOf", "oneOf"):
                if isinstance(part.get(key), list):
                    stack += [(item, chosen or key != "allOf") for item in part[key]]

    def _mentioned(self, node: Any) -> Counter[str]:
        """Return for each property how many parts of the schema describe it; 0 if it is only required."""
        mentioned: Counter[str] = Counter()
        for part, _ in self._parts(node):
            if isinstance(part.get("properties"), dict):
                mentioned.update(part["properties"].keys())
            if isinstance(part.get("required"), list):
                mentioned.update({name: 0 for name in part["required"] if isinstance(name, str)})
        return mentioned

    def _allows_others(self, node: Any) -> bool:
        """Return whether one of the parts allows or constrains properties that `properties` does not name."""
        return any(
            any(key in part for key in _OPENING) or part.get("unevaluatedProperties", False) is not False
            for part, _ in self._parts(node)
        )

    # values without an end

    def _cut_endless(self, top: Any, definitions: dict[str, Any]) -> None:
        """Replace references to definitions without a finite valid value by false. Raises Unenforceable if nothing
        else is valid for the schema."""
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
            gone = {f"#/$defs/{name}" for name in endless}
            for schema in [top, *definitions.values()]:
                _replace(schema, gone)
            for name in endless:
                del definitions[name]


_NO_NAMES: frozenset[str] = frozenset()
_MISSING = object()
_DESCRIBING = frozenset(
    (
        *(*_UNSUPPORTED, *_OPENING, *_NUMERIC, *_TEXTUAL, *_COUNTS),
        *("type", "const", "enum", "properties", "required", "items", "prefixItems", "additionalItems"),
        "unevaluatedProperties",
    )
)
"""Keywords that can make a value invalid, except those that join schemas."""


_BESIDE_REF = _DESCRIBING | {"allOf", "anyOf", "oneOf"}


def _closing(names: Iterable[str], *, is_object: bool) -> dict[str, Any]:
    """Return a schema for objects with no other properties than these. If not `is_object`, all other values are valid
    for it too."""
    result = {"properties": dict.fromkeys(names, True), "additionalProperties": False}
    return {"type": "object", **result} if is_object else result


def _allows(node: Any, kind: str, *, exactly: bool = False) -> bool:
    """Return whether the schema's `type` allows values of type `kind`; if `exactly`, whether it allows only these."""
    types = node.get("type") if isinstance(node, dict) else None
    if exactly:
        return types in (kind, [kind])
    return types is None or kind == types or (isinstance(types, list) and kind in types)


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


def _find_ids(root: Any) -> dict[str, Any]:
    """Return the schemas that references may name by `$id`, `id` or `$anchor`."""
    found: dict[str, Any] = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
        elif isinstance(node, dict):
            for key, mark in (("$id", ""), ("id", ""), ("$anchor", "#")):
                if isinstance(node.get(key), str):
                    found.setdefault(mark + node[key], node)
            stack += [value for key, value in node.items() if key not in ("const", "enum", "default", "examples")]
    return found


def _follow_pointer(root: Any, pointer: str) -> Any:
    """Return the schema that a JSON pointer leads to; _MISSING if there is none."""
    node = root
    if pointer in ("", "/"):
        return node
    if not pointer.startswith("/"):
        return _MISSING
    for step in pointer[1:].split("/"):
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and re.fullmatch("[0-9]{1,6}", key) and int(key) < len(node):
            node = node[int(key)]
        else:
            return _MISSING
    return node if isinstance(node, dict | bool) else _MISSING


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
    if _allows(node, "object", exactly=True):
        properties = node.get("properties", {})
        return all(_is_finite(properties.get(name, True), finite) for name in node.get("required", ()))
    if _allows(node, "array", exactly=True):
        prefix, minimum = node.get("prefixItems", []), node.get("minItems", 0)
        first = all(_is_finite(item, finite) for item in prefix[:minimum])
        return first and (minimum <= len(prefix) or _is_finite(node.get("items", True), finite))
    return True


def _replace(node: Any, gone: set[str]) -> None:
    """Replace every reference in `gone` by false."""
    stack = [node]
    while stack:
        current = stack.pop()
        pairs: Iterable[tuple[Any, Any]] = ()
        if isinstance(current, dict):
            pairs = [(key, value) for key, value in current.items() if key not in ("const", "enum", "required")]
        elif isinstance(current, list):
            pairs = list(enumerate(current))
        for key, value in pairs:
            if isinstance(value, dict) and value.get("$ref") in gone:
                current[key] = False
            else:
                stack.append(value)


class _Widths:
    """Estimator of the number of alternatives that llguidance makes when it joins parts: it multiplies them."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._definitions = document.get("$defs", {})
        self._known: dict[str, int] = {}
        self.max_alternatives = 1
        """Largest number of alternatives that joining the parts of one schema gives."""
        self._width(document)
        for name in self._definitions:
            self._of_definition(name)

    def _of_definition(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = 1  # ends the recursion, if the definition refers to itself
            self._known[name] = self._width(self._definitions.get(name, True))
        return self._known[name]

    def _width(self, node: Any) -> int:
        if not isinstance(node, dict):
            return 1
        for key in ("properties", "patternProperties"):
            for item in node.get(key, {}).values():
                self._width(item)
        for item in [node.get("items", True), node.get("additionalProperties", True), *node.get("prefixItems", ())]:
            self._width(item)
        widths = [len(node["type"]) if isinstance(node.get("type"), list) else 1, len(node.get("enum", "1"))]
        widths += [self._width(part) for part in node.get("allOf", ())]
        widths += [sum([self._width(part) for part in node[key]]) for key in ("anyOf", "oneOf") if node.get(key)]
        if isinstance(node.get("$ref"), str):
            widths.append(self._of_definition(node["$ref"].removeprefix("#/$defs/")))
        product = math.prod(widths)
        if sum([width > 1 for width in widths]) > 1:
            self.max_alternatives = max(self.max_alternatives, product)
        return product


@cache_short(4096, 1_000)
def _leaf_problem(schema: str) -> str:
    """Return why llguidance cannot enforce the keywords of a string or number together; "" if it can."""
    return problem_of_schema(schema)
