"""Responses in SQLite: in the journal's file, or in memory where there is none.

What many ask for at once is done in one transaction, so that it is written to the disk once.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from gateway.responses.store import CONVERSATION_BYTES, ResponseStoreError, StoredResponse, Told, check_size, hidden

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
"""`found`: whether it can be; else it is there for `followers`, the responses that went on with it. Numbers rise, and
so whatever came before has a lower one. `begun` is empty once it has ended."""

_COLUMNS = "tenant, id, input, answer, session, begun, runs_in"
_AT_ONCE = 16
"""Number of responses that are deleted before the tenant that holds most is determined again."""
_GREEDIEST = """
SELECT tenant FROM responses WHERE found AND begun = '' GROUP BY tenant ORDER BY sum(size) DESC LIMIT 1
"""
_CHAIN_BYTES = 2 * CONVERSATION_BYTES
"""Sizes of rows count more than the texts that a conversation is made of."""
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
    """A connection, and the one thread that uses it."""

    @property
    def name(self) -> str:
        """For complaints."""

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> "asyncio.Future[_Result]":
        """What the work makes of the connection, with no transaction open."""

    async def close(self) -> None:
        """Gives it back."""


class MemoryDatabase:
    """A `Database` that ends with the process."""

    name = "in memory"

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._thread = ThreadPoolExecutor(1, "archive")

    def run(self, work: Callable[[sqlite3.Connection], _Result]) -> "asyncio.Future[_Result]":
        """See `Database`."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)

    async def close(self) -> None:
        """See `Database`."""
        await self.run(sqlite3.Connection.close)
        self._thread.shutdown()


