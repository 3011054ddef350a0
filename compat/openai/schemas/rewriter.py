"""Rewriting of one schema: its objects, arrays, references and joined parts."""

import json
import re
from collections.abc import Iterable
from typing import Any

from compat.openai.schemas.alternatives import max_alternatives
from compat.openai.schemas.definitions import Definitions
from compat.openai.schemas.endless import cut_endless
from compat.openai.schemas.keywords import (
    ANNOTATIONS,
    DESCRIBING,
    JOINING,
    NO_CONSTRAINT_IF_FALSE,
    UNSUPPORTED,
    allows_type,
)
from compat.openai.schemas.parts import PartFinder
from compat.openai.schemas.policy import Enforcement, RefusalPolicy, Unenforceable
from compat.openai.schemas.problems import problem_of_leaf
from compat.openai.schemas.values import ValueRewriter

MAX_ALTERNATIVES = 1_000
"""Maximum number of alternatives that result from joining the parts of a schema."""
_LITERAL_NAMES = re.compile(r"\^(?:\(\?:|\()?([A-Za-z0-9_ -]+(?:\|[A-Za-z0-9_ -]+)*)\)?\$")
_NO_NAMES: frozenset[str] = frozenset()


class SchemaRewriter:
    """Rewriter of one schema.

    A definition that stands alone is rewritten in a closed form: objects have no properties but those it names. A
    definition that is joined with other parts (`allOf`, `$ref` beside keywords) is rewritten in an open form, because
    the other parts name properties as well; the joined object is closed. A definition that is used in both ways is
    rewritten twice.
    """

    def __init__(self, root: dict[str, Any], enforcement: Enforcement, *, plain: bool = False) -> None:
        """`plain`: keep only types, properties and items, because llguidance did not accept the other keywords."""
        self._root = root
        self._plain = plain
        self._policy = RefusalPolicy(enforcement)
        self._definitions = Definitions(root, self._policy)
        self._finder = PartFinder(self._definitions)
        text = json.dumps(root)
        self._values = ValueRewriter(self._policy, plain=plain, joins=any(f'"{key}"' in text for key in JOINING))

    @property
    def dropped(self) -> list[str]:
        """Return the keywords that were dropped."""
        return list(self._policy.dropped)

    def document(self) -> dict[str, Any]:
        """Return the whole schema. Raises Unenforceable if the policy does not allow to drop a keyword, or no finite
        value is valid."""
        top = self._schema(self._root, None)
        definitions: dict[str, Any] = {}
        while (definition := self._definitions.pop()) is not None:
            name, target, shared = definition
            definitions[name] = self._schema(target, shared)
        if definitions:
            cut_endless(top, definitions)
            top = {**top, "$defs": definitions} if isinstance(top, dict) else top
        if top is False or (isinstance(top, dict) and top.get("$ref") is False):
            raise Unenforceable("unsatisfiable: no finite value is valid for it")
        document: dict[str, Any] = top if isinstance(top, dict) else {}
        if max_alternatives(document) > MAX_ALTERNATIVES:
            raise Unenforceable(f"joining its parts gives more than {MAX_ALTERNATIVES} alternatives")
        return document

    # one schema

    def _schema(self, node: Any, shared: frozenset[str] | None) -> Any:
        """Return a rewritten schema: in closed form if `shared` is None, otherwise in open form.

        `shared`: names of the properties that other parts of the same object constrain as well."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            self._policy.refuse("a schema", "must be an object or a boolean")
            return True
        result: dict[str, Any] = {key: node[key] for key in ANNOTATIONS if isinstance(node.get(key), str)}
        self._check_unsupported(node)
        self._values.add_types(node, result)
        self._values.add_values(node, result)
        joined = [key for key in JOINING if key in node]
        if not joined:
            closes = shared is None or "unevaluatedProperties" in node
            self._add_children(node, result, shared if shared is not None else _NO_NAMES, closes=closes)
        elif len(joined) == 1 and joined[0] != "allOf" and not any(key in DESCRIBING for key in node):
            self._add_alternatives(node, result, joined[0], shared)
        else:
            self._add_joined(node, result, shared)
        return result

    def _check_unsupported(self, node: dict[str, Any]) -> None:
        for key in UNSUPPORTED:
            is_off = node.get(key) is False and key in NO_CONSTRAINT_IF_FALSE
            if key in node and not (key in ("then", "else") and "if" not in node) and not is_off:
                self._policy.refuse(key)

    # properties and items

    def _add_children(
        self, node: dict[str, Any], result: dict[str, Any], shared: frozenset[str], *, closes: bool
    ) -> None:
        """Add the keywords for an object's properties and an array's items. `closes`: forbid all other properties."""
        self._add_items(node, result)
        properties = self._properties(node)
        patterns, drops_pattern = self._patterns(node, properties)
        required = node.get("required")
        if required is not None:
            if isinstance(required, list) and all(isinstance(name, str) for name in required):
                names = list(dict.fromkeys(required))
            else:
                self._policy.refuse("required", "must be a list of names")
                names = []
            if self._policy.is_lenient and node.get("additionalProperties") is False and not patterns:
                names = [name for name in names if name in properties]
            if names:
                result["required"] = names
        if properties or "properties" in node:
            result["properties"] = {
                name: self._schema(value, _NO_NAMES if name in shared else None) for name, value in properties.items()
            }
        if patterns:
            result["patternProperties"] = {pattern: self._schema(value, None) for pattern, value in patterns.items()}
        if drops_pattern:  # names that the dropped pattern matches must stay allowed
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
            self._policy.refuse("properties", "must be an object")
            return {}
        return dict(properties)

    def _patterns(self, node: dict[str, Any], properties: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Return the patterns of `patternProperties`, and whether one was dropped.

        A pattern that matches only literal names is added to `properties` under these names instead: otherwise
        llguidance allows a comma where no further name can follow.
        """
        schemas = node.get("patternProperties", {})
        if not isinstance(schemas, dict):
            self._policy.refuse("patternProperties", "must be an object")
            return {}, False
        if self._plain:
            return {}, bool(schemas)
        patterns: dict[str, Any] = {}
        drops_pattern = False
        for pattern, value in schemas.items():
            literal = _LITERAL_NAMES.fullmatch(pattern)
            if literal is not None and ("|" not in literal[1] or "(" in pattern):
                for name in literal[1].split("|"):
                    properties[name] = {"allOf": [properties[name], value]} if name in properties else value
            elif problem := problem_of_leaf(json.dumps({"type": "string", "pattern": pattern})):
                self._policy.refuse("patternProperties", f"cannot be enforced: {problem}")
                drops_pattern = True
            else:
                patterns[pattern] = value
        return patterns, drops_pattern

    def _add_items(self, node: dict[str, Any], result: dict[str, Any]) -> None:
        prefix, items = node.get("prefixItems"), node.get("items")
        if isinstance(items, list):  # as before draft 2020-12
            prefix, items = items, node.get("additionalItems")
        if prefix is not None:
            if isinstance(prefix, list):
                result["prefixItems"] = [self._schema(item, None) for item in prefix]
            else:
                self._policy.refuse("prefixItems", "must be a list")
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
            pointer = self._definitions.make_reference(node["$ref"], shared)
            if pointer is not None:
                result["$ref"] = pointer
            return
        branches = node[key]
        if not isinstance(branches, list):
            self._policy.refuse(key, "must be a list")
            return
        # llguidance accepts a oneOf only if it can prove that no value is valid for two alternatives
        result["anyOf" if not self._policy.is_strict else key] = [self._schema(branch, shared) for branch in branches]

    def _add_joined(self, node: dict[str, Any], result: dict[str, Any], shared: frozenset[str] | None) -> None:
        """Add the parts, which must all be valid, and close the object that they describe together."""
        is_sealed = node.get("unevaluatedProperties", True) is not True
        closes = shared is None or is_sealed
        names_of_parts = self._finder.count_names(node)
        shared_names = frozenset(name for name, count in names_of_parts.items() if count > 1) | (shared or _NO_NAMES)
        is_open = self._finder.allows_others(node)
        is_object = any(
            allows_type(part, "object", exactly=True) for part, is_choice in self._finder.parts(node) if not is_choice
        )
        self._add_children(node, result, shared_names, closes=False)
        if is_sealed and (
            is_open or node["unevaluatedProperties"] is not False or ("anyOf" in node and "oneOf" in node)
        ):
            why = "must be false, and cannot be combined with additionalProperties, or with anyOf and oneOf together"
            self._policy.refuse("unevaluatedProperties", why)
            is_sealed = False
        parts: list[Any] = []
        if "$ref" in node:
            pointer = self._definitions.make_reference(node["$ref"], shared_names)
            if pointer is not None:
                parts.append({"$ref": pointer})
        if isinstance(node.get("allOf"), list):
            parts += [self._schema(part, shared_names) for part in node["allOf"]]
        elif "allOf" in node:
            self._policy.refuse("allOf", "must be a list")
        choices = [key for key in ("anyOf", "oneOf") if isinstance(node.get(key), list)]
        # llguidance accepts a oneOf only if it can prove that no value is valid for two alternatives
        if not self._policy.is_strict and choices == ["oneOf"]:
            choices, node = ["anyOf"], {**node, "anyOf": node["oneOf"]}
        own_names = self._finder.count_names(
            {key: value for key, value in node.items() if key not in ("anyOf", "oneOf")}
        )
        for key in choices:
            branches = []
            for branch in node[key]:
                part = self._schema(branch, shared_names)
                names = {**own_names, **self._finder.count_names(branch)}
                if (
                    closes
                    and len(choices) == 1
                    and not is_open
                    and (names or is_sealed)
                    and allows_type(branch, "object")
                ):
                    part = {"allOf": [part, _closing(names, is_object=is_object)]}
                branches.append(part)
            if key == "oneOf" and not self._policy.is_strict:
                parts.append({"anyOf": branches})
            else:
                result[key] = branches
        if closes and not choices and not is_open and (names_of_parts or is_sealed):
            parts.append(_closing(names_of_parts, is_object=is_object))
        if parts:
            result["allOf"] = parts


def _closing(names: Iterable[str], *, is_object: bool) -> dict[str, Any]:
    """Return a schema for objects with no other properties than these. If not `is_object`, all other values are valid
    for it too."""
    result = {"properties": dict.fromkeys(names, True), "additionalProperties": False}
    return {"type": "object", **result} if is_object else result
