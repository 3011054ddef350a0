"""Fixtures of tests that run only in the environment of scripts/test-ecosystem, which starts the server."""

import os

import pytest

MODEL = "SmolLM2-135M-Instruct"

if "MYNA_ECOSYSTEM" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def base_url() -> str:
    return os.environ["OPENAI_BASE_URL"]
