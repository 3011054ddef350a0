"""Check JSON values against JSON schemas, with bounded work and without any access to the network.

Both the schema and the value may be hostile. So each visit of a schema, each comparison and each search costs steps of
a budget, and patterns run with RE2. If the budget is used up, or the schema is unusual or malformed, there is no
verdict: a reported violation is always a real one. Resolving references is left to `referencing`, which jsonschema is
built on too. jsonschema itself cannot be bounded from outside: its keywords backtrack in `re`, compare items in pairs,
and write whole values into messages. jsonschema-rs takes no limit either: a schema of 40 levels, each of which refers
to the next one twice, would run for hours.

A schema is read as draft 2020-12, unless `$schema` names draft 4, 6, 7 or 2019-09. `format` is an annotation.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.runtime import regex as patterns

if TYPE_CHECKING:
    from referencing import Specification
    from referencing._core import Resolver

MAX_SCHEMA_NODES = 20_000
"""Maximum number of objects, lists and scalar values in a schema that is used for checks."""
MAX_MESSAGE = 300
"""Maximum length of the description of a violation, in characters."""
_MAX_NAME = 40
"""Length from which names of properties are shortened in messages, in characters."""
_MAX_PATH = 160
"""Length from which paths are shortened in messages, in characters."""
_MAX_LEVELS = 150
"""Maximum number of schemas that are visited within each other. They take at most 4 frames of Python's stack each.

RecursionError must not be raised within `referencing`: the Rust code below it panics, which is no `Exception`.
"""
_MAX_BITS = 4_096
"""Maximum size of numbers that are divided, in bits."""
_EXACT_DIGITS = 15
"""Number of decimal digits up to which a float is read exactly as it was written."""
_COMPILE_STEPS = 200
"""Steps that compiling a pattern costs, besides those for its instructions."""
_WORK_PER_STEP = 5_000
"""Product of a pattern's instructions and a text's bytes that counts as a step: about 2.5 µs."""


class NoVerdict(Exception):
    """The value can neither be called valid nor invalid. The message says why, for logs."""


class OutOfSteps(NoVerdict):
    """The budget is used up."""


class Steps:
    """Budget of work. A step takes about 2 µs."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        """Subtract steps. Raises OutOfSteps."""
        self.left -= count
        if self.left < 0:
            raise OutOfSteps("the check takes too long")


_Place = tuple[Any, str | int] | None
"""Place of a value: its parent's place and its key there; None for the whole value."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The first violation that was found."""

    place: _Place
    keyword: str
    why: str

    def __str__(self) -> str:
        """Return a sentence that names the place, the keyword and the reason, in at most `MAX_MESSAGE` characters."""
        return _cropped(f"{_path(self.place)}: {self.keyword}: {self.why}", MAX_MESSAGE)


