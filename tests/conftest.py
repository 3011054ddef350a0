"""What tests share. A model is loaded once a session, and only if a test asks for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import Engine, EngineConfig
from engine.config import default_cache
from engine.models.fetch import fetch
from engine.tokenizer import Tokenizer
from tests.aside import Aside
from tests.checkpoints import write_tiny_llama
from tests.postgres import Postgres, running
from tests.server import Server

_INTERPRETED = pytest.StashKey[Aside]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Whoever takes long and can run beside the others begins at once, and is asked last; tests that mostly wait come
    first, so that it has a core meanwhile."""
    asks = [item for item in session.items if "interpreted" in getattr(item, "fixturenames", ())]
    if asks and not session.config.option.collectonly:
        asked = set(asks)
        others = [item for item in session.items if item not in asked]
        session.items[:] = sorted(others, key=lambda item: item.get_closest_marker("waits") is None) + asks
        session.config.stash[_INTERPRETED] = Aside(["tests/interpreter"], TRITON_INTERPRET="1")


def pytest_unconfigure(config: pytest.Config) -> None:
    """See `pytest_collection_finish`."""
    if _INTERPRETED in config.stash:
        config.stash[_INTERPRETED].end()


@pytest.fixture(scope="session")
def interpreted(pytestconfig: pytest.Config) -> Aside:
    """The run of tests/interpreter."""
    return pytestconfig.stash[_INTERPRETED]


@pytest.fixture(scope="session")
def gguf_file() -> Path:
    """The default model, fetched if it is not in the cache."""
    return fetch(EngineConfig().model, Path(default_cache()))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The default model as it is served by default: bfloat16, the best kernels of this machine."""
    return Engine(EngineConfig(kv_tokens=32_768))


@pytest.fixture(scope="session")
def batch_invariant(engine: Engine) -> None:
    """For tests of what holds bit for bit in any company; on some machines it holds only to rounding."""
    if not engine.decoder.batch_invariant:
        pytest.skip(f"rows depend on their neighbours, to rounding, with the kernels here: {engine.info.kernels}")


@pytest.fixture(scope="session")
def exact_engine() -> Engine:
    """The default model in float32."""
    return Engine(EngineConfig(kv_tokens=32_768, dtype="float32"))


@pytest.fixture(scope="session")
def tokenizer(engine: Engine) -> Tokenizer:
    """The default model's."""
    return engine.tokenizer


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running server with the default model, and every API that it can have."""
    with Server("--kv-tokens", "32768", "--parrot-api") as server:
        yield server


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A random model with a window of 96 tokens, for what is about bounds and not about text."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=96)
    return Engine(EngineConfig(model=str(folder), kv_tokens=512))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    with running() as server:
        yield server
