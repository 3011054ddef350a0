"""gateway/accounts/keys/virtual_key.py: records, secrets and ids of keys."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.keys.virtual_key import (
    MAX_PREVIOUS,
    KeyRecord,
    decode_record,
    digest_of,
    encode_record,
    is_key_id,
    key_id_of,
    new_key_id,
    new_secret,
)
from gateway.http.middleware.auth import tenant_of


def record(**fields: object) -> KeyRecord:
    return KeyRecord(**{"id": "key_1", "digest": "00" * 32, "created": 1, **fields})  # type: ignore[arg-type]


def test_a_secret_has_192_random_bits_at_least() -> None:
    secrets = {new_secret() for _ in range(1_000)}
    assert len(secrets) == 1_000
    for secret in secrets:
        assert re.fullmatch(r"sk-myna-[A-Za-z0-9_-]{32,}", secret), "URL-safe characters have 6 bits each"


def test_a_digest_accepts_any_bytes_of_a_header() -> None:
    assert digest_of("é\udcff") != digest_of("é")


def test_logs_name_ids_and_no_keys() -> None:
    id = new_key_id()
    assert is_key_id(id)
    assert key_id_of(id) == id
    assert key_id_of("") == ""
    static = key_id_of(tenant_of("a secret"))
    assert re.fullmatch(r"static_[0-9a-f]{12}", static)
    assert static == key_id_of(tenant_of("a secret")) != key_id_of(tenant_of("another"))


@given(
    st.builds(
        record,
        name=st.text(st.characters(exclude_categories=["Cs"])),
        models=st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
        weight=st.floats(0.001, 1e6),
        rpm=st.none() | st.integers(1, 10**9),
        budget_cost=st.none() | st.floats(0, 1e12),
        tags=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
        disabled=st.booleans(),
    )
)
def test_a_record_survives_its_storage(stored: KeyRecord) -> None:
    text = encode_record(stored)
    assert decode_record(text) == stored
    assert encode_record(decode_record(text)) == text, "a replacement compares texts"


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_patterns_match_as_in_a_shell(pattern: str, name: str) -> None:
    assert record(models=(pattern,)).may_use(name) == fnmatch.fnmatchcase(name, pattern)


@pytest.mark.parametrize("pattern", ["[ab]", "a?", "gpt-4.1"])
def test_only_an_asterisk_is_special(pattern: str) -> None:
    assert record(models=(pattern,)).may_use(pattern)
    assert not record(models=(pattern,)).may_use("a")
    assert not record(models=(pattern,)).may_use("ab")


def test_without_models_a_key_may_use_all() -> None:
    assert record().may_use("anything")


def test_a_rotation_keeps_the_previous_key_for_the_grace_only() -> None:
    first = record()
    assert first.rotated("11" * 32, 100.0, 0.0).previous == ()
    second = first.rotated("11" * 32, 100.0, 10.0)
    assert [(key.digest, key.until) for key in second.previous] == [("00" * 32, 110.0)]
    third = second.rotated("22" * 32, 111.0, 10.0)
    assert [key.digest for key in third.previous] == ["11" * 32], "the oldest one has ended"
    for number in range(20):
        third = third.rotated(f"{number:064x}", 112.0, 10.0)
    assert len(third.previous) == MAX_PREVIOUS


def test_a_key_expires_at_its_time() -> None:
    assert not record(expires_at=100).is_expired(99.9)
    assert record(expires_at=100).is_expired(100.0)
    assert not record().is_expired(1e12)
