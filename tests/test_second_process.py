"""tests/fakes/second_process.py: reports of another process are reports of this one."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes.second_process import SecondProcess

pytestmark = pytest.mark.waits

FILE = "tests/scripts/test_check_tests.py"


def item(config: pytest.Config, name: str) -> Any:
    return SimpleNamespace(nodeid=f"{FILE}::{name}", location=(FILE, 0, name), config=config)


def test_reports_are_taken_over(pytestconfig: pytest.Config) -> None:
    passing = item(pytestconfig, "test_a_mirror_has_no_problems")
    second = SecondProcess([passing])
    try:
        reports = second.reports_of(passing)
        assert [(report.when, report.outcome) for report in reports] == [
            ("setup", "passed"),
            ("call", "passed"),
            ("teardown", "passed"),
        ]
        assert all(report.nodeid == passing.nodeid for report in reports)
        assert passing in second
        assert item(pytestconfig, "another") not in second
    finally:
        second.end()


def test_a_process_that_ends_too_early_fails_its_tests(pytestconfig: pytest.Config) -> None:
    missing = item(pytestconfig, "test_that_does_not_exist")
    second = SecondProcess([missing])
    try:
        (report,) = second.reports_of(missing)
        assert (report.outcome, report.when) == ("failed", "call")
        assert "ended before this test" in str(report.longrepr)
        assert "not found" in str(report.longrepr), "the output of the process says why"
    finally:
        second.end()
