"""Run long tests with low priority in a process of their own."""

import sys
from collections.abc import Sequence

from tests.fakes.background_process import BackgroundProcess


class BackgroundTests(BackgroundProcess):
    """A pytest process over some tests."""

    def __init__(self, tests: Sequence[str], **environment: str) -> None:
        super().__init__(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, **environment)
