"""gateway/accounts/keys/key_admin.py: changes of keys in storage and memory."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.accounts.accounts import Accounts
from gateway.accounts.errors import KeyStoreError
from gateway.accounts.keys.key_admin import KeyAdmin
from gateway.accounts.keys.key_store import KeyChange, MemoryKeyStore
from gateway.accounts.keys.sqlite_key_store import SqliteKeyStore
from gateway.accounts.keys.virtual_key import KeyRecord, digest_of
from gateway.accounts.prices import Prices
from gateway.errors import RequestError
from gateway.journal import FileStorage


def files_of(folder: Path) -> bytes:
    """Return the content of all files."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


def no_window(model: str) -> int | None:
    return None


class Ledger:
    """Spend of keys before this process started."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    async def totals(self, key_id: str, since: float) -> tuple[int, float]:
        self.asked.append((key_id, since))
        return 70, 0.5


class OtherGateway(MemoryKeyStore):
    """A storage in which another gateway changes a key before this one can."""

    def __init__(self, accounts: Accounts, times: int) -> None:
        self.accounts = accounts
        self.times = times
        self.pending: list[KeyChange] = []

    async def replace(self, before: KeyRecord, after: KeyRecord) -> bool:
        if not self.times:
            return True
        self.times -= 1
        self.pending = [KeyChange(before.id, KeyRecord(id=before.id, digest="11", created=0, tpm=9))]
        return False

    async def changes(self) -> Sequence[KeyChange]:
        pending, self.pending = self.pending, []
        return pending


async def test_keys_survive_a_restart_without_their_secrets(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "journal")
    admin = KeyAdmin(Accounts(no_window, Prices({})), SqliteKeyStore(storage))
    await admin.load()
    record, secret = await admin.create({"name": "a", "models": ["x"], "tags": ["t"]})
    await admin.update(record.id, {"rpm": 5})
    _, rotated = await admin.rotate(record.id, 0.0)
    gone, _ = await admin.create({})
    await admin.delete(gone.id)
    await storage.close()
    stored = files_of(tmp_path)
    assert secret.encode() not in stored
    assert rotated.encode() not in stored
    assert record.id.encode() in stored
    storage = FileStorage(tmp_path / "journal")
    accounts = Accounts(no_window, Prices({}))
    await KeyAdmin(accounts, SqliteKeyStore(storage)).load()
    assert [key.id for key in accounts.directory.all()] == [record.id]
    assert accounts.directory.authenticate(digest_of(rotated)) == record.id
    assert accounts.directory.authenticate(digest_of(secret)) is None
    found = accounts.directory.get(record.id)
    assert found is not None
    assert (found.rpm, found.models, found.tags) == (5, ("x",), ("t",))
    assert accounts.limits_of(record.id) is not None
    await storage.close()


async def test_a_budget_continues_with_what_the_ledger_knows() -> None:
    accounts, ledger = Accounts(no_window, Prices({}), clock=lambda: 7_300.0), Ledger()
    admin = KeyAdmin(accounts, spend=ledger, clock=lambda: 7_300.0)
    record, _ = await admin.create({"budget_tokens": 100, "budget_period": "1h"})
    limits = accounts.limits_of(record.id)
    assert limits is not None
    assert limits.meters["budget_tokens"].used_at(7_300.0) == 70
    await admin.update(record.id, {"budget_tokens": 200, "rpm": 5})
    assert ledger.asked == [(record.id, 7_200.0)], "the budget is known already"
    await admin.update(record.id, {"budget_cost": 2.0})
    assert limits.meters["budget_cost"].used_at(7_300.0) == 0.5
    assert limits.meters["budget_tokens"].used_at(7_300.0) == 70
    await admin.update(record.id, {"budget_period": None})
    assert ledger.asked[-1] == (record.id, 0.0)


async def test_a_change_of_another_gateway_is_not_lost() -> None:
    accounts = Accounts(no_window, Prices({}))
    store = OtherGateway(accounts, 2)
    admin = KeyAdmin(accounts, store)
    record, _ = await admin.create({})
    changed = await admin.update(record.id, {"rpm": 5})
    assert (changed.rpm, changed.tpm) == (5, 9)
    store.times = 100
    with pytest.raises(KeyStoreError, match="changes too often"):
        await admin.update(record.id, {"rpm": 6})


async def test_other_gateways_changes_are_applied() -> None:
    accounts = Accounts(no_window, Prices({}))
    store = OtherGateway(accounts, 0)
    admin, ended = KeyAdmin(accounts, store), list[tuple[str, bool]]()
    accounts.on_end = lambda id, is_deleted: ended.append((id, is_deleted))
    first, secret = await admin.create({"rpm": 5})
    second, _ = await admin.create({})
    store.pending = [
        KeyChange(first.id, KeyRecord(id=first.id, digest=first.digest, created=0, disabled=True)),
        KeyChange(second.id, None),
        KeyChange("key_new", KeyRecord(id="key_new", digest=digest_of("new").hex(), created=0)),
        KeyChange("key_unknown", None),
    ]
    await admin.refresh()
    assert ended == [(first.id, False), (second.id, True)]
    assert accounts.directory.authenticate(digest_of("new")) == "key_new"
    with pytest.raises(RequestError, match="disabled"):
        accounts.directory.authenticate(digest_of(secret))


async def test_parallel_changes_of_a_key_all_count() -> None:
    accounts = Accounts(no_window, Prices({}))
    admin = KeyAdmin(accounts)
    record, _ = await admin.create({})
    fields = [{"rpm": 1}, {"tpm": 2}, {"parallel": 3}, {"name": "x"}, {"budget_tokens": 4}]
    await asyncio.gather(*(admin.update(record.id, change) for change in fields))
    found = admin.get(record.id)
    assert (found.rpm, found.tpm, found.parallel, found.name, found.budget_tokens) == (1, 2, 3, "x", 4)


async def test_a_storage_that_fails_changes_nothing() -> None:
    class Broken(MemoryKeyStore):
        async def create(self, record: KeyRecord) -> None:
            raise KeyStoreError("down")

        replace = delete = create  # type: ignore[assignment]

    accounts = Accounts(no_window, Prices({}))
    admin = KeyAdmin(accounts)
    record, _ = await admin.create({})
    broken = KeyAdmin(accounts, Broken())
    for work in (broken.create({}), broken.delete(record.id)):
        with pytest.raises(KeyStoreError):
            await work
    assert list(accounts.directory.all()) == [record]
