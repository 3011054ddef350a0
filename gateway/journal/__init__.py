"""What must outlive the process: every fact of every session, in SQLite.

`records` turns a fact into a row and back, `file` owns the database, `journal` is the graph's log and owns the one
thread that writes, `replay` makes sessions of rows after a restart.
"""

from gateway.journal.file import JournalError
from gateway.journal.journal import Journal, JournalFailed

__all__ = ["Journal", "JournalError", "JournalFailed"]
