"""Tests of compat/openai/schemas/definitions.py: targets of references, and new names."""

from typing import Any

import pytest

from compat.openai.schemas.definitions import Definitions
from compat.openai.schemas.policy import RefusalPolicy
from tests.compat.openai.schemas.answers import LENIENT


def definitions(root: dict[str, Any]) -> Definitions:
    return Definitions(root, RefusalPolicy(LENIENT))


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("#", "root"),
        ("#/$defs/a~1b%20c", {"const": 1}),
        ("#/prefixItems/1", {"const": 2}),
        ("#named", {"$anchor": "named", "const": 3}),
        ("https://example.com/b", {"$id": "https://example.com/b", "const": 4}),
        ("#/$defs/chain", {"const": 1}),
        ("#/$defs/circle", False),
    ],
)
def test_the_target_of_a_reference(reference: str, target: Any) -> None:
    root: dict[str, Any] = {
        "$defs": {
            "a/b c": {"const": 1},
            "chain": {"$ref": "#/$defs/link"},
            "link": {"$ref": "#/$defs/a~1b%20c", "title": "ignored beside the reference"},
            "circle": {"$ref": "#/$defs/circle"},
            "named": {"$anchor": "named", "const": 3},
            "b": {"$id": "https://example.com/b", "const": 4},
        },
        "prefixItems": [True, {"const": 2}],
    }
    assert definitions(root).find_target(reference) == (root if target == "root" else target)


@pytest.mark.parametrize("reference", ["#/$defs/none", "#/prefixItems/2", "#/title", "other.json", 5, None])
def test_a_reference_without_a_target_is_dropped(reference: Any) -> None:
    assert definitions({"title": "x", "prefixItems": [True]}).make_reference(reference, None) is None


def test_a_definition_gets_a_name_for_each_set_of_shared_names() -> None:
    found = definitions({"$defs": {"a": {"const": 1}, "b": {"$defs": {"a": {"const": 2}}}}})
    shared = frozenset({"x"})
    names = [
        found.make_reference("#/$defs/a", None),
        found.make_reference("#/$defs/a", shared),
        found.make_reference("#/$defs/b/$defs/a", None),
        found.make_reference("#/$defs/a", None),
    ]
    assert names == ["#/$defs/a", "#/$defs/a_0", "#/$defs/a_1", "#/$defs/a"]
    assert found.pop() == ("a", {"const": 1}, None)
    assert found.pop() == ("a_0", {"const": 1}, shared)
    assert found.pop() == ("a_1", {"const": 2}, None)
    assert found.pop() is None
