"""The response store: responses that clients can refer to by id, in the journal's file, in PostgreSQL, or in memory."""

from gateway.responses.postgres import PostgresResponseStore
from gateway.responses.sqlite import Database, MemoryDatabase, SqliteResponseStore
from gateway.responses.store import CONVERSATION_BYTES, ResponseStore, ResponseStoreError, StoredResponse, StoredTurn

__all__ = [
    "CONVERSATION_BYTES",
    "Database",
    "MemoryDatabase",
    "PostgresResponseStore",
    "ResponseStore",
    "ResponseStoreError",
    "SqliteResponseStore",
    "StoredResponse",
    "StoredTurn",
]
