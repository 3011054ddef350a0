"""The ledger: one row for each call that has ended, with its tokens and its cost."""

import asyncio
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from gateway.accounts.keys.virtual_key import key_id_of
from gateway.accounts.ledger.spend import CallSpend
from gateway.accounts.ledger.spend_log import SpendLog
from gateway.accounts.ledger.usage_query import LedgerError, UsageQuery, UsageSum
from gateway.accounts.prices import Prices
from gateway.errors import RequestError
from gateway.graph.call import Call, CallState
from gateway.graph.forms.form import ToolRun
from gateway.graph.ids import new_id
from gateway.runtime.fair_gate import FairGate

log = logging.getLogger("myna.accounts")

_FLUSH_SECONDS = 0.5
"""Interval in which new rows are stored in the database, in seconds."""
_MAX_PAUSE_SECONDS = 30.0
"""Longest pause while the database cannot be used, in seconds."""
_MAX_ROWS = 100_000
"""Maximum number of rows in memory, without a file for them."""
_TOTALS = "totals"
"""Name under which `totals` takes turns. It is no tenant."""
_MAX_QUERIES = 16
"""Maximum number of queries of one tenant that are not answered."""
_DELETED_ROWS = 5_000
"""Number of old rows that are deleted at a time."""
_DELETE_SECONDS = 60.0
"""Interval in which old rows are deleted, in seconds."""


class LedgerStorage(Protocol):
    """Database of the ledger. Each method raises LedgerError if the database cannot be used."""

    async def insert(self, rows: Iterable[CallSpend]) -> None:
        """Store rows, except those whose ids the database has. If this raises an error, it may have stored a part."""

    async def delete_before(self, when: float, limit: int) -> int:
        """Delete at most `limit` rows of calls that ended before `when`. Return their number."""

    async def sums(self, query: UsageQuery) -> list[UsageSum]:
        """Answer a query."""

    async def totals(self, key: str, since: float) -> tuple[int, float]:
        """Return the tokens and the cost of a key's calls that ended since a time of the Unix clock."""

    async def close(self) -> None:
        """Close the database."""


