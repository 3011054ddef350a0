"""Shared fixtures. A model is loaded once per session, and only if a test needs it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import Engine, EngineConfig
from engine.config import default_cache
from engine.models.fetch import fetch
from engine.tokenizer import Tokenizer
from tests.aside import BackgroundTests
from tests.checkpoints import write_tiny_llama
from tests.postgres import PostgresServer, running
from tests.server import Server

_INTERPRETED = pytest.StashKey[BackgroundTests]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start tests/interpreter in the background, and order the tests so that its result is needed last.

    Tests that mostly wait come first, so that the background process has a core meanwhile.
    """
    dependent = [item for item in session.items if "interpreted" in getattr(item, "fixturenames", ())]
    if dependent and not session.config.option.collectonly:
        last = set(dependent)
        others = [item for item in session.items if item not in last]
        session.items[:] = sorted(others, key=lambda item: item.get_closest_marker("waits") is None) + dependent
        session.config.stash[_INTERPRETED] = BackgroundTests(["tests/interpreter"], TRITON_INTERPRET="1")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the background process of `pytest_collection_finish`."""
    if _INTERPRETED in config.stash:
        config.stash[_INTERPRETED].end()


@pytest.fixture(scope="session")
def interpreted(pytestconfig: pytest.Config) -> BackgroundTests:
    """Return the background run of tests/interpreter."""
    return pytestconfig.stash[_INTERPRETED]


@pytest.fixture(scope="session")
def gguf_file() -> Path:
    """Return the file of the default model. Download it if it is not in the cache."""
    return fetch(EngineConfig().model, Path(default_cache()))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Return the default model with default settings: bfloat16, and the best kernels of this machine."""
    return Engine(EngineConfig(kv_tokens=32_768))


@pytest.fixture(scope="session")
def batch_invariant(engine: Engine) -> None:
    """Skip tests that need results independent of the batch. On some machines they differ by rounding."""
    if not engine.decoder.kernels.is_batch_invariant:
        pytest.skip(f"results depend on the batch, by rounding, with these kernels: {engine.info.kernels}")


@pytest.fixture(scope="session")
def exact_engine() -> Engine:
    """Return the default model in float32."""
    return Engine(EngineConfig(kv_tokens=32_768, dtype="float32"))


@pytest.fixture(scope="session")
def tokenizer(engine: Engine) -> Tokenizer:
    """Return the default model's tokenizer."""
    return engine.tokenizer


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Yield a running server with the default model and all APIs."""
    with Server("--kv-tokens", "32768", "--parrot-api") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return a random model with a context window of 96 tokens, for tests of limits."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=96)
    return Engine(EngineConfig(model=str(folder), kv_tokens=512))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Yield a running PostgreSQL server."""
    with running() as server:
        yield server
