"""gateway/server/storage.py: where sessions and responses are stored."""

from pathlib import Path

import pytest

from gateway.config.settings import ServeSettings
from gateway.graph.session import SessionLimits
from gateway.graph.session_store import SessionStore
from gateway.journal import FileStorage, Journal, JournalError, PostgresStorage
from gateway.responses import PostgresResponseStore, SqliteResponseStore, StoredResponse
from gateway.server.storage import open_journal_storage, open_response_store, restore_sessions
from tests.fakes.postgres_server import PostgresServer

RESPONSE = StoredResponse("t", "r", b'"in"', b'"out"')


def empty_store(journal: Journal | None = None) -> SessionStore:
    more = {} if journal is None else {"sink": journal}
    return SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100, **more)  # type: ignore[arg-type]


async def test_without_a_journal_responses_are_in_memory() -> None:
    settings = ServeSettings(journal="memory")
    assert await open_journal_storage(settings) is None
    store = await open_response_store(settings, None)
    await store.add(RESPONSE)
    assert await store.find("t", "r") == RESPONSE
    await store.close()
    assert restore_sessions(settings, empty_store(), None, None) == []


async def test_a_file_has_sessions_expired_ids_and_responses(tmp_path: Path) -> None:
    settings = ServeSettings(journal=str(tmp_path / "j"))
    for start in range(2):
        storage = await open_journal_storage(settings)
        assert isinstance(storage, FileStorage)
        journal = Journal(storage)
        responses = await open_response_store(settings, storage)
        assert isinstance(responses, SqliteResponseStore)
        sessions = empty_store(journal)
        restored = restore_sessions(settings, sessions, storage, journal)
        if start == 0:
            assert restored == []
            sessions.create("t", "kept")
            sessions.delete(sessions.create("t", "old"), expired=True)
            await journal.flush()
            await responses.add(RESPONSE)
        else:
            assert [session.id for session in restored] == ["kept"]
            assert sessions.all() == restored
            with pytest.raises(Exception, match="session 'old' has expired"):
                sessions.get("t", "old")
            assert await responses.find("t", "r") == RESPONSE
        await responses.close()
        await journal.close()


async def test_a_journal_that_cannot_be_opened_is_a_journal_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(JournalError, match="Is a directory"):
        await open_journal_storage(ServeSettings(journal=str(tmp_path / "folder")))


async def test_a_database(postgres: PostgresServer) -> None:
    settings = ServeSettings(journal=postgres.database(), advertise="http://a:1")
    storage = await open_journal_storage(settings)
    assert isinstance(storage, PostgresStorage)
    journal = Journal(storage)
    store = await open_response_store(settings, storage)
    assert isinstance(store, PostgresResponseStore)
    await store.add(RESPONSE)
    assert await store.find("t", "r") == RESPONSE
    assert restore_sessions(settings, empty_store(journal), storage, journal) == [], "members take them over later"
    await storage.close()
    with pytest.raises(JournalError, match="cannot be used"):
        await open_response_store(settings, storage)
