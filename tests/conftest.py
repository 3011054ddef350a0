"""Shared fixtures and the time limits of tests. A model is loaded once per session, and only if a test needs it."""

import asyncio
import contextlib
import functools
import gc
import inspect
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path

import pytest

from engine import Engine, EngineConfig
from engine.config import default_cache
from engine.errors import CheckpointError
from engine.models.fetch import fetch
from engine.tokenizer import Tokenizer
from tests.fakes.background_process import BackgroundProcess
from tests.fakes.background_tests import BackgroundTests
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.postgres_server import PostgresServer, running_postgres
from tests.fakes.second_process import SecondProcess, append_report, is_second

SECONDS = 120.0
"""Time limit of a test."""
SLOW_SECONDS = 900.0
"""Time limit of a test with the mark `slow`."""
BACKGROUND: dict[str, Callable[[], BackgroundProcess]] = {
    "attacked": lambda: BackgroundProcess(
        *(sys.executable, "-m", "bench.hostile", "--short", "--rounds", "2", "--requests", "1000", "--json")
    ),
    "interpreted": lambda: BackgroundTests(["tests/interpreter"], TRITON_INTERPRET="1"),
}
"""Programs that run beside the tests, by the name of their fixture."""
MANY, MANY_WAITING = 1_000, 50
"""Numbers of tests, and of tests that wait, from which a second process pays."""
_SECOND = pytest.StashKey[SecondProcess]()
_STARTED = pytest.StashKey[dict[str, BackgroundProcess]]()


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
    """Give async tests their time limit."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _limited(item.obj, _limit_of(item))


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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what runs beside the tests, and order the tests so that the results of other processes are needed last.

    In a run of all tests, those that mostly wait run in a second process. What has been imported stays, so the cycle
    collector need not examine it again.
    """
    option, stash = session.config.option, session.config.stash
    if option.collectonly:
        return
    ordered = sorted(session.items, key=lambda item: item.get_closest_marker("waits") is None)
    waiting = [item for item in ordered if item.get_closest_marker("waits") is not None]
    if len(waiting) >= MANY_WAITING and len(ordered) >= MANY and not (is_second() or option.usepdb):
        with contextlib.suppress(CheckpointError):
            fetch(EngineConfig().model, Path(default_cache()))  # once, before several processes need it
        stash[_SECOND] = SecondProcess(waiting)
        ordered = [*ordered[len(waiting) :], *waiting]
    started = stash[_STARTED] = {}
    for name, start in BACKGROUND.items():
        dependent = [item for item in ordered if name in getattr(item, "fixturenames", ())]
        if dependent:
            started[name] = start()
            ordered = [item for item in ordered if item not in dependent] + dependent
    session.items[:] = ordered
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Take over the reports of a test that the second process runs."""
    second = item.config.stash.get(_SECOND, None)
    if second is None or item not in second:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in second.reports_of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Pass the report on if this is the second process."""
    report = yield
    append_report(item.config, report)
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what `pytest_collection_finish` started."""
    for process in config.stash.get(_STARTED, {}).values():
        process.end()
    if _SECOND in config.stash:
        config.stash[_SECOND].end()


@pytest.fixture(scope="session")
def interpreted(pytestconfig: pytest.Config) -> BackgroundProcess:
    """Return the background run of tests/interpreter."""
    return pytestconfig.stash[_STARTED]["interpreted"]


@pytest.fixture(scope="session")
def attacked(pytestconfig: pytest.Config) -> BackgroundProcess:
    """Return the background run of bench.hostile."""
    return pytestconfig.stash[_STARTED]["attacked"]


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
def server() -> Iterator[GatewayHarness]:
    """Yield a running server with the default model and all APIs."""
    with GatewayHarness("--kv-tokens", "32768", "--parrot-api") as server:
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