class SqliteResponseStore:
    """An `ResponseStore`. Owner of what is asked for and not done yet."""

    def __init__(self, database: Database, max_bytes: int, ttl: float, *, owns: bool) -> None:
        """`max_bytes`: of responses that are kept. `ttl`: seconds for which one is. `owns`: whether the database is
        closed with it."""
        self.keeps = max_bytes > 0
        self._database = database
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._owns = owns
        self._pending: list[tuple[_Work, asyncio.Future[Any]]] = []
        self._busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._made = False
        self._fails = False
        """Whether the last transaction did."""
        self._closed = False

    async def keep(self, response: StoredResponse, earlier: Sequence[Told] = ()) -> None:
        """See `ResponseStore`."""
        at = time.time()

        def keep(connection: sqlite3.Connection) -> None:
            before = None if response.before is None else _number(connection, response.tenant, response.before)
            if before is None:
                for told in earlier:
                    before = _insert(connection, hidden(response.tenant, told), before, at)
            _insert(connection, response, before, at, found=True)
            self._make_room(connection)

        await self._do(keep)

    async def end(self, response: StoredResponse) -> bool:
        """See `ResponseStore`."""

        def end(connection: sqlite3.Connection) -> bool:
            told = connection.execute(
                "UPDATE responses SET input = ?, answer = ?, begun = '', runs_in = NULL, size = ? "
                "WHERE tenant = ? AND id = ? AND found AND begun <> ''",
                (response.input.decode(), response.answer.decode(), response.size, response.tenant, response.id),
            )
            self._make_room(connection)
            return told.rowcount == 1

        return await self._do(end)

    async def find(self, tenant: str, id: str) -> StoredResponse | None:
        """See `ResponseStore`."""
        query = f"SELECT {_COLUMNS} FROM responses WHERE tenant = ? AND id = ? AND found"
        found = await self._do(lambda connection: connection.execute(query, (tenant, id)).fetchone())
        return None if found is None else _archived(found)

    async def conversation(self, tenant: str, id: str) -> Sequence[Told]:
        """See `ResponseStore`."""
        rows = await self._do(lambda connection: connection.execute(_CHAIN, (tenant, id, _CHAIN_BYTES)).fetchall())
        return check_size(
            [Told(input.encode(), answer.encode(), session, bool(e)) for input, answer, session, e in rows]
        )

    async def unfinished(self, tenant: str | None = None, session: str | None = None) -> Sequence[StoredResponse]:
        """See `ResponseStore`."""
        query = f"SELECT {_COLUMNS} FROM responses WHERE begun <> ''"
        values: tuple[Any, ...] = ()
        if tenant is not None:
            query, values = f"{query} AND tenant = ? AND runs_in = ?", (tenant, session)
        rows = await self._do(lambda connection: connection.execute(f"{query} ORDER BY number", values).fetchall())
        return [_archived(row) for row in rows]

    async def forget(self, tenant: str, id: str) -> bool:
        """See `ResponseStore`."""

        def forget(connection: sqlite3.Connection) -> bool:
            number = _number(connection, tenant, id)
            if number is not None:
                _forget(connection, number)
            return number is not None

        return await self._do(forget)

    async def forget_sessions(self, sessions: Sequence[tuple[str, str]]) -> None:
        """See `ResponseStore`."""
        query = "SELECT number FROM responses WHERE tenant = ? AND session = ? AND found ORDER BY number DESC"

        def forget(connection: sqlite3.Connection) -> None:
            for session in sessions:
                for (number,) in connection.execute(query, session).fetchall():
                    _forget(connection, number)

        await self._do(forget)

    async def tidy(self) -> None:
        """See `ResponseStore`."""
        query = "SELECT number FROM responses WHERE found AND begun = '' AND at < ? ORDER BY number LIMIT 1000"
        oldest = time.time() - self._ttl

        def forget(connection: sqlite3.Connection) -> None:
            for (number,) in connection.execute(query, (oldest,)).fetchall():
                _forget(connection, number)

        await self._do(forget)

    async def close(self) -> None:
        """See `ResponseStore`. What is asked for from here on is not answered: after the next start it has not
        happened."""
        if self._closed:
            return
        self._closed = True
        await self._idle.wait()
        if self._owns:
            await self._database.close()

    # the one way into the database

    async def _do(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Does it together with what others ask for meanwhile, all of it or nothing. Raises ResponseStoreError."""
        done: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        if self._closed:
            return await done
        self._pending.append((work, done))
        if not self._busy:
            self._begin()
        return await done

    def _begin(self) -> None:
        batch, self._pending = self._pending, []
        self._busy = bool(batch)
        if not batch:
            self._idle.set()
            return
        self._idle.clear()
        works, waiting = [work for work, _ in batch], [done for _, done in batch]
        results = self._database.run(lambda connection: self._transact(connection, works))
        results.add_done_callback(lambda results: self._landed(waiting, results))

    def _transact(self, connection: sqlite3.Connection, batch: Sequence[_Work]) -> list[Any]:
        """Do a batch of work in one transaction. If that fails, do each in its own, so that none fails because of
        another. Return for each its result, or the error that it raised."""
        try:
            return self._together(connection, batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [result for work in batch for result in self._transact(connection, [work])]

    def _together(self, connection: sqlite3.Connection, batch: Sequence[_Work]) -> list[Any]:
        try:
            if not self._made:
                connection.executescript(f"BEGIN IMMEDIATE; {_CREATE} COMMIT;")
                self._made = True
            connection.execute("BEGIN IMMEDIATE")
            results = [work(connection) for work in batch]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # the journal's commits go through the same connection
                connection.execute("ROLLBACK")
            raise
        return results

    def _landed(self, waiting: Sequence["asyncio.Future[Any]"], results: "asyncio.Future[list[Any]]") -> None:
        error = results.exception()
        ends: Sequence[Any] = [error] * len(waiting) if error is not None else results.result()
        failed = [end for end in ends if isinstance(end, BaseException)]
        if failed and not self._fails:
            log.error("responses cannot be kept or read (%s): %s", self._database.name, failed[0])
        self._fails = bool(failed)
        for done, end in zip(waiting, ends, strict=True):
            if done.done():
                continue  # the caller no longer waits
            if isinstance(end, BaseException):
                done.set_exception(ResponseStoreError(f"responses cannot be kept or read now: {end}"))
            else:
                done.set_result(end)
        self._begin()

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Delete ended responses until the others fit: always the oldest of the tenant that holds most.

        So one tenant cannot push out the responses of the others.
        """
        oldest = "SELECT number FROM responses WHERE found AND begun = '' AND tenant = ? ORDER BY number LIMIT ?"
        while connection.execute("SELECT total FROM responses_bytes").fetchone()[0] > self._max_bytes:
            greediest = connection.execute(_GREEDIEST).fetchone()
            if greediest is None:
                return
            for (number,) in connection.execute(oldest, (greediest[0], _AT_ONCE)).fetchall():
                _forget(connection, number)
                if connection.execute("SELECT total FROM responses_bytes").fetchone()[0] <= self._max_bytes:
                    return


def _insert(
    connection: sqlite3.Connection, response: StoredResponse, before: int | None, at: float, *, found: bool = False
) -> int:
    """Its number. What came before has one follower more."""
    number = connection.execute(
        "INSERT INTO responses (tenant, id, found, at, before, session, input, answer, begun, runs_in, size) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(response.tenant, response.id, found, at, before, response.session),
            *(response.input.decode(), response.answer.decode(), response.begun.decode(), response.runs_in),
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


def _forget(connection: sqlite3.Connection, number: int) -> None:
    """It can be found no longer. If nobody has gone on with it, it goes, and what only it went on with goes as well."""
    connection.execute("UPDATE responses SET found = 0 WHERE number = ?", (number,))
    query = "SELECT before FROM responses WHERE number = ? AND NOT found AND NOT followers"
    at: int | None = number
    while (gone := connection.execute(query, (at,)).fetchone()) is not None:
        connection.execute("DELETE FROM responses WHERE number = ?", (at,))
        (at,) = gone
        connection.execute("UPDATE responses SET followers = followers - 1 WHERE number = ?", (at,))


def _archived(row: tuple[Any, ...]) -> StoredResponse:
    tenant, id, input, answer, session, begun, runs_in = row
    return StoredResponse(
        tenant, id, input.encode(), answer.encode(), session=session, begun=begun.encode(), runs_in=runs_in
    )
