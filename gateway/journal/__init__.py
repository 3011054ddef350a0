"""The journal: a write-ahead log of the facts of all sessions, in SQLite or PostgreSQL.

`records` turns facts into rows and back. `journal` implements the graph's log: it writes facts to a `storage`, which is
a `sqlite` file of one gateway, or a `postgres` database. `replay` restores sessions from rows after a restart.
`gap_store` stores in the same database what the gateway has learned about the durations of tools.
"""

from gateway.journal.journal import Journal, JournalFailed
from gateway.journal.postgres import PostgresStorage
from gateway.journal.sqlite import FileStorage
from gateway.journal.storage import JournalError, LeaseLost

__all__ = ["FileStorage", "Journal", "JournalError", "JournalFailed", "LeaseLost", "PostgresStorage"]
