"""Responses that clients may come back to, by their ids: in the journal's file, in PostgreSQL, or in memory."""

from gateway.archive.archive import Archive, Archived, ArchiveFailed, Told
from gateway.archive.file import Database, MemoryDatabase, SqliteArchive
from gateway.archive.postgres import PostgresArchive

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
