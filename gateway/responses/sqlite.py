"""Response store in SQLite: in the journal's file, or in memory if there is none.

Concurrent operations share one transaction, so that the disk is written once for all of them.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from gateway.responses.store import (
    CONVERSATION_BYTES,
    ResponseStoreError,
    StoredResponse,
    StoredTurn,
    check_conversation_size,
    hidden_response,
)

log = logging.getLogger("myna.archive")

_Result = TypeVar("_Result")
_Work = Callable[[sqlite3.Connection], Any]

_CREATE = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    found INTEGER NOT NULL,
    at REAL NOT NULL,
    before INTEGER,
    followers INTEGER NOT NULL DEFAULT 0,
    session TEXT,
    input TEXT NOT NULL,
    answer TEXT NOT NULL,
    begun TEXT NOT NULL,
    runs_in TEXT,
    size INTEGER NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS responses_found ON responses (tenant, id) WHERE found;
CREATE INDEX IF NOT EXISTS responses_oldest ON responses (number) WHERE found AND begun = '';
CREATE INDEX IF NOT EXISTS responses_of_tenant ON responses (tenant, size) WHERE found AND begun = '';
CREATE INDEX IF NOT EXISTS responses_session ON responses (tenant, session) WHERE session IS NOT NULL;
CREATE INDEX IF NOT EXISTS responses_unfinished ON responses (tenant, runs_in) WHERE begun <> '';
CREATE TABLE IF NOT EXISTS responses_bytes (total INTEGER NOT NULL);
INSERT INTO responses_bytes SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM responses_bytes);
CREATE TRIGGER IF NOT EXISTS responses_more AFTER INSERT ON responses
    BEGIN UPDATE responses_bytes SET total = total + new.size; END;
CREATE TRIGGER IF NOT EXISTS responses_less AFTER DELETE ON responses
    BEGIN UPDATE responses_bytes SET total = total - old.size; END;
CREATE TRIGGER IF NOT EXISTS responses_other AFTER UPDATE OF size ON responses
    BEGIN UPDATE responses_bytes SET total = total + new.size - old.size; END;
"""
"""`found`: whether the response can be found by its id. Otherwise it exists only for its `followers`, the responses
that continue it. Numbers grow, so a response has a higher number than those before it. `begun` is empty once it has
ended."""

_COLUMNS = "tenant, id, input, answer, session, begun, runs_in"
_BATCH = 16
"""Number of responses that are deleted before the tenant that holds most is determined again."""
_TENANT_BATCH = 200
"""Number of responses of a deleted tenant that are deleted at a time, so that no other operation waits long."""
_LARGEST_TENANT = """
SELECT tenant FROM responses WHERE found AND begun = '' GROUP BY tenant ORDER BY sum(size) DESC LIMIT 1
"""
_CHAIN_BYTES = 2 * CONVERSATION_BYTES
"""Limit of the row sizes of a conversation, in bytes. Row sizes count more than the texts of the conversation."""
_CHAIN = """
WITH RECURSIVE turns (number, before, input, answer, session, ended, held) AS (
    SELECT number, before, input, answer, session, begun = '', size FROM responses WHERE tenant = ? AND id = ? AND found
    UNION ALL
    SELECT r.number, r.before, r.input, r.answer, r.session, TRUE, turns.held + r.size
    FROM responses AS r JOIN turns ON r.number = turns.before WHERE turns.held <= ?
)
SELECT input, answer, session, ended FROM turns ORDER BY number
"""


class Database(Protocol):
    """A connection, and the only thread that uses it."""

    @property
    def name(self) -> str:
        """Name for error messages."""

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> "asyncio.Future[_Result]":
        """Call `work` with the connection, in the thread. No transaction is open."""

    async def close(self) -> None:
        """Close the connection."""


