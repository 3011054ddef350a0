"""Run tests/interpreter in a process in which Triton interprets its kernels."""

import pytest

from tests.fakes.background_tests import BackgroundTests


@pytest.mark.slow
def test_interpreter_suite_passes(interpreted: BackgroundTests) -> None:
    status, output = interpreted.wait(900)
    assert status == 0, output[-4000:]
    assert " passed" in output
