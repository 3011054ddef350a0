"""What must outlive the process: every fact of every session, in SQLite or PostgreSQL.

`records` turns a fact into a row and back, `journal` is the graph's log and hands what it is told to a `storage`, which
is a `file` of one gateway's own or `postgres`, and `replay` makes sessions of rows after a restart.
"""

from gateway.journal.journal import Journal, JournalFailed
from gateway.journal.postgres import PostgresStorage
from gateway.journal.sqlite import FileStorage
from gateway.journal.storage import JournalError, LeaseLost

__all__ = ["FileStorage", "Journal", "JournalError", "JournalFailed", "LeaseLost", "PostgresStorage"]
