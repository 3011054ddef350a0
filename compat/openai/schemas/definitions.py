"""The definitions that a schema refers to: their targets, and their names in the rewritten schema."""

import json
import re
from collections import deque
from typing import Any
from urllib.parse import unquote

from compat.openai.schemas.keywords import DESCRIBING
from compat.openai.schemas.policy import RefusalPolicy, Unenforceable

MAX_DEFINITIONS = 200
"""Maximum number of definitions that a schema refers to. llguidance resolves a chain of them recursively, on the
thread's stack."""
_MISSING = object()
"""Target of a reference that leads nowhere."""
_BESIDE_REF = DESCRIBING | {"allOf", "anyOf", "oneOf"}
"""Keywords beside a `$ref` that have an effect."""


class Definitions:
    """Owner of the names of definitions, and of those that are still to be rewritten.

    `shared`: names of the properties that other parts, which are joined with a definition, constrain as well; None if
    the definition stands alone. A definition is rewritten once for each `shared`; see `SchemaRewriter`.
    """

    def __init__(self, root: dict[str, Any], policy: RefusalPolicy) -> None:
        self._root = root
        self._policy = policy
        self._ids = _find_ids(root)
        self._names: dict[tuple[int, frozenset[str] | None], str] = {}
        self._queue: deque[tuple[str, Any, frozenset[str] | None]] = deque()

    def pop(self) -> tuple[str, Any, frozenset[str] | None] | None:
        """Return the next definition to rewrite: its new name, its original schema, and `shared`; None if there is none
        left."""
        return self._queue.popleft() if self._queue else None

    def make_reference(self, reference: Any, shared: frozenset[str] | None) -> Any:
        """Return the new value of `$ref` for a reference to a definition; None if the reference is dropped."""
        target = self.find_target(reference)
        if target is _MISSING:
            self._policy.refuse("$ref", f"{json.dumps(reference)[:80]} has no target")
            return None
        key = id(target), shared
        if key not in self._names:
            if len(self._names) >= MAX_DEFINITIONS:
                raise Unenforceable(f"it refers to more than {MAX_DEFINITIONS} definitions")
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(reference).rsplit("/", 1)[-1])[:40] or "root"
            names = set(self._names.values())
            name = next(
                item for item in (name, *(f"{name}_{number}" for number in range(len(names) + 1))) if item not in names
            )
            self._names[key] = name
            self._queue.append((name, target, shared))
        return f"#/$defs/{self._names[key]}"

    def find_target(self, reference: Any) -> Any:
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
    for token in pointer[1:].split("/"):
        key = unquote(token).replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, list) and re.fullmatch("[0-9]{1,6}", key) and int(key) < len(node):
            node = node[int(key)]
        else:
            return _MISSING
    return node if isinstance(node, dict | bool) else _MISSING
