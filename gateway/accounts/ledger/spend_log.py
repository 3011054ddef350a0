"""A file with the rows of the ledger that its database does not have yet.

The row of a call is written before the call's answer ends, so that the spend of every answer survives the end of the
process, even by SIGKILL. It is not synced to the disk: a crash of the machine may lose the rows of the last seconds.
"""

import fcntl
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.accounts.ledger.spend import CallSpend, storable_row, storable_text

log = logging.getLogger("myna.accounts")

_MAX_LOGS = 64
"""Maximum number of processes that use the same path; each has a file of its own."""
_MAX_KEPT = 100_000
"""Maximum number of rows that are kept in memory while the file cannot be written."""

_MAX_COUNT = 1 << 62
"""Number of tokens that no call can have."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CallSpend).decode


class SpendLog:
    """Owner of the file. `append` and `rotate` are fast, and called on the event loop; `read_rotated` blocks."""

    def __init__(self, path: Path) -> None:
        """Open the file `path`, or one beside it if another process uses that one. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock, self._path = _lock_first_free(path)
        self._rotated = self._path.with_name(f"{self._path.name}.1")
        self._file = self._open()
        if os.fstat(self._file).st_size:
            self._write(b"\n")  # a line that was cut off must not swallow the next row
        self._unwritten: list[bytes] = []
        """Lines that could not be written."""

    @property
    def has_unwritten(self) -> bool:
        """Whether rows are in memory alone, because the file cannot be written."""
        return bool(self._unwritten)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def append(self, spend: CallSpend) -> None:
        """Write a row. If that fails, the row is kept in memory and written later."""
        try:
            line = _encode(spend) + b"\n"
        except UnicodeEncodeError:
            tags = [storable_text(tag) for tag in spend.tags]
            line = _encode(CallSpend(*storable_row(spend))._replace(tags=tags)) + b"\n"
        if self._unwritten or not self._write(line):
            if len(self._unwritten) >= _MAX_KEPT:
                log.error("the spend of call %s is lost: %s cannot be written", spend.id, self._path)
                return
            self._unwritten.append(line)

    def _write(self, line: bytes) -> bool:
        try:
            return os.write(self._file, line) == len(line)
        except OSError as error:
            log.error("%s cannot be written: %s", self._path, error.strerror)
            return False

    def rotate(self) -> bool:
        """Move the rows to the file of `read_rotated`, unless it still has earlier rows. Return whether it has any."""
        if self._unwritten and self._write(b"\n" + b"".join(self._unwritten)):  # after a line that was cut off
            self._unwritten.clear()
        if self._rotated.exists():
            return True
        if os.fstat(self._file).st_size == 0:
            return False
        self._path.rename(self._rotated)
        old, self._file = self._file, self._open()
        os.close(old)
        return True

    def read_rotated(self) -> Iterator[CallSpend]:
        """Yield the rows that are set apart. Lines that were cut off are skipped: they are written again."""
        damaged = 0
        with self._rotated.open("rb") as lines:
            for line in lines:
                if line.strip():
                    try:
                        row = _decode(line)
                    except (msgspec.DecodeError, UnicodeDecodeError):
                        damaged += 1
                        continue
                    if _is_storable(row):
                        yield row
                    else:
                        damaged += 1
        if damaged:
            log.warning("%d rows of %s cannot be read; they were cut off or are damaged", damaged, self._rotated)

    def delete_rotated(self) -> None:
        """Delete the rows that are set apart, once the database has them."""
        self._rotated.unlink()

    def close(self) -> None:
        """Close the file. Rows in it are read after the next start."""
        os.close(self._file)
        os.close(self._lock)


def _is_storable(row: CallSpend) -> bool:
    """Return whether a database can store the numbers of a row. One that cannot be stored would block all others."""
    counts = (row.prompt, row.cached, row.completion, row.reasoning, row.lost, row.tool_calls)
    return all(0 <= count < _MAX_COUNT for count in counts) and math.isfinite(row.ended) and math.isfinite(row.cost)


def _lock_first_free(path: Path) -> tuple[int, Path]:
    """Return a locked file, and the path that it stands for: `path`, or one with a number. Raises OSError."""
    for number in range(1, _MAX_LOGS + 1):
        name = path if number == 1 else path.with_name(f"{path.name}-{number}")
        lock = os.open(name.with_name(f"{name.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return lock, name
    raise OSError(f"{path} and {_MAX_LOGS - 1} files beside it are in use")
