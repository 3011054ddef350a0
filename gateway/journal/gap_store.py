"""Storage of the learned durations of gaps, beside the journal: its interface and the format of its rows.

A row has the latest gaps of one tenant and one set of tools, see `gateway.programs.tool_gaps`: no texts, no names of
tools.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import msgspec

from gateway.programs.tool_gaps import MAX_GAP_SECONDS, EndedGap
from gateway.programs.tool_times import MAX_AGE_SECONDS, MAX_TOOLS, MAX_TOOLS_OF_TENANT, SAMPLES

KEPT_SECONDS = 7 * 86_400.0
"""Age of a row's latest gap from which the row is deleted at the next start, in seconds. Rows that a wrong clock has
dated as much later are deleted as well."""
MAX_ROWS = MAX_TOOLS
"""Maximum number of rows, some 3 KB each."""
MAX_ROWS_OF_TENANT = MAX_TOOLS_OF_TENANT
"""Maximum number of rows of one tenant."""
_VERSION = 1
"""Version of the format of `GapRow.gaps`. Rows of other versions are ignored."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[int, list[tuple[float, float]]]).decode


class GapStoreError(Exception):
    """The database cannot be used."""


class GapRow(NamedTuple):
    """Row of the database. `updated`: end of the latest gap, in seconds of the Unix clock.

    `gaps`: JSON of the version and of the end and the duration of each gap, in seconds.
    """

    tenant: str
    word: str
    updated: float
    gaps: str


class GapStore(Protocol):
    """Database of gaps that have ended. Each method raises GapStoreError if the database cannot be used."""

    async def load(self, now: float) -> Sequence[GapRow]:
        """Create the table if there is none, delete old rows, and return all others. `now`: Unix clock, in seconds."""

    async def add(self, gaps: Sequence[EndedGap]) -> None:
        """Add gaps to the rows of their tenants and tools. Rows keep what other gateways have added.

        If this raises an error, the gaps may be stored or not; to add them again changes nothing.
        """

    async def forget(self, tenants: Sequence[str]) -> None:
        """Delete the rows of tenants, also those that other gateways have added."""


def gaps_of(rows: Iterable[GapRow]) -> tuple[list[EndedGap], int]:
    """Return the gaps of all rows, the earliest first, and the number of rows that cannot be read."""
    found: list[EndedGap] = []
    damaged = 0
    for row in rows:
        pairs = _pairs(row.gaps)
        damaged += pairs is None
        found += [EndedGap(row.tenant, row.word, seconds, ended) for ended, seconds in pairs or ()]
    return sorted(found, key=lambda gap: gap.ended), damaged


def merged_rows(gaps: Iterable[EndedGap], stored: Mapping[tuple[str, str], str], now: float) -> list[GapRow]:
    """Return the new rows of gaps, with the latest ones of both the gaps and the stored rows.

    `stored`: `GapRow.gaps` of the rows of these gaps, by tenant and word. A row that cannot be read is replaced. `now`:
    Unix time in seconds. A stored time that is ahead of it, because the clock was set back, counts as now.
    """
    rows = []
    for key, group in groupby(sorted(gaps), key=lambda gap: (gap.tenant, gap.word)):
        pairs = {(round(gap.ended, 3), round(gap.seconds, 3)) for gap in group}
        text = stored.get(key)
        if text is not None:
            pairs.update((min(ended, now), seconds) for ended, seconds in _pairs(text) or ())
        latest = sorted(pairs)[-SAMPLES:]
        updated = latest[-1][0]
        latest = [pair for pair in latest if pair[0] >= updated - MAX_AGE_SECONDS]
        rows.append(GapRow(*key, updated, _encode((_VERSION, latest)).decode()))
    return rows


def fair_share(counts: Iterable[int], total: int) -> int:
    """Return the number of rows, at least 1, that each tenant may have so that all together have at most `total`.

    `counts`: rows of each tenant. Tenants with fewer rows leave theirs to the others.
    """
    ascending = sorted(counts)
    for index, count in enumerate(ascending):
        share = total // (len(ascending) - index)
        if count > share:
            return max(1, share)
        total -= count
    return max(1, *ascending, 1)


def _pairs(text: object) -> list[tuple[float, float]] | None:
    """Return the end and the duration of each gap of a row; None if the row cannot be read."""
    try:
        version, pairs = _decode(text)  # type: ignore[arg-type]  # databases may return other types
    except (msgspec.DecodeError, TypeError, ValueError):
        return None
    if version != _VERSION or not all(0 <= seconds <= MAX_GAP_SECONDS for _, seconds in pairs):
        return None
    return pairs[-SAMPLES:]
