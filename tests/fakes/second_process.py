"""Run a part of the tests in a second pytest process, and take over its reports."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "MYNA_TEST_REPORTS"
"""Environment variable of the second process: file to which it appends its reports, a line of JSON for each."""
_POLL_SECONDS = 0.05
_STOP_SECONDS = 40


class SecondProcess:
    """A pytest process over some tests of this run. A report of it counts as a report of this run."""

    def __init__(self, tests: Sequence[pytest.Item]) -> None:
        self._tests = {test.nodeid for test in tests}
        self._folder = tempfile.TemporaryDirectory(prefix="myna-tests-")
        self._reports: dict[str, list[Any]] = defaultdict(list)
        """Serialized reports by test: of its setup, its call and its teardown."""
        reports = Path(self._folder.name, "reports")
        reports.touch()
        self._lines = reports.open()
        self._rest = ""
        """Beginning of a line that is not complete yet."""
        self._output = Path(self._folder.name, "output")
        arguments = Path(self._folder.name, "tests")
        arguments.write_text("\n".join(test.nodeid for test in tests))
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"@{arguments}"],
                env={**os.environ, "PYTEST_ADDOPTS": "", VARIABLE: str(reports)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __contains__(self, test: pytest.Item) -> bool:
        return test.nodeid in self._tests

    def reports_of(self, test: pytest.Item) -> list[pytest.TestReport]:
        """Wait until the test has ended, and return its reports; a failed one if the process ended before the test."""
        while not self._read(test.nodeid):
            if self._process.poll() is not None and not self._read(test.nodeid):
                message = f"the second process ended before this test: {self._output.read_text()[-4000:]}"
                return [pytest.TestReport(test.nodeid, test.location, {}, "failed", message, "call")]
            time.sleep(_POLL_SECONDS)
        return [
            test.config.hook.pytest_report_from_serializable(config=test.config, data=data)
            for data in self._reports[test.nodeid]
        ]

    def _read(self, test: str) -> bool:
        """Read new reports. Return whether the test has ended."""
        *lines, self._rest = (self._rest + self._lines.read()).split("\n")
        for line in lines:
            data = json.loads(line)
            for name in ("longrepr", "location"):  # JSON has no tuples, and pytest reads them as such
                data[name] = tuple(data[name]) if isinstance(data[name], list) else data[name]
            self._reports[data["nodeid"]].append(data)
        return any(data["when"] == "teardown" for data in self._reports[test])

    def end(self) -> None:
        """Stop the process if it runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # pytest then stops the servers of its tests
        try:
            self._process.wait(_STOP_SECONDS)
        finally:
            self._process.kill()
            self._lines.close()
            self._folder.cleanup()


def append_report(config: pytest.Config, report: pytest.TestReport) -> None:
    """Append a report to the file of the second process. Do nothing in another process."""
    if is_second():
        data = config.hook.pytest_report_to_serializable(config=config, report=report)
        with Path(os.environ[VARIABLE]).open("a") as reports:
            reports.write(json.dumps(data) + "\n")


def is_second() -> bool:
    """Return whether this is the second process."""
    return VARIABLE in os.environ