class SchemaChecker:
    """Checker of values against one schema. It keeps the schema as it is, and does no work before the first check."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._prepared: _Prepared | None = None

    def check(self, value: Any, steps: Steps) -> Violation | None:
        """Return a violation; None if the value is valid. Raises NoVerdict, and nothing else."""
        try:
            if self._prepared is None:
                self._prepared = _prepare(self._schema, steps)
            prepared = self._prepared
            return _Check(prepared, steps).visit(self._schema, value, None, prepared.scope, None, entered=True)
        except RecursionError:
            raise NoVerdict("the schema or the value is nested too deeply") from None


class _Dialect(NamedTuple):
    """Draft of JSON Schema. `ref_alone`: whether keywords beside a `$ref` are ignored."""

    name: str
    keywords: "Mapping[str, _Keyword]"
    ref_alone: bool


@dataclass(frozen=True, slots=True)
class _Prepared:
    """State that all checks against one schema share. `scope`: None if the schema has no reference."""

    dialect: _Dialect
    specification: "Specification[Any] | None"
    scope: "Resolver[Any] | None"
    patterns: dict[str, patterns.Pattern | None]
    """Compiled patterns; None for those that RE2 does not have."""
    enums: dict[int, frozenset[Any]]
    """Values of each `enum`, by the identity of its list."""


_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})


def _prepare(schema: Any, steps: Steps) -> _Prepared:
    """Raise NoVerdict if the schema cannot be used for checks."""
    nodes, refers, stack = 0, False, [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            stack += node.values()
            refers = refers or not _REFERENCES.isdisjoint(node)
        elif isinstance(node, list):
            stack += node
        nodes += 1
        if nodes + len(stack) > MAX_SCHEMA_NODES:
            raise NoVerdict("the schema is too large")
    steps.spend(nodes // 8)
    uri = schema.get("$schema", _DEFAULT) if isinstance(schema, dict) else _DEFAULT
    dialect = _dialect(uri)
    if not refers:
        return _Prepared(dialect, None, None, {}, {})
    steps.spend(nodes * 2)
    specification, scope = _resolver(schema, dialect)
    return _Prepared(dialect, specification, scope, {}, {})


def _resolver(schema: Any, dialect: _Dialect) -> "tuple[Specification[Any], Resolver[Any]]":
    """Return what resolves the references of a schema. References to other documents have no target."""
    from referencing import Registry  # imported late: it takes 10 ms, which only such schemas need
    from referencing.jsonschema import specification_with

    try:
        specification = specification_with(dialect.name)
        resource = specification.create_resource(schema)
        uri = resource.id() or ""
        return specification, Registry().with_resource(uri, resource).crawl().resolver(uri)
    except RecursionError:
        raise
    except Exception as error:  # it expects valid schemas, and raises whatever comes of others
        raise NoVerdict(f"the references of the schema cannot be resolved: {type(error).__name__}") from None


class _Seen:
    """Properties and items of a value that the keywords of a schema have evaluated, for `unevaluated…`."""

    __slots__ = ("all_items", "items", "keys")

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.items: set[int] = set()
        self.all_items = False

    def add(self, other: "_Seen") -> None:
        """Add what a subschema has evaluated."""
        self.keys |= other.keys
        self.items |= other.items
        self.all_items = self.all_items or other.all_items


@dataclass(slots=True)
class _Node:
    """A value at a schema. `seen`: collects what is evaluated, if a schema asks for that."""

    schema: dict[str, Any]
    value: Any
    place: _Place
    scope: "Resolver[Any] | None"
    seen: _Seen | None

    def violation(self, keyword: str, why: str) -> Violation:
        """Return a violation of this value."""
        return Violation(self.place, keyword, why)


class _Check:
    """One check. Each `_Keyword` function gets it."""

    def __init__(self, prepared: _Prepared, steps: Steps) -> None:
        self.steps = steps
        self._levels = 0
        self._prepared = prepared
        self._keywords = prepared.dialect.keywords
        self._ref_alone = prepared.dialect.ref_alone

    def visit(
        self, schema: Any, value: Any, place: _Place, scope: Any, seen: _Seen | None, *, entered: bool = False
    ) -> Violation | None:
        """Return a violation of the schema by the value. `entered`: whether `scope` is that of the schema already."""
        if isinstance(schema, bool):
            self.steps.spend(1)
            return None if schema else Violation(place, "false", "the schema allows no value here")
        if not isinstance(schema, dict):
            raise NoVerdict("a schema is neither an object nor a boolean")
        self.steps.spend(1 + len(schema))
        if scope is not None and not entered and ("$id" in schema or "id" in schema):
            scope = self._inside(schema, scope)
        self._levels += 1
        if self._levels > _MAX_LEVELS:
            raise NoVerdict("the schema or the value is nested too deeply")
        found = self._apply(schema, value, place, scope, seen)
        self._levels -= 1
        return found

    def _apply(
        self, schema: dict[str, Any], value: Any, place: _Place, scope: Any, seen: _Seen | None
    ) -> Violation | None:
        if self._ref_alone and "$ref" in schema:
            return _ref(self, _Node(schema, value, place, scope, seen), schema["$ref"])
        mine = _Seen() if "unevaluatedProperties" in schema or "unevaluatedItems" in schema else seen
        node = _Node(schema, value, place, scope, mine)
        for keyword, operand in schema.items():
            check = self._keywords.get(keyword)
            if check is not None and (found := check(self, node, operand)) is not None:
                return found
        if mine is not seen:
            for keyword, last in _LAST.items():
                if keyword in schema and keyword in self._keywords:
                    found = last(self, node, schema[keyword])
                    if found is not None:
                        return found
            if seen is not None and mine is not None:
                self.steps.spend((len(mine.keys) + len(mine.items)) // 8)
                seen.add(mine)
        return None

    def below(self, node: _Node, schema: Any, key: str | int) -> Violation | None:
        """Return a violation of the schema by a property or an item of the node's value."""
        return self.visit(schema, node.value[key], (node.place, key), node.scope, None)

    def beside(self, node: _Node, schema: Any) -> Violation | None:
        """Return a violation of a part of the node's schema that must be valid too."""
        return self.visit(schema, node.value, node.place, node.scope, node.seen)

    def tries(self, node: _Node, schema: Any) -> bool:
        """Return whether the value is valid for a part of the node's schema that need not be valid."""
        mine = None if node.seen is None else _Seen()
        if self.visit(schema, node.value, node.place, node.scope, mine) is not None:
            return False
        if node.seen is not None and mine is not None:
            self.steps.spend((len(mine.keys) + len(mine.items)) // 8)
            node.seen.add(mine)
        return True

    def follow(self, node: _Node, resolve: Callable[[Any], Any]) -> Violation | None:
        """Return a violation of the schema that a reference names."""
        self.steps.spend(5)
        try:
            resolved = resolve(node.scope)
        except RecursionError:
            raise
        except Exception as error:  # unknown targets, and whatever comes of malformed references
            raise NoVerdict(f"a reference cannot be resolved: {type(error).__name__}") from None
        return self.visit(resolved.contents, node.value, node.place, resolved.resolver, node.seen, entered=True)

    def _inside(self, schema: dict[str, Any], scope: Any) -> Any:
        self.steps.spend(5)
        specification = self._prepared.specification
        assert specification is not None
        try:
            return scope.in_subresource(specification.create_resource(schema))
        except Exception as error:
            raise NoVerdict(f"an id cannot be resolved: {type(error).__name__}") from None

    def is_dialect(self, uri: Any) -> bool:
        """Return whether a `$schema` names the dialect of the whole schema."""
        return _dialect(uri) is self._prepared.dialect

    def matches(self, expression: Any, text: str) -> bool:
        """Return whether a pattern occurs in a text. Raises NoVerdict if RE2 cannot tell."""
        if not isinstance(expression, str):
            raise NoVerdict("a pattern is not a string")
        pattern = self._compiled(expression)
        try:
            self.steps.spend(1 + pattern.programsize * len(text.encode()) // _WORK_PER_STEP)
            if not text.isascii() and _SPACES.search(expression):
                raise NoVerdict("RE2 and ECMA-262 differ in what white space is")
            return patterns.search(pattern, 0, text) is not None
        except (patterns.BadPattern, UnicodeError) as error:
            raise NoVerdict(str(error)) from None

    def _compiled(self, expression: str) -> patterns.Pattern:
        known = self._prepared.patterns
        if expression not in known:
            self.steps.spend(_COMPILE_STEPS)
            try:
                compiled = known[expression] = patterns.compiled(expression)
                self.steps.spend(compiled.programsize // 4)
            except (patterns.BadPattern, UnicodeError):
                known[expression] = None  # cached: RE2 may need 5 ms to reject a pattern
        pattern = known[expression]
        if pattern is None:
            raise NoVerdict("RE2 does not have this pattern")
        return pattern

    def listed(self, values: list[Any]) -> frozenset[Any]:
        """Return the values of an `enum`, each in its canonical form."""
        found = self._prepared.enums.get(id(values))
        if found is None:
            self.steps.spend(len(values) // 8)
            found = self._prepared.enums[id(values)] = frozenset([self.canonical(value) for value in values])
        return found

    def canonical(self, value: Any) -> Any:
        """Return a hashable form of a value. Equal JSON values have equal forms, and only these.

        Containers become bytes: hashes of tuples could be made to collide, those of bytes cannot.
        """
        if value is True or value is False:
            return b"true" if value else b"false"
        if isinstance(value, dict | list):
            return json.dumps(self._normal(value), sort_keys=True).encode()
        return value

    def _normal(self, value: Any) -> Any:
        """Return the value with whole numbers as integers, so that equal numbers are written alike."""
        if isinstance(value, dict):
            self.steps.spend(1 + len(value) // 4)
            return {name: self._normal(item) for name, item in value.items()}
        if isinstance(value, list):
            self.steps.spend(1 + len(value) // 4)
            return [self._normal(item) for item in value]
        if isinstance(value, str):
            self.steps.spend(len(value) // 1_000)
        return int(value) if isinstance(value, float) and value.is_integer() else value


_SPACES = re.compile(r"\\[sS]")

_Keyword = Callable[[_Check, _Node, Any], Violation | None]
"""Function that checks one keyword. The last argument is the keyword's value in the schema."""


# any value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
    "number": _is_number,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _type(check: _Check, node: _Node, types: Any) -> Violation | None:
    names = types if isinstance(types, list) else [types]
    check.steps.spend(len(names) // 8)
    if not all(isinstance(name, str) and name in _TYPES for name in names):
        raise NoVerdict("unknown type")
    if any(_TYPES[name](node.value) for name in names):
        return None
    return node.violation("type", f"the value is not of type {' or '.join(dict.fromkeys(names))}")


def _enum(check: _Check, node: _Node, values: Any) -> Violation | None:
    if check.canonical(node.value) in check.listed(_list(values)):
        return None
    return node.violation("enum", "the value is not one of the listed values")


def _const(check: _Check, node: _Node, value: Any) -> Violation | None:
    if check.canonical(node.value) == check.canonical(value):
        return None
    return node.violation("const", "the value is not the required one")


def _all_of(check: _Check, node: _Node, parts: Any) -> Violation | None:
    for part in _list(parts):
        if (found := check.beside(node, part)) is not None:
            return found
    return None


def _any_of(check: _Check, node: _Node, parts: Any) -> Violation | None:
    valid = False
    for part in _list(parts):
        valid = check.tries(node, part) or valid
        if valid and node.seen is None:
            break
    return None if valid else node.violation("anyOf", "the value is valid for none of the alternatives")


def _one_of(check: _Check, node: _Node, parts: Any) -> Violation | None:
    valid = 0
    for part in _list(parts):
        valid += check.tries(node, part)
        if valid > 1:
            return node.violation("oneOf", "the value is valid for more than one of the alternatives")
    return None if valid else node.violation("oneOf", "the value is valid for none of the alternatives")


def _not(check: _Check, node: _Node, schema: Any) -> Violation | None:
    if check.visit(schema, node.value, node.place, node.scope, None) is not None:
        return None
    return node.violation("not", "the value is valid for a schema for which it must not be valid")


def _if(check: _Check, node: _Node, condition: Any) -> Violation | None:
    branch = "then" if check.tries(node, condition) else "else"
    return check.beside(node, node.schema[branch]) if branch in node.schema else None


def _ref(check: _Check, node: _Node, reference: Any) -> Violation | None:
    if not isinstance(reference, str):
        raise NoVerdict("a reference is not a string")
    return check.follow(node, lambda scope: scope.lookup(reference))


def _recursive_ref(check: _Check, node: _Node, reference: Any) -> Violation | None:
    from referencing.jsonschema import lookup_recursive_ref

    if reference != "#":
        raise NoVerdict("a recursive reference is not #")
    return check.follow(node, lookup_recursive_ref)


def _schema_uri(check: _Check, node: _Node, uri: Any) -> Violation | None:
    if not check.is_dialect(uri):
        raise NoVerdict("parts of the schema are in different drafts")
    return None


def _list(operand: Any) -> list[Any]:
    if not isinstance(operand, list):
        raise NoVerdict("a keyword needs a list")
    return operand


def _dict(operand: Any) -> dict[str, Any]:
    if not isinstance(operand, dict):
        raise NoVerdict("a keyword needs an object")
    return operand


# numbers


def _limit(operand: Any) -> int | float:
    if not _is_number(operand) or (isinstance(operand, float) and not math.isfinite(operand)):
        raise NoVerdict("a keyword needs a number")
    limit: int | float = operand
    return limit


def _minimum(check: _Check, node: _Node, limit: Any) -> Violation | None:
    fails = _limit(limit) > node.value if _is_number(node.value) else False
    return node.violation("minimum", "the number is too small") if fails else None


def _maximum(check: _Check, node: _Node, limit: Any) -> Violation | None:
    fails = _limit(limit) < node.value if _is_number(node.value) else False
    return node.violation("maximum", "the number is too large") if fails else None


def _exclusive_minimum(check: _Check, node: _Node, limit: Any) -> Violation | None:
    fails = _limit(limit) >= node.value if _is_number(node.value) else False
    return node.violation("exclusiveMinimum", "the number is too small") if fails else None


def _exclusive_maximum(check: _Check, node: _Node, limit: Any) -> Violation | None:
    fails = _limit(limit) <= node.value if _is_number(node.value) else False
    return node.violation("exclusiveMaximum", "the number is too large") if fails else None


def _minimum_of_draft4(check: _Check, node: _Node, limit: Any) -> Violation | None:
    exclusive = _bool(node.schema.get("exclusiveMinimum", False))
    return (_exclusive_minimum if exclusive else _minimum)(check, node, limit)


def _maximum_of_draft4(check: _Check, node: _Node, limit: Any) -> Violation | None:
    exclusive = _bool(node.schema.get("exclusiveMaximum", False))
    return (_exclusive_maximum if exclusive else _maximum)(check, node, limit)


def _bool(operand: Any) -> bool:
    if not isinstance(operand, bool):
        raise NoVerdict("a keyword needs a boolean")
    return operand


def _multiple_of(check: _Check, node: _Node, divisor: Any) -> Violation | None:
    if not _is_number(node.value):
        return None
    if _limit(divisor) <= 0:
        raise NoVerdict("multipleOf must be positive")
    check.steps.spend(5)
    if _fraction(node.value) % _fraction(divisor) == 0:
        return None
    return node.violation("multipleOf", "the number is not a multiple")


def _fraction(number: int | float) -> Fraction:
    """Return a number as it was written in decimal. Raises NoVerdict if that is not known, or if it is huge."""
    if isinstance(number, int):
        if number.bit_length() > _MAX_BITS:
            raise NoVerdict("a number is too long")
        return Fraction(number)
    text = repr(number)
    if sum(map(str.isdigit, text.partition("e")[0].replace(".", "").strip("-0"))) > _EXACT_DIGITS:
        raise NoVerdict("a number has more digits than a float keeps")
    return Fraction(text)


# strings


def _count(operand: Any) -> int:
    if isinstance(operand, float) and operand.is_integer():
        operand = int(operand)
    if isinstance(operand, bool) or not isinstance(operand, int) or operand < 0:
        raise NoVerdict("a keyword needs a non-negative integer")
    return operand


def _min_length(check: _Check, node: _Node, minimum: Any) -> Violation | None:
    fails = isinstance(node.value, str) and len(node.value) < _count(minimum)
    return node.violation("minLength", "the string is too short") if fails else None


def _max_length(check: _Check, node: _Node, maximum: Any) -> Violation | None:
    fails = isinstance(node.value, str) and len(node.value) > _count(maximum)
    return node.violation("maxLength", "the string is too long") if fails else None


def _pattern(check: _Check, node: _Node, expression: Any) -> Violation | None:
    if not isinstance(node.value, str) or check.matches(expression, node.value):
        return None
    return node.violation("pattern", "the string does not match")


# arrays


def _items(check: _Check, node: _Node, schema: Any) -> Violation | None:
    return _rest(check, node, schema, len(_list(node.schema.get("prefixItems", []))))


def _prefix_items(check: _Check, node: _Node, schemas: Any) -> Violation | None:
    if not isinstance(node.value, list):
        return None
    for index, schema in enumerate(_list(schemas)[: len(node.value)]):
        if node.seen is not None:
            node.seen.items.add(index)
        if (found := check.below(node, schema, index)) is not None:
            return found
    return None


def _items_of_draft7(check: _Check, node: _Node, schemas: Any) -> Violation | None:
    return (_prefix_items if isinstance(schemas, list) else _items)(check, node, schemas)


def _additional_items(check: _Check, node: _Node, schema: Any) -> Violation | None:
    before = node.schema.get("items")
    return _rest(check, node, schema, len(before)) if isinstance(before, list) else None


def _rest(check: _Check, node: _Node, schema: Any, begin: int) -> Violation | None:
    """Return a violation by one of the items behind the first `begin`."""
    if not isinstance(node.value, list):
        return None
    if node.seen is not None:
        node.seen.all_items = True
    if schema is True:
        return None
    for index in range(begin, len(node.value)):
        if (found := check.below(node, schema, index)) is not None:
            return found
    return None


def _contains(check: _Check, node: _Node, schema: Any) -> Violation | None:
    minimum = _count(node.schema.get("minContains", 1))
    maximum = _count(node.schema["maxContains"]) if "maxContains" in node.schema else None
    return _found(check, node, schema, minimum, maximum)


def _contains_of_draft7(check: _Check, node: _Node, schema: Any) -> Violation | None:
    return _found(check, node, schema, 1, None)


def _found(check: _Check, node: _Node, schema: Any, minimum: int, maximum: int | None) -> Violation | None:
    if not isinstance(node.value, list):
        return None
    found = 0
    for index in range(len(node.value)):
        if check.below(node, schema, index) is None:
            found += 1
            if node.seen is not None:
                node.seen.items.add(index)
            elif found >= minimum and maximum is None:
                return None
    if found < minimum:
        why = "no item is valid for it" if not found else "too few items are valid for contains"
        return node.violation("contains" if not found else "minContains", why)
    if maximum is not None and found > maximum:
        return node.violation("maxContains", "too many items are valid for contains")
    return None


def _unique_items(check: _Check, node: _Node, unique: Any) -> Violation | None:
    if not _bool(unique) or not isinstance(node.value, list):
        return None
    check.steps.spend(len(node.value) // 8)
    seen = set()
    for item in node.value:
        form = check.canonical(item)
        if form in seen:
            return node.violation("uniqueItems", "the items are not unique")
        seen.add(form)
    return None


def _min_items(check: _Check, node: _Node, minimum: Any) -> Violation | None:
    fails = isinstance(node.value, list) and len(node.value) < _count(minimum)
    return node.violation("minItems", "there are too few items") if fails else None


def _max_items(check: _Check, node: _Node, maximum: Any) -> Violation | None:
    fails = isinstance(node.value, list) and len(node.value) > _count(maximum)
    return node.violation("maxItems", "there are too many items") if fails else None


def _unevaluated_items(check: _Check, node: _Node, schema: Any) -> Violation | None:
    seen = node.seen
    if not isinstance(node.value, list) or seen is None or seen.all_items:
        return None
    check.steps.spend(len(node.value) // 8)
    for index in range(len(node.value)):
        if index not in seen.items and (found := check.below(node, schema, index)) is not None:
            if schema is False:
                return node.violation("unevaluatedItems", f"the item {index} is not allowed")
            return found
    seen.all_items = True
    return None


# objects


def _properties(check: _Check, node: _Node, schemas: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    # the smaller of both is searched: a schema with many properties is visited often
    fewer, more = (_dict(schemas), node.value) if len(_dict(schemas)) < len(node.value) else (node.value, schemas)
    check.steps.spend(len(fewer) // 8)
    for name in fewer:
        if name in more:
            if node.seen is not None:
                node.seen.keys.add(name)
            if (found := check.below(node, schemas[name], name)) is not None:
                return found
    return None


def _pattern_properties(check: _Check, node: _Node, schemas: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    for expression, schema in _dict(schemas).items():
        for name in node.value:
            if check.matches(expression, name):
                if node.seen is not None:
                    node.seen.keys.add(name)
                if (found := check.below(node, schema, name)) is not None:
                    return found
    return None


def _additional_properties(check: _Check, node: _Node, schema: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    if schema is True and node.seen is None:
        return None
    for name in _additional(check, node):
        if node.seen is not None:
            node.seen.keys.add(name)
        if schema is False:
            return node.violation("additionalProperties", f"the property {_quoted(name)} is not allowed")
        if (found := check.below(node, schema, name)) is not None:
            return found
    return None


def _additional(check: _Check, node: _Node) -> Iterator[str]:
    """Yield the properties that neither `properties` nor `patternProperties` describes."""
    named = _dict(node.schema.get("properties", {}))
    expressions = _dict(node.schema.get("patternProperties", {}))
    check.steps.spend(len(node.value) // 8)
    for name in node.value:
        if name not in named and not any(check.matches(expression, name) for expression in expressions):
            yield name


def _property_names(check: _Check, node: _Node, schema: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    for name in node.value:
        if check.visit(schema, name, node.place, node.scope, None) is not None:
            return node.violation("propertyNames", f"the name {_quoted(name)} is not allowed")
    return None


def _names(check: _Check, operand: Any) -> list[str]:
    check.steps.spend(len(_list(operand)) // 8)
    if not all(isinstance(name, str) for name in operand):
        raise NoVerdict("a keyword needs a list of names")
    names: list[str] = operand
    return names


def _required(check: _Check, node: _Node, names: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    missing = next((name for name in _names(check, names) if name not in node.value), None)
    return None if missing is None else node.violation("required", f"the property {_quoted(missing)} is missing")


def _dependent_required(check: _Check, node: _Node, dependencies: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    check.steps.spend(len(_dict(dependencies)) // 8)
    for name, needed in dependencies.items():
        if name in node.value and (found := _needs(check, node, "dependentRequired", name, needed)) is not None:
            return found
    return None


def _needs(check: _Check, node: _Node, keyword: str, name: str, needed: Any) -> Violation | None:
    """Return a violation if a property is missing that another one needs."""
    missing = next((name for name in _names(check, needed) if name not in node.value), None)
    if missing is None:
        return None
    return node.violation(keyword, f"the property {_quoted(missing)} is missing, which {_quoted(name)} needs")


def _dependent_schemas(check: _Check, node: _Node, dependencies: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    check.steps.spend(len(_dict(dependencies)) // 8)
    for name, schema in dependencies.items():
        if name in node.value and (found := check.beside(node, schema)) is not None:
            return found
    return None


def _dependencies(check: _Check, node: _Node, dependencies: Any) -> Violation | None:
    if not isinstance(node.value, dict):
        return None
    check.steps.spend(len(_dict(dependencies)) // 8)
    for name, needed in dependencies.items():
        if name not in node.value:
            continue
        if isinstance(needed, list):
            found = _needs(check, node, "dependencies", name, needed)
        else:
            found = check.beside(node, needed)
        if found is not None:
            return found
    return None


def _min_properties(check: _Check, node: _Node, minimum: Any) -> Violation | None:
    fails = isinstance(node.value, dict) and len(node.value) < _count(minimum)
    return node.violation("minProperties", "there are too few properties") if fails else None


def _max_properties(check: _Check, node: _Node, maximum: Any) -> Violation | None:
    fails = isinstance(node.value, dict) and len(node.value) > _count(maximum)
    return node.violation("maxProperties", "there are too many properties") if fails else None


def _unevaluated_properties(check: _Check, node: _Node, schema: Any) -> Violation | None:
    seen = node.seen
    if not isinstance(node.value, dict) or seen is None:
        return None
    check.steps.spend(len(node.value) // 8)
    for name in node.value:
        if name not in seen.keys and (found := check.below(node, schema, name)) is not None:
            if schema is False:
                return node.violation("unevaluatedProperties", f"the property {_quoted(name)} is not allowed")
            return found
    seen.keys.update(node.value)
    return None


# drafts

_DRAFT4: dict[str, _Keyword] = {
    "$schema": _schema_uri,
    "$ref": _ref,
    "type": _type,
    "enum": _enum,
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
    "minimum": _minimum_of_draft4,
    "maximum": _maximum_of_draft4,
    "multipleOf": _multiple_of,
    "minLength": _min_length,
    "maxLength": _max_length,
    "pattern": _pattern,
    "items": _items_of_draft7,
    "additionalItems": _additional_items,
    "uniqueItems": _unique_items,
    "minItems": _min_items,
    "maxItems": _max_items,
    "properties": _properties,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "required": _required,
    "dependencies": _dependencies,
    "minProperties": _min_properties,
    "maxProperties": _max_properties,
}
_DRAFT6: dict[str, _Keyword] = {
    **_DRAFT4,
    "const": _const,
    "contains": _contains_of_draft7,
    "propertyNames": _property_names,
    "minimum": _minimum,
    "maximum": _maximum,
    "exclusiveMinimum": _exclusive_minimum,
    "exclusiveMaximum": _exclusive_maximum,
}
_DRAFT7: dict[str, _Keyword] = {**_DRAFT6, "if": _if}


def _skip(check: _Check, node: _Node, schema: Any) -> Violation | None:
    """Do nothing: these keywords are checked after all others; see `_LAST`."""
    return None


_LAST: dict[str, _Keyword] = {
    "unevaluatedItems": _unevaluated_items,
    "unevaluatedProperties": _unevaluated_properties,
}
_DRAFT2019: dict[str, _Keyword] = {
    **{keyword: check for keyword, check in _DRAFT7.items() if keyword != "dependencies"},
    **dict.fromkeys(_LAST, _skip),
    "contains": _contains,
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "$recursiveRef": _recursive_ref,
}
_DRAFT2020: dict[str, _Keyword] = {
    **{keyword: check for keyword, check in _DRAFT2019.items() if keyword not in ("additionalItems", "$recursiveRef")},
    "items": _items,
    "prefixItems": _prefix_items,
    "$dynamicRef": _ref,
}
_DEFAULT = "https://json-schema.org/draft/2020-12/schema"
_DIALECTS = {
    dialect.name.partition("://")[2].rstrip("#"): dialect
    for dialect in (
        _Dialect("http://json-schema.org/draft-04/schema#", _DRAFT4, ref_alone=True),
        _Dialect("http://json-schema.org/draft-06/schema#", _DRAFT6, ref_alone=True),
        _Dialect("http://json-schema.org/draft-07/schema#", _DRAFT7, ref_alone=True),
        _Dialect("https://json-schema.org/draft/2019-09/schema", _DRAFT2019, ref_alone=False),
        _Dialect(_DEFAULT, _DRAFT2020, ref_alone=False),
    )
}


def _dialect(uri: Any) -> _Dialect:
    """Return the dialect that a `$schema` names. Raises NoVerdict."""
    dialect = _DIALECTS.get(uri.partition("://")[2].rstrip("#")) if isinstance(uri, str) else None
    if dialect is None:
        raise NoVerdict("the draft of the schema is unknown")
    return dialect


# messages

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _cropped(text: str, maximum: int) -> str:
    return text if len(text) <= maximum else text[: maximum - 1] + "…"


def _quoted(name: str) -> str:
    name = _cropped(name, _MAX_NAME)
    return json.dumps(name, ensure_ascii=not name.isprintable())


def _path(place: _Place) -> str:
    """Return a JSON path, without the leading `$.` where it has steps. Long paths lose their beginning."""
    steps: list[str] = []
    length = 0
    while place is not None and length < _MAX_PATH:
        place, key = place
        steps.append(_step(key))
        length += len(steps[-1])
    if not steps:
        return "$"
    text = "".join(reversed(steps))
    return text.removeprefix(".") if place is None else f"…{text}"


def _step(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if len(key) <= _MAX_NAME and _IDENTIFIER.fullmatch(key) else f"[{_quoted(key)}]"
