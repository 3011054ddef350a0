"""References of one schema, resolved by `referencing`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gateway.runtime.schema_checker.work_budget import NoVerdict

if TYPE_CHECKING:
    from referencing import Specification
    from referencing._core import Resolved, Resolver

Scope = Any
"""Resolver of the references at a place of the schema; None if the schema has no reference."""
KEYWORDS = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})


class References:
    """Resolver of the references of a schema. References to other documents have no target."""

    def __init__(self, schema: Any, dialect: str) -> None:
        """Find the schema's identifiers and anchors. `dialect`: its `$schema`. Raises NoVerdict if they are
        malformed."""
        from referencing import Registry  # imported late: it takes 10 ms, which only such schemas need
        from referencing.jsonschema import specification_with

        try:
            self._specification: Specification[Any] = specification_with(dialect)
            resource = self._specification.create_resource(schema)
            uri = resource.id() or ""
            self.root: Resolver[Any] = Registry().with_resource(uri, resource).crawl().resolver(uri)
            """Scope of the whole schema."""
        except RecursionError:
            raise
        except Exception as error:  # it expects valid schemas, and raises any exception for others
            raise NoVerdict(f"the references of the schema cannot be resolved: {type(error).__name__}") from None

    def enter(self, schema: dict[str, Any], scope: Scope) -> Scope:
        """Return the scope of a part of the schema that has an identifier. Raises NoVerdict if the identifier is
        malformed."""
        try:
            return scope.in_subresource(self._specification.create_resource(schema))
        except Exception as error:
            raise NoVerdict(f"an id cannot be resolved: {type(error).__name__}") from None


def resolve(scope: Scope, lookup: "Callable[[Scope], Resolved[Any]]") -> "Resolved[Any]":
    """Return the target of a reference. Raises NoVerdict if there is none."""
    try:
        return lookup(scope)
    except RecursionError:
        raise
    except Exception as error:  # unknown targets, and any exception for malformed references
        raise NoVerdict(f"a reference cannot be resolved: {type(error).__name__}") from None
