"""The drafts of JSON Schema: which keywords each has."""

from typing import Any

from gateway.runtime.schema_checker.check import Check, Dialect, Keyword, Node
from gateway.runtime.schema_checker.keywords import arrays, general, numbers, objects, strings
from gateway.runtime.schema_checker.violation import Violation
from gateway.runtime.schema_checker.work_budget import NoVerdict


def _check_schema_uri(check: Check, node: Node, uri: Any) -> Violation | None:
    if find_dialect(uri) is not check.dialect:
        raise NoVerdict("parts of the schema are in different drafts")
    return None


_DRAFT4: dict[str, Keyword] = {
    "$schema": _check_schema_uri,
    "$ref": general.check_ref,
    "type": general.check_type,
    "enum": general.check_enum,
    "allOf": general.check_all_of,
    "anyOf": general.check_any_of,
    "oneOf": general.check_one_of,
    "not": general.check_not,
    "minimum": numbers.check_minimum_of_draft4,
    "maximum": numbers.check_maximum_of_draft4,
    "multipleOf": numbers.check_multiple_of,
    "minLength": strings.check_min_length,
    "maxLength": strings.check_max_length,
    "pattern": strings.check_pattern,
    "items": arrays.check_items_of_draft7,
    "additionalItems": arrays.check_additional_items,
    "uniqueItems": arrays.check_unique_items,
    "minItems": arrays.check_min_items,
    "maxItems": arrays.check_max_items,
    "properties": objects.check_properties,
    "patternProperties": objects.check_pattern_properties,
    "additionalProperties": objects.check_additional_properties,
    "required": objects.check_required,
    "dependencies": objects.check_dependencies,
    "minProperties": objects.check_min_properties,
    "maxProperties": objects.check_max_properties,
}
_DRAFT6: dict[str, Keyword] = {
    **_DRAFT4,
    "const": general.check_const,
    "contains": arrays.check_contains_of_draft7,
    "propertyNames": objects.check_property_names,
    "minimum": numbers.check_minimum,
    "maximum": numbers.check_maximum,
    "exclusiveMinimum": numbers.check_exclusive_minimum,
    "exclusiveMaximum": numbers.check_exclusive_maximum,
}
_DRAFT7: dict[str, Keyword] = {**_DRAFT6, "if": general.check_if}
_DRAFT2019: dict[str, Keyword] = {
    **{keyword: check for keyword, check in _DRAFT7.items() if keyword != "dependencies"},
    "contains": arrays.check_contains,
    "dependentRequired": objects.check_dependent_required,
    "dependentSchemas": objects.check_dependent_schemas,
    "$recursiveRef": general.check_recursive_ref,
}
_DRAFT2020: dict[str, Keyword] = {
    **{keyword: check for keyword, check in _DRAFT2019.items() if keyword not in ("additionalItems", "$recursiveRef")},
    "items": arrays.check_items,
    "prefixItems": arrays.check_prefix_items,
    "$dynamicRef": general.check_ref,
}
_UNEVALUATED: dict[str, Keyword] = {
    "unevaluatedItems": arrays.check_unevaluated_items,
    "unevaluatedProperties": objects.check_unevaluated_properties,
}
DEFAULT_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DIALECTS = {
    dialect.name.partition("://")[2].rstrip("#"): dialect
    for dialect in (
        Dialect("http://json-schema.org/draft-04/schema#", _DRAFT4, {}, is_ref_alone=True),
        Dialect("http://json-schema.org/draft-06/schema#", _DRAFT6, {}, is_ref_alone=True),
        Dialect("http://json-schema.org/draft-07/schema#", _DRAFT7, {}, is_ref_alone=True),
        Dialect("https://json-schema.org/draft/2019-09/schema", _DRAFT2019, _UNEVALUATED, is_ref_alone=False),
        Dialect(DEFAULT_DIALECT, _DRAFT2020, _UNEVALUATED, is_ref_alone=False),
    )
}


def find_dialect(uri: Any) -> Dialect:
    """Return the dialect that a `$schema` names. Raises NoVerdict if it is unknown."""
    dialect = _DIALECTS.get(uri.partition("://")[2].rstrip("#")) if isinstance(uri, str) else None
    if dialect is None:
        raise NoVerdict("the draft of the schema is unknown")
    return dialect
