"""gateway/accounts/ledger/spend_log.py: rows that survive the end of the process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.accounts.ledger.spend_log import SpendLog
from tests.gateway.accounts.spends import spend


def rows(log: SpendLog) -> list[str]:
    found: list[str] = []
    while log.rotate():
        found += [row.id for row in log.read_rotated()]
        log.delete_rotated()
    return found


def test_rows_are_read_once_and_in_order(tmp_path: Path) -> None:
    log = SpendLog(tmp_path / "log")
    assert rows(log) == []
    first = spend("a", session="\u2028 ü\n", tags=("x\ny",))
    log.append(first)
    log.append(spend("b", model="\ud800"))
    assert log.rotate()
    assert next(iter(log.read_rotated())) == first._replace(tags=["x\ny"])
    log.append(spend("c"))  # arrives while the others are read
    assert rows(log) == ["a", "b", "c"]
    assert rows(log) == []
    log.close()


def test_rows_survive_sigkill(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from gateway.accounts.ledger.spend_log import SpendLog\n"
        "from tests.gateway.accounts.spends import spend\n"
        "log = SpendLog(Path(sys.argv[1]))\n"
        "for number in range(100):\n"
        "    log.append(spend(str(number)))\n"
        "    if number == 60: log.rotate()\n"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "log")], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    log = SpendLog(tmp_path / "log")
    assert rows(log) == [str(number) for number in range(100)]
    log.close()


def test_a_line_that_was_cut_off_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'["a",1000.0,"key')
    log = SpendLog(tmp_path / "log")
    log.append(spend("b"))
    log.append(spend("c"))
    assert rows(log) == ["b", "c"]
    log.close()


def test_rows_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(json.dumps(spend("old")[:14]) + "\n")
    log = SpendLog(tmp_path / "log")
    log.append(spend("new", tool_calls=1))
    assert log.rotate()
    assert [(row.id, row.tool_calls) for row in log.read_rotated()] == [("old", 0), ("new", 1)]
    log.close()


def test_damaged_rows_are_skipped_with_one_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = [
        spend("huge", prompt=2**63),
        spend("negative", completion=-1),
        spend("never", ended=1e999),
        spend("free", cost=float("nan")),
    ]
    lines = [json.dumps(row) for row in damaged] + ["garbage \udcff"] * 1_000 + [json.dumps(spend("good"))]
    (tmp_path / "log").write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    log = SpendLog(tmp_path / "log")
    assert rows(log) == ["good"]
    (record,) = caplog.records
    assert "1004 rows" in record.message
    log.close()


def test_two_processes_have_files_of_their_own(tmp_path: Path) -> None:
    first, second = SpendLog(tmp_path / "log"), SpendLog(tmp_path / "log")
    first.append(spend("a"))
    second.append(spend("b"))
    assert rows(first) == ["a"]
    assert rows(second) == ["b"]
    second.append(spend("c"))
    first.close()
    second.close()
    first, second = SpendLog(tmp_path / "log"), SpendLog(tmp_path / "log")  # the next start finds what is left
    assert rows(second) == ["c"]
    first.close()
    second.close()


def test_rows_wait_while_the_file_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = SpendLog(tmp_path / "log")
    full = os.open("/dev/full", os.O_WRONLY)
    usable = os.dup(log._file)
    os.dup2(full, log._file)
    log.append(spend("a"))
    log.append(spend("b"))
    assert "cannot be written" in caplog.text
    os.dup2(usable, log._file)
    log.append(spend("c"))
    assert rows(log) == ["a", "b", "c"]
    log.close()
    os.close(full)
    os.close(usable)