class Ledger:
    """Owner of the rows that the database does not have yet.

    With a file, a row is in it before `observe` returns; see `SpendLog`. Rows move from there into the database about
    twice a second, and stay in the file while the database cannot be used.
    """

    def __init__(
        self,
        storage: LedgerStorage,
        prices: Prices,
        file: Path | None,
        ttl: float,
    ) -> None:
        """`file`: see `SpendLog`; None keeps new rows in memory. `ttl`: seconds for which rows are kept. Raises
        OSError."""
        self.prices = prices
        self._storage = storage
        self._log = None if file is None else SpendLog(file)
        self._recent: list[CallSpend] = []
        """New rows, if there is no file."""
        self._ttl = ttl
        self.tags_of: Callable[[str], Sequence[str]] = lambda tenant: ()
        """Returns the tags of a tenant's API key."""
        self._flushing = asyncio.Lock()
        self._queries: Counter[str] = Counter()
        """Number of queries that are not answered, by tenant."""
        self._turns = FairGate(rests=False)
        """Gate of the queries: one at a time, in turns between tenants, because a query may take seconds."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to store rows. Those of the process before this one come first."""
        self._task = asyncio.create_task(self._run(), name="ledger")

    def observe(self, call: Call) -> CallSpend:
        """Record a call of a model or a tool that has ended, and return its row. Call it once for each call, before its
        answer ends."""
        prompt, cached, completion = call.spent_tokens
        tenant, form = call.session.tenant, call.spec.form
        spend = CallSpend(
            call.id,
            call.times.finished or time.time(),
            key_id_of(tenant),
            call.session.id or (call.program.program_id if call.program is not None else ""),
            call.model or call.spec.model,
            f"{form.server}/{form.name}" if isinstance(form, ToolRun) else call.engine or "",
            call.state,
            prompt,
            cached,
            completion,
            min(call.usage.reasoning, completion),
            call.lost_tokens,
            self.prices.cost_of_call(call),
            self.tags_of(tenant),
            int(call.has_run_tool),
        )
        self.record(spend)
        return spend

    def record_request(
        self, tenant: str, model: str, engine: str, tokens: int, state: CallState = CallState.DONE
    ) -> CallSpend:
        """Record a request that is no call, such as embeddings, and return its row. `tokens`: of its input."""
        cost = self.prices.of(model).cost(tokens, 0, 0)
        spend = CallSpend(
            f"req_{new_id(24)}",
            time.time(),
            key_id_of(tenant),
            "",
            model,
            engine,
            state,
            tokens,
            0,
            0,
            0,
            0,
            cost,
            self.tags_of(tenant),
        )
        self.record(spend)
        return spend

    def record(self, spend: CallSpend) -> None:
        """Record a row."""
        if self._log is not None:
            self._log.append(spend)
        elif len(self._recent) < _MAX_ROWS:
            self._recent.append(spend)

    async def sums(self, query: UsageQuery, tenant: str = "") -> list[UsageSum]:
        """Answer a query, with all calls that have ended. `tenant`: the one that asks, for its turn. Raises
        LedgerError, and RequestError 429 if the tenant has too many queries."""
        if self._queries[tenant] >= _MAX_QUERIES:
            message = f"{_MAX_QUERIES} queries of this API key are not answered, the maximum; try again later"
            raise RequestError(429, message, code="overloaded")
        self._queries[tenant] += 1
        try:
            async with self._turns.turn(tenant):
                await self.flush()
                return await self._storage.sums(query)
        finally:
            self._queries[tenant] -= 1
            if not self._queries[tenant]:
                del self._queries[tenant]

    async def sums_of(self, tenant: str, query: UsageQuery) -> list[UsageSum]:
        """Answer a query of a tenant, which sees its own calls only. See `sums`."""
        own = key_id_of(tenant)
        return [] if query.key not in (None, own) else await self.sums(dataclasses.replace(query, key=own), tenant)

    async def totals(self, key: str, since: float) -> tuple[int, float]:
        """Return the tokens and the cost of a key's calls that ended since a time of the Unix clock. Raises
        LedgerError."""
        async with self._turns.turn(_TOTALS):
            await self.flush()
            return await self._storage.totals(key, since)

    async def flush(self) -> None:
        """Store all rows in the database. Raises LedgerError."""
        async with self._flushing:
            if self._log is None:
                recent, self._recent = self._recent, []
                try:
                    await self._storage.insert(recent)
                except BaseException:
                    self._recent = recent + self._recent
                    raise
                return
            try:
                while self._log.rotate():
                    await self._storage.insert(self._log.read_rotated())
                    self._log.delete_rotated()
            except OSError as error:
                raise LedgerError(f"the ledger's file cannot be used: {error}") from error
            if self._log.has_unwritten:  # sums without these rows would be wrong
                raise LedgerError("the ledger's file cannot be written; new rows are in memory")

    async def _run(self) -> None:
        pause, last_deletion = _FLUSH_SECONDS, -_DELETE_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self.flush()
                if time.monotonic() - last_deletion > _DELETE_SECONDS:
                    last_deletion = time.monotonic()
                    if await self._storage.delete_before(time.time() - self._ttl, _DELETED_ROWS) == _DELETED_ROWS:
                        last_deletion = -_DELETE_SECONDS  # there are more
                pause = _FLUSH_SECONDS
            except LedgerError as error:
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                log.error("%s; the next attempt is in %.0f s", error, pause)
            except Exception:  # otherwise no row would ever be stored again
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                log.exception("the ledger cannot store its rows; the next attempt is in %.0f s", pause)

    async def close(self) -> None:
        """Store the last rows, and close the database. Rows that cannot be stored stay in the file."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        try:
            await self.flush()
        except LedgerError as error:
            log.error("the last rows of the ledger are stored after the next start: %s", error)
        await self._storage.close()
        if self._log is not None:
            self._log.close()
