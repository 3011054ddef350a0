"""Open the storage of sessions and responses that the settings name."""

import asyncio
import os
import sys

from gateway.accounts.keys.key_store import KeyStore, MemoryKeyStore
from gateway.accounts.keys.postgres_key_store import PostgresKeyStore
from gateway.accounts.keys.sqlite_key_store import SqliteKeyStore
from gateway.accounts.ledger.ledger import Ledger, LedgerStorage
from gateway.accounts.ledger.postgres_ledger import PostgresLedger
from gateway.accounts.ledger.sqlite_ledger import SqliteLedger
from gateway.accounts.ledger.usage_query import LedgerError
from gateway.accounts.limits.shared_usage import SharedUsage
from gateway.app import session_limits
from gateway.config.settings import ServeSettings
from gateway.graph.session import Session
from gateway.graph.session_store import SessionStore
from gateway.journal import FileStorage, Journal, JournalError, PostgresStorage
from gateway.journal.gap_store import GapStore
from gateway.journal.postgres_gap_store import PostgresGapStore
from gateway.journal.sqlite_gap_store import SqliteGapStore
from gateway.responses import (
    MemoryDatabase,
    PostgresResponseStore,
    ResponseStore,
    ResponseStoreError,
    SqliteResponseStore,
)

JournalStorage = FileStorage | PostgresStorage


async def open_journal_storage(settings: ServeSettings) -> JournalStorage | None:
    """Return the storage of the journal; None if the settings name none. Raises JournalError if it cannot be used."""
    url, path = settings.journal_url(), settings.journal_file()
    if url is not None:
        storage = PostgresStorage(url, settings.lease, _stop_at_once)
        await storage.start()
        return storage
    return None if path is None else await asyncio.to_thread(FileStorage, path)


async def open_response_store(settings: ServeSettings, storage: JournalStorage | None) -> ResponseStore:
    """Return the store of responses: in the journal's storage, or in memory without one. Raises JournalError if it
    cannot be used."""
    limits = (settings.max_kept_bytes, settings.response_ttl)
    if isinstance(storage, PostgresStorage):
        try:
            return await PostgresResponseStore.open(storage, *limits)
        except ResponseStoreError as error:
            raise JournalError(f"the journal at {storage.name} cannot be used: {error}") from error
    return SqliteResponseStore(storage or MemoryDatabase(), *limits, owns=storage is None)


async def open_ledger(settings: ServeSettings, storage: JournalStorage | None) -> Ledger | None:
    """Return the ledger, if the settings ask for one: in PostgreSQL with the journal, else in a file beside it. Raises
    JournalError if it cannot be used."""
    if not settings.records_spend:
        return None
    database, file = settings.ledger_files()
    try:
        if isinstance(storage, PostgresStorage):
            ledger_storage: LedgerStorage = await PostgresLedger.open(storage)
        else:
            ledger_storage = await asyncio.to_thread(SqliteLedger, database)
        return Ledger(ledger_storage, settings.prices(), file, settings.ledger_ttl)
    except (LedgerError, OSError) as error:
        raise JournalError(f"the ledger cannot be used: {error}") from error


def open_key_store(storage: JournalStorage | None) -> KeyStore:
    """Return the storage of virtual keys: in the journal's storage, or in memory without one."""
    if isinstance(storage, PostgresStorage):
        return PostgresKeyStore(storage)
    return MemoryKeyStore() if storage is None else SqliteKeyStore(storage)


def open_gap_store(storage: JournalStorage | None) -> GapStore | None:
    """Return the storage of learned durations of tools: in the journal's storage; None without one."""
    if isinstance(storage, PostgresStorage):
        return PostgresGapStore(storage)
    return None if storage is None else SqliteGapStore(storage)


async def open_shared_usage(storage: JournalStorage | None) -> SharedUsage | None:
    """Return what all gateways have used, if several share the journal. Raises KeyStoreError."""
    if not isinstance(storage, PostgresStorage):
        return None
    usage = SharedUsage(storage)
    await usage.create_tables()
    return usage


def restore_sessions(
    settings: ServeSettings, store: SessionStore, storage: JournalStorage | None, journal: Journal | None
) -> list[Session]:
    """Return the sessions of the process before this one, and add them to the store. Raises JournalError if they cannot
    be read.

    In PostgreSQL, sessions belong to a member of the cluster; `Membership` takes those over one by one.
    """
    if journal is None or not isinstance(storage, FileStorage):
        return []
    for tenant, id in storage.expired():
        store.remember(tenant, id)
    sessions = journal.restore(storage.rows(), session_limits(settings))
    for session in sessions:
        store.add(session)
    return sessions


def _stop_at_once() -> None:
    """End the process: other gateways continue its sessions, so this one must send nothing more about them."""
    print(
        "myna: other gateways have marked this one as dead and taken over its sessions; exiting: start it again",
        file=sys.stderr,
    )
    sys.stderr.flush()
    os._exit(1)