class MemoryDatabase:
    """A database in memory. It is lost when the process ends."""

    name = "in memory"

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._thread = ThreadPoolExecutor(1, "responses")

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> "asyncio.Future[_Result]":
        """Call `work` with the connection. See `Database.run`."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)

    async def close(self) -> None:
        """Close the connection and end the thread. See `Database.close`."""
        await self.run(sqlite3.Connection.close)
        self._thread.shutdown()


class SqliteResponseStore:
    """Response store in SQLite. Owner of the operations that are not done yet."""

    def __init__(self, database: Database, max_bytes: int, ttl: float, *, owns: bool) -> None:
        """`max_bytes`: maximum size of the responses. `ttl`: time to live of a response, in seconds. `owns`: whether
        `close` closes the database."""
        self.is_enabled = max_bytes > 0
        self._database = database
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._owns = owns
        self._pending: list[tuple[_Work, asyncio.Future[Any]]] = []
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._has_tables = False
        self._is_failing = False
        """Whether the last transaction failed."""
        self._closed = False

    async def add(self, response: StoredResponse, previous_turns: Sequence[StoredTurn] = ()) -> None:
        """Store a response. See `ResponseStore.add`."""
        created = time.time()

        def add(connection: sqlite3.Connection) -> None:
            before = None
            if response.previous_id is not None:
                before = _number(connection, response.tenant, response.previous_id)
            if before is None:
                for turn in previous_turns:
                    before = _insert(connection, hidden_response(response.tenant, turn), before, created)
            _insert(connection, response, before, created, found=True)
            self._make_room(connection)

        await self._submit(add)

    async def complete(self, response: StoredResponse) -> bool:
        """Replace an unfinished response. See `ResponseStore.complete`."""

        def complete(connection: sqlite3.Connection) -> bool:
            update = connection.execute(
                "UPDATE responses SET input = ?, answer = ?, begun = '', runs_in = NULL, size = ? "
                "WHERE tenant = ? AND id = ? AND found AND begun <> ''",
                (response.input.decode(), response.answer.decode(), response.size, response.tenant, response.id),
            )
            self._make_room(connection)
            return update.rowcount == 1

        return await self._submit(complete)

    async def replace(self, before: StoredResponse, after: StoredResponse) -> bool:
        """Replace an ended response. See `ResponseStore.replace`."""
        query = "SELECT number FROM responses WHERE tenant = ? AND id = ? AND found AND input = ? AND answer = ?"
        values = (before.tenant, before.id, before.input.decode(), before.answer.decode())
        created = time.time()

        def replace(connection: sqlite3.Connection) -> bool:
            row = connection.execute(query, values).fetchone()
            if row is None:
                return False
            _delete(connection, row[0])
            _insert(connection, after, None, created, found=True)
            self._make_room(connection)
            return True

        return await self._submit(replace)

    async def find(self, tenant: str, id: str) -> StoredResponse | None:
        """Return a response. See `ResponseStore.find`."""
        query = f"SELECT {_COLUMNS} FROM responses WHERE tenant = ? AND id = ? AND found"
        found = await self._submit(lambda connection: connection.execute(query, (tenant, id)).fetchone())
        return None if found is None else _stored_response(found)

    async def load_conversation(self, tenant: str, id: str) -> Sequence[StoredTurn]:
        """Return a response and those before it. See `ResponseStore.load_conversation`."""
        rows = await self._submit(lambda connection: connection.execute(_CHAIN, (tenant, id, _CHAIN_BYTES)).fetchall())
        return check_conversation_size(
            [
                StoredTurn(input.encode(), answer.encode(), session, bool(ended))
                for input, answer, session, ended in rows
            ]
        )

    async def list_unfinished(self, tenant: str | None = None, session: str | None = None) -> Sequence[StoredResponse]:
        """Return unfinished responses. See `ResponseStore.list_unfinished`."""
        query = f"SELECT {_COLUMNS} FROM responses WHERE begun <> ''"
        values: tuple[Any, ...] = ()
        if tenant is not None:
            query, values = f"{query} AND tenant = ? AND runs_in = ?", (tenant, session)
        rows = await self._submit(lambda connection: connection.execute(f"{query} ORDER BY number", values).fetchall())
        return [_stored_response(row) for row in rows]

    async def delete(self, tenant: str, id: str) -> bool:
        """Delete a response. See `ResponseStore.delete`."""

        def delete(connection: sqlite3.Connection) -> bool:
            number = _number(connection, tenant, id)
            if number is not None:
                _delete(connection, number)
            return number is not None

        return await self._submit(delete)

    async def delete_sessions(self, sessions: Sequence[tuple[str, str]]) -> None:
        """Delete the responses of sessions. See `ResponseStore.delete_sessions`."""
        query = "SELECT number FROM responses WHERE tenant = ? AND session = ? AND found ORDER BY number DESC"

        def delete(connection: sqlite3.Connection) -> None:
            for session in sessions:
                for (number,) in connection.execute(query, session).fetchall():
                    _delete(connection, number)

        await self._submit(delete)

    async def delete_tenant(self, tenant: str) -> None:
        """Delete the responses of a tenant. See `ResponseStore.delete_tenant`."""
        query = "SELECT number FROM responses WHERE tenant = ? AND found ORDER BY number DESC LIMIT ?"

        def delete(connection: sqlite3.Connection) -> int:
            numbers = connection.execute(query, (tenant, _TENANT_BATCH)).fetchall()
            for (number,) in numbers:
                _delete(connection, number)
            return len(numbers)

        while await self._submit(delete) == _TENANT_BATCH:
            pass

    async def enforce_retention(self) -> None:
        """Delete old responses. See `ResponseStore.enforce_retention`."""
        query = "SELECT number FROM responses WHERE found AND begun = '' AND at < ? ORDER BY number LIMIT 1000"
        oldest = time.time() - self._ttl

        def delete(connection: sqlite3.Connection) -> None:
            for (number,) in connection.execute(query, (oldest,)).fetchall():
                _delete(connection, number)

        await self._submit(delete)

    async def close(self) -> None:
        """Finish all operations, and close an owned database. See `ResponseStore.close`. Later operations never return,
        because they would not be stored."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        if self._owns:
            await self._database.close()

    # operations

    async def _submit(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run an operation in the next transaction, and return its result. Raises ResponseStoreError."""
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        if self._closed:
            return await future
        self._pending.append((work, future))
        if not self._busy:
            self._start_batch()
        return await future

    def _start_batch(self) -> None:
        batch, self._pending = self._pending, []
        self._busy = bool(batch)
        if not batch:
            self._idle.set()
            return
        self._idle.clear()
        works, waiting = [work for work, _ in batch], [future for _, future in batch]
        results = self._database.run(lambda connection: self._transact(connection, works))
        results.add_done_callback(lambda results: self._batch_done(waiting, results))

    def _transact(self, connection: sqlite3.Connection, batch: Sequence[_Work]) -> list[Any]:
        """Run a batch of operations in one transaction. If that fails, run each in its own, so that none fails because
        of another. Return for each its result, or the error that it raised."""
        try:
            return self._run_batch(connection, batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [result for work in batch for result in self._transact(connection, [work])]

    def _run_batch(self, connection: sqlite3.Connection, batch: Sequence[_Work]) -> list[Any]:
        try:
            if not self._has_tables:
                connection.executescript(f"BEGIN IMMEDIATE; {_CREATE} COMMIT;")
                self._has_tables = True
            connection.execute("BEGIN IMMEDIATE")
            results = [work(connection) for work in batch]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # the connection is shared with the journal's commits
                connection.execute("ROLLBACK")
            raise
        return results

    def _batch_done(self, waiting: Sequence["asyncio.Future[Any]"], results: "asyncio.Future[list[Any]]") -> None:
        error = results.exception()
        outcomes: Sequence[Any] = [error] * len(waiting) if error is not None else results.result()
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failed and not self._is_failing:
            log.error("responses cannot be stored or read (%s): %s", self._database.name, failed[0])
        self._is_failing = bool(failed)
        for future, outcome in zip(waiting, outcomes, strict=True):
            if future.done():
                continue  # the calling task was cancelled
            if isinstance(outcome, BaseException):
                future.set_exception(ResponseStoreError(f"responses cannot be stored or read now: {outcome}"))
            else:
                future.set_result(outcome)
        self._start_batch()

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Delete ended responses until the others fit: always the oldest of the tenant that uses most.

        So one tenant cannot push out the responses of the others.
        """
        oldest = "SELECT number FROM responses WHERE found AND begun = '' AND tenant = ? ORDER BY number LIMIT ?"
        while connection.execute("SELECT total FROM responses_bytes").fetchone()[0] > self._max_bytes:
            largest = connection.execute(_LARGEST_TENANT).fetchone()
            if largest is None:
                return
            for (number,) in connection.execute(oldest, (largest[0], _BATCH)).fetchall():
                _delete(connection, number)
                if connection.execute("SELECT total FROM responses_bytes").fetchone()[0] <= self._max_bytes:
                    return


def _insert(
    connection: sqlite3.Connection, response: StoredResponse, before: int | None, created: float, *, found: bool = False
) -> int:
    """Insert a response, count it among those that continue the previous response, and return its number."""
    number = connection.execute(
        "INSERT INTO responses (tenant, id, found, at, before, session, input, answer, begun, runs_in, size) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(response.tenant, response.id, found, created, before, response.session),
            *(response.input.decode(), response.answer.decode(), response.resume_data.decode(), response.call_session),
            response.size,
        ),
    ).lastrowid
    assert number is not None
    connection.execute("UPDATE responses SET followers = followers + 1 WHERE number = ?", (before,))
    return number


def _number(connection: sqlite3.Connection, tenant: str, id: str) -> int | None:
    query = "SELECT number FROM responses WHERE tenant = ? AND id = ? AND found"
    found = connection.execute(query, (tenant, id)).fetchone()
    return None if found is None else int(found[0])


def _delete(connection: sqlite3.Connection, number: int) -> None:
    """Mark a response as deleted. Delete its row if it has no followers, and then the rows before it that have no other
    follower and are marked as well."""
    connection.execute("UPDATE responses SET found = 0 WHERE number = ?", (number,))
    query = "SELECT before FROM responses WHERE number = ? AND NOT found AND NOT followers"
    current: int | None = number
    while (row := connection.execute(query, (current,)).fetchone()) is not None:
        connection.execute("DELETE FROM responses WHERE number = ?", (current,))
        (current,) = row
        connection.execute("UPDATE responses SET followers = followers - 1 WHERE number = ?", (current,))


def _stored_response(row: tuple[Any, ...]) -> StoredResponse:
    tenant, id, input, answer, session, resume_data, call_session = row
    return StoredResponse(
        tenant,
        id,
        input.encode(),
        answer.encode(),
        session=session,
        resume_data=resume_data.encode(),
        call_session=call_session,
    )
