"""Responses that clients may come back to, by their ids: in the journal's file, in PostgreSQL, or in memory."""

from gateway.responses.postgres import PostgresArchive
from gateway.responses.sqlite import Database, MemoryDatabase, SqliteArchive
from gateway.responses.store import Archive, Archived, ArchiveFailed, Told

__all__ = [
    "Archive",
    "ArchiveFailed",
    "Archived",
    "Database",
    "MemoryDatabase",
    "PostgresArchive",
    "SqliteArchive",
    "Told",
]
