"""Fixtures of the tests that run agents. They run where MYNA_AGENTS names the folder in which npm installed them."""

import os
from pathlib import Path

import pytest

from tests.ecosystem.agents.workshop import Workshop

if "MYNA_AGENTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, Path(os.environ["MYNA_AGENTS"]).resolve() / "node_modules")
