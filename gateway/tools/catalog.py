"""The tools that one server lists: which of them the operator allows, and the check of their arguments."""

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.config.tool_servers import ToolServerTable
from gateway.runtime.json_codec import encode_json
from gateway.runtime.name_pattern import matches
from gateway.runtime.schema_checker.check import UnknownValue
from gateway.runtime.schema_checker.checker import SchemaChecker
from gateway.runtime.schema_checker.violation import Violation
from gateway.runtime.schema_checker.work_budget import WorkBudget
from gateway.tools.protocol import Path, ToolDescription, UnknownTool
from gateway.tools.result_text import as_unicode

log = logging.getLogger("myna.tools")

MAX_TOOLS = 10_000
"""Maximum number of tools that a server may list."""
_MAX_SCHEMA_BYTES = 64 << 10
"""Maximum size of a tool's schema as JSON, in bytes."""
_MAX_SCHEMA_LEVELS = 64
"""Maximum nesting of a schema, in levels."""
_MAX_CATALOG_BYTES = 8 << 20
"""Maximum size of all schemas and descriptions of a server, in bytes."""
_MAX_NAME = 128
"""Maximum length of a tool's name, in characters."""
_MAX_DESCRIPTION = 16_384
"""Length to which descriptions are cut, in characters."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_MAX_COMPARED = 500
"""Maximum number of names that are searched for similar ones."""
_MAX_WARNINGS = 10
"""Number of refused tools that are logged for one listing."""


@dataclass(frozen=True)
class _Tool:
    """An allowed tool. `may_share`: whether equal calls may share a result."""

    description: ToolDescription
    may_share: bool
    checker: SchemaChecker


class Catalog:
    """The allowed tools of one server, as it listed them last."""

    def __init__(self, server: str, settings: ToolServerTable, listed: Iterable[Mapping[str, Any]]) -> None:
        """`listed`: tools as the server sent them. Those that are not allowed, or have a bad schema, are left out."""
        self._server = server
        self._tools: dict[str, _Tool] = {}
        self.refused: dict[str, str] = {}
        """Reasons for which tools are left out although the operator allows them, by name."""
        size = 0
        for tool in listed:
            name = tool.get("name")
            if not isinstance(name, str) or not any(matches(pattern, name) for pattern in settings.tools):
                continue
            reason, bytes_ = _problem(name, tool)
            if reason is None and name in self._tools:
                reason = "the server lists it twice"
            size += bytes_
            if reason is None and size > _MAX_CATALOG_BYTES:
                reason = f"the schemas of the server have more than {_MAX_CATALOG_BYTES} bytes"
            if reason is None:
                self._tools[name] = _tool(server, settings, name, tool)
            elif len(self.refused) < MAX_TOOLS:
                self.refused[_shown(name)] = reason
        for name, reason in list(self.refused.items())[:_MAX_WARNINGS]:
            log.warning("tool server %s: the tool %s is left out: %s", server, name, reason)

    def __len__(self) -> int:
        return len(self._tools)

    def describe(self, pattern: str) -> Sequence[ToolDescription]:
        """Return the tools whose names match a pattern. Raises UnknownTool if there is none."""
        found = [tool.description for name, tool in self._tools.items() if matches(pattern, name)]
        if not found and pattern != "*":
            raise self._unknown(pattern)
        return found

    def has(self, name: str) -> bool:
        """Return whether there is such a tool."""
        return name in self._tools

    def require(self, name: str) -> ToolDescription:
        """Return a tool. Raises UnknownTool if there is none."""
        if name not in self._tools:
            raise self._unknown(name)
        return self._tools[name].description

    def may_share(self, name: str) -> bool:
        """Return whether equal calls of a tool may share a result."""
        return name in self._tools and self._tools[name].may_share

    def is_idempotent(self, name: str) -> bool:
        """Return whether a call of a tool may be repeated."""
        return name in self._tools and self._tools[name].description.is_idempotent

    def violation(
        self, name: str, arguments: Mapping[str, Any], unknown: Collection[Path], budget: WorkBudget
    ) -> Violation | None:
        """Return a violation of a tool's schema that does not depend on the values at the paths `unknown`. Raises
        NoVerdict, and UnknownTool if there is no such tool."""
        self.require(name)
        return self._tools[name].checker.check(with_unknown(arguments, unknown), budget)

    def _unknown(self, name: str) -> UnknownTool:
        reason = self.refused.get(_shown(name))
        if reason is not None:
            return UnknownTool(f"the tool {_shown(name)!r} of the server {self._server!r} is left out: {reason}")
        names = list(self._tools)[:_MAX_COMPARED]
        if near := difflib.get_close_matches(name[:_MAX_NAME], names, 3, 0.5):
            hint = f"; did you mean {' or '.join(near)}?"
        else:
            hint = f"; it has {', '.join(names[:5])}" if names else "; it has no allowed tools"
        return UnknownTool(f"the server {self._server!r} has no allowed tool {_shown(name)!r}{hint}")


def with_unknown(arguments: Mapping[str, Any], unknown: Collection[Path]) -> dict[str, Any]:
    """Return a copy of arguments with an `UnknownValue` at each path. Paths whose parent is missing have no effect."""
    copy: Any = dict(arguments)
    copied: set[int] = {id(copy)}
    for path in unknown:
        if not path:
            continue
        node = copy
        for key in path[:-1]:
            child = _child(node, key)
            if not isinstance(child, dict | list):
                node = None
                break
            if id(child) not in copied:
                child = child.copy()
                copied.add(id(child))
                _assign(node, key, child)
            node = child
        last = path[-1]
        if isinstance(node, dict) or _child(node, last) is not None:
            _assign(node, last, UnknownValue())
    result: dict[str, Any] = copy
    return result


def _assign(node: Any, key: str | int, value: Any) -> None:
    node[key] = value


def _child(node: Any, key: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(key)
    return node[key] if isinstance(node, list) and isinstance(key, int) and 0 <= key < len(node) else None


def _tool(server: str, settings: ToolServerTable, name: str, tool: Mapping[str, Any]) -> _Tool:
    annotations = tool.get("annotations")
    hints = annotations if isinstance(annotations, dict) else {}
    is_read_only = _override(settings.read_only, name, hints.get("readOnlyHint") is True)
    says_idempotent = _override(settings.idempotent, name, hints.get("idempotentHint") is True)
    is_idempotent = _override(settings.idempotent, name, says_idempotent or is_read_only)
    text = tool.get("description")
    description = as_unicode(text[:_MAX_DESCRIPTION]) if isinstance(text, str) else ""
    schema = tool["inputSchema"]
    return _Tool(
        ToolDescription(server, name, description, schema, is_read_only, is_idempotent),
        may_share=is_read_only and says_idempotent,
        checker=SchemaChecker(schema),
    )


def _override(rules: Mapping[str, bool], name: str, value: bool) -> bool:
    """Return the operator's rule for a tool; else `value`. The name goes before patterns, longer patterns before
    shorter ones."""
    if name in rules:
        return rules[name]
    found = [pattern for pattern in rules if "*" in pattern and matches(pattern, name)]
    return rules[max(found, key=len)] if found else value


def _problem(name: str, tool: Mapping[str, Any]) -> tuple[str | None, int]:
    """Return the reason for which a tool cannot be used, or None, and the size of the tool in bytes."""
    if not name.isprintable() or not 0 < len(name) <= _MAX_NAME or " " in name:
        return f"its name is not of 1 to {_MAX_NAME} printable characters without spaces", 0
    schema = tool.get("inputSchema")
    if not isinstance(schema, dict):
        return "its inputSchema is not an object", 0
    try:
        size = len(encode_json(schema))
    except (ValueError, TypeError, RecursionError):
        return "its inputSchema is not JSON", 0
    if size > _MAX_SCHEMA_BYTES:
        return f"its schema has {size} bytes; at most {_MAX_SCHEMA_BYTES} are allowed", 0
    description = tool.get("description")
    size += min(len(description), _MAX_DESCRIPTION) if isinstance(description, str) else 0
    return _schema_problem(schema), size


def _schema_problem(schema: Mapping[str, Any]) -> str | None:
    """Return the reason for which a schema cannot be used; None if there is none."""
    kind = schema.get("type", "object")
    if kind != "object":
        return "its schema is not one of objects"
    level: list[Any] = [schema]
    for _ in range(_MAX_SCHEMA_LEVELS):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                for keyword in _REFERENCES:
                    reference = node.get(keyword)
                    if isinstance(reference, str) and not reference.startswith("#"):
                        return f"its schema refers to another document: {_shown(reference)}"
                below += node.values()
            elif isinstance(node, list):
                below += node
        if not below:
            return None
        level = below
    return f"its schema is nested too deeply; at most {_MAX_SCHEMA_LEVELS} levels are allowed"


def _shown(name: str) -> str:
    """Return a name for a message of one line."""
    text = name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"
    return as_unicode("".join(character if character.isprintable() else "?" for character in text))
