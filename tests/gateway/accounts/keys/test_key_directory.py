"""gateway/accounts/keys/key_directory.py: keys by id and by digest."""

from collections.abc import Callable

import pytest

from gateway.accounts.keys.key_directory import KeyDirectory
from gateway.accounts.keys.virtual_key import KeyRecord, digest_of
from gateway.errors import RequestError
from gateway.http.middleware.auth import ApiKeys
from tests.fakes.call_counter import CallCounter


def record(id: str = "key_1", secret: str = "one", **fields: object) -> KeyRecord:
    return KeyRecord(id=id, digest=digest_of(secret).hex(), created=1, **fields)  # type: ignore[arg-type]


def authenticate(directory: KeyDirectory, secret: str) -> str | None:
    try:
        return directory.authenticate(digest_of(secret))
    except RequestError as error:
        return error.code if error.status == 401 else f"status {error.status}"


def test_a_key_is_found_by_its_digest_until_it_is_removed() -> None:
    directory = KeyDirectory()
    assert directory.put(record()) is None
    assert authenticate(directory, "one") == "key_1"
    assert authenticate(directory, "two") is None
    directory.remove("key_1")
    assert authenticate(directory, "one") is None
    assert directory.remove("key_1") is None


def test_a_changed_key_replaces_the_one_before() -> None:
    directory = KeyDirectory()
    directory.put(record())
    assert directory.put(record(secret="two")) == record()
    assert authenticate(directory, "one") is None
    assert authenticate(directory, "two") == "key_1"
    assert len(directory) == 1


def test_disabled_and_expired_keys_are_refused_with_their_own_codes() -> None:
    now = [100.0]
    directory = KeyDirectory(lambda: now[0])
    directory.put(record(disabled=True))
    assert authenticate(directory, "one") == "api_key_disabled"
    directory.put(record(expires_at=101))
    assert authenticate(directory, "one") == "key_1"
    now[0] = 101.0
    assert authenticate(directory, "one") == "api_key_expired"
    with pytest.raises(RequestError) as deleted:
        directory.check(None)
    assert (deleted.value.status, deleted.value.code) == (401, "invalid_api_key")


def test_the_key_before_a_rotation_ends_with_the_grace() -> None:
    now = [100.0]
    directory = KeyDirectory(lambda: now[0])
    directory.put(record().rotated(digest_of("two").hex(), now[0], 10.0))
    assert authenticate(directory, "one") == authenticate(directory, "two") == "key_1"
    now[0] = 110.0
    assert authenticate(directory, "one") == "invalid_api_key"
    assert authenticate(directory, "two") == "key_1"
    directory.put(record(disabled=True).rotated(digest_of("two").hex(), now[0], 10.0))
    assert authenticate(directory, "one") == "api_key_disabled"


def calls_of(action: Callable[[], object]) -> int:
    """Return how many functions an action calls."""
    with CallCounter() as calls:
        action()
    return calls.count


def test_an_unknown_key_costs_the_same_with_any_number_of_keys() -> None:
    directory = KeyDirectory()
    keys = ApiKeys([], ["admin-key-of-the-tests"], directory.authenticate)

    def authenticate() -> None:
        with pytest.raises(RequestError, match="Incorrect API key"):
            keys.authenticate("sk-myna-unknown")

    authenticate()
    before = calls_of(authenticate)
    for number in range(10_000):
        directory.put(KeyRecord(id=f"key_{number}", digest=f"{number:064x}", created=number))
    directory.put(record())
    assert calls_of(authenticate) == before
    assert keys.authenticate("one") == "key_1"


def test_pages_go_from_the_newest_to_the_oldest() -> None:
    directory = KeyDirectory()
    ids = [f"key_{number}" for number in range(7)]
    for number, id in enumerate(ids):
        directory.put(KeyRecord(id=id, digest=f"{number:064x}", created=number))
    found, after = [], None
    while True:
        page, has_more = directory.page(after, 3)
        found += [each.id for each in page]
        if not has_more:
            break
        after = page[-1].id
    assert found == ids[::-1]
    with pytest.raises(RequestError, match="there is no key 'key_9'") as unknown:
        directory.page("key_9", 3)
    assert (unknown.value.status, unknown.value.param) == (400, "after")
