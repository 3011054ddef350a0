"""Bounds on the size of a schema as the client sends it."""

from typing import Any

from compat.openai.grammars import MAX_FORM_BYTES
from compat.openai.schemas.policy import Unenforceable

MAX_SCHEMA_NODES = 20_000
"""Maximum number of objects, lists and scalar values in a schema, as the client sends it."""
MAX_SCHEMA_DEPTH = 100
"""Maximum nesting of a schema, in levels. llguidance accepts 127 levels of JSON, and joining parts adds some."""


def check_size(schema: Any) -> None:
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
