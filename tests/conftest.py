"""Shared fixtures and the time limits of tests. A model is loaded once per session, and only if a test needs it."""

import asyncio
import contextlib
import functools
import gc
import inspect
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from engine import Engine, EngineConfig
from engine.config import default_cache
from engine.errors import CheckpointError
from engine.models.fetch import fetch
from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.postgres_server import PostgresServer, running_postgres

settings.register_profile(  # a busy machine must not fail a test of properties
    "myna",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("MYNA_TEST_REPRODUCIBLE") == "1",
)
settings.load_profile("myna")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs like this, and servers that the tests start would inherit it. A server does not
    # stop on a signal that was ignored at its start, but the tests expect that it stops on SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SECONDS = 120.0
"""Time limit of a test."""
SLOW_SECONDS = 900.0
"""Time limit of a test with the mark `slow`."""


def _limited(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    """Return an async test that is cancelled, and fails, after its time limit."""

    @functools.wraps(test)
    async def run(*arguments: object, **fixtures: object) -> None:
        async with asyncio.timeout(seconds):
            await test(*arguments, **fixtures)

    return run


def _limit_of(item: pytest.Item) -> float:
    return SECONDS if item.get_closest_marker("slow") is None else SLOW_SECONDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give async tests their time limit. Let slow files begin first, then those that mostly wait; quiet ones last."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _limited(item.obj, _limit_of(item))
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    waiting = {item.path for item in items if item.get_closest_marker("waits") is not None}
    quiet = {item.path for item in items if item.get_closest_marker("quiet") is not None}
    items.sort(key=lambda item: (item.path in quiet, item.path not in slow, item.path not in waiting))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Raise TimeoutError in a test after its time limit. `faulthandler_timeout` ends what this cannot interrupt.

    In an async test the limit is a few seconds later, because an error from a signal's handler would leave the event
    loop of all tests in an undefined state.
    """

    def fail(number: int, frame: object) -> None:
        raise TimeoutError(f"the test takes longer than {seconds:g} s")

    seconds = _limit_of(item) + (10.0 if "asyncio" in item.keywords else 0.0)
    earlier = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fetch the model once, before several workers of pytest-xdist need it."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under `nohup`: the servers that tests start would ignore it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if getattr(session.config.option, "numprocesses", None) and not hasattr(session.config, "workerinput"):
        with contextlib.suppress(CheckpointError):  # the tests that need it report this
            fetch(EngineConfig().model, Path(default_cache()))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep imported objects from the cycle collector: they stay."""
    gc.collect()
    gc.freeze()


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
    """Return the default model in float32. Its kernels are slow: short steps would take most of the time."""
    return Engine(EngineConfig(kv_tokens=32_768, dtype="float32", step_seconds=10.0))


@pytest.fixture(scope="session")
def tokenizer(engine: Engine) -> Tokenizer:
    """Return the default model's tokenizer."""
    return engine.tokenizer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayHarness]:
    """Yield a running server with the default model, all APIs, and an MCP server of the reference set."""
    tools = tmp_path_factory.mktemp("tools") / "tools.json"
    command = [sys.executable, "-m", "mcp_server_time"]
    tools.write_text(json.dumps({"servers": {"time": {"command": command, "tools": ["*"]}}}))
    with GatewayHarness("--kv-tokens", "32768", "--parrot-api", "--tool-servers", str(tools)) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return a random model with a context window of 96 tokens, for tests of limits."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=96)
    return Engine(EngineConfig(model=str(folder), kv_tokens=512))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Yield a running PostgreSQL server."""
    with running_postgres() as server:
        yield server
