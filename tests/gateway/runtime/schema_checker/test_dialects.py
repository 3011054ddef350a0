"""Tests of gateway/runtime/schema_checker/dialects.py: which keywords each draft has."""

from typing import Any

import pytest

from gateway.runtime.schema_checker.dialects import DEFAULT_DIALECT, find_dialect
from gateway.runtime.schema_checker.work_budget import NoVerdict
from tests.gateway.runtime.schema_checker.verdicts import (
    DRAFT4,
    DRAFT6,
    DRAFT7,
    DRAFT2019,
    assert_verdicts,
    found,
    no_verdict,
)

DRAFT2020 = {"$schema": DEFAULT_DIALECT}
DRAFTS = [DRAFT4, DRAFT6, DRAFT7, DRAFT2019, DRAFT2020]


@pytest.mark.parametrize(
    ("keywords", "value", "drafts"),
    [
        ({"const": 1}, 2, [DRAFT6, DRAFT7, DRAFT2019, DRAFT2020]),
        ({"contains": {"const": 1}}, [2], [DRAFT6, DRAFT7, DRAFT2019, DRAFT2020]),
        ({"propertyNames": False}, {"a": 1}, [DRAFT6, DRAFT7, DRAFT2019, DRAFT2020]),
        ({"exclusiveMinimum": 2}, 2, [DRAFT6, DRAFT7, DRAFT2019, DRAFT2020]),
        ({"if": True, "then": False}, 1, [DRAFT7, DRAFT2019, DRAFT2020]),
        ({"dependencies": {"a": ["b"]}}, {"a": 1}, [DRAFT4, DRAFT6, DRAFT7]),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, [DRAFT2019, DRAFT2020]),
        ({"dependentSchemas": {"a": False}}, {"a": 1}, [DRAFT2019, DRAFT2020]),
        ({"contains": True, "maxContains": 1}, [1, 2], [DRAFT2019, DRAFT2020]),
        ({"unevaluatedProperties": False}, {"a": 1}, [DRAFT2019, DRAFT2020]),
        ({"unevaluatedItems": False}, [1], [DRAFT2019, DRAFT2020]),
        ({"prefixItems": [False]}, [1], [DRAFT2020]),
    ],
)
def test_which_drafts_have_a_keyword(keywords: dict[str, Any], value: Any, drafts: list[dict[str, str]]) -> None:
    assert [draft for draft in DRAFTS if found({**draft, **keywords}, value) is not None] == drafts


@pytest.mark.parametrize("uri", [draft["$schema"] for draft in DRAFTS])
def test_drafts_are_found_by_their_uris(uri: str) -> None:
    dialect = find_dialect(uri)
    assert dialect.name == uri
    host = uri.partition("://")[2]
    for other in (f"http://{host}", f"https://{host}", uri.rstrip("#"), f"{uri.rstrip('#')}#"):
        assert find_dialect(other) is dialect


@pytest.mark.parametrize(
    "uri", ["https://example.com/draft", "http://json-schema.org/draft-03/schema#", "", "draft-07", 7, None]
)
def test_other_drafts_are_unknown(uri: Any) -> None:
    with pytest.raises(NoVerdict, match="draft of the schema is unknown"):
        find_dialect(uri)
    assert no_verdict({"$schema": uri}, 1)


def test_keywords_beside_a_reference_count_since_2019() -> None:
    schema = {
        "definitions": {"a": {}, "b": {"$ref": "#/definitions/a", "maximum": 0}},
        "items": {"$ref": "#/definitions/b"},
    }
    assert_verdicts({**DRAFT7, **schema, "maxItems": 1}, [1], [1, 1], "$: maxItems")
    for draft in DRAFTS:
        assert (found({**draft, **schema}, [1]) is None) == (draft in (DRAFT4, DRAFT6, DRAFT7))


def test_a_schema_in_another_draft_than_its_parts_gets_no_verdict() -> None:
    part = {"$schema": DRAFT7["$schema"], "pattern": "a"}
    assert no_verdict({"properties": {"a": part}}, {"a": "b"}) == "parts of the schema are in different drafts"
    assert found({**DRAFT7, "properties": {"a": part}}, {"a": "b"}) is not None
