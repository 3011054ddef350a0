"""Tests of engine/pending_generations.py: when a step waits for grammars, and which commands it gets."""

import time
from concurrent.futures import Future
from typing import cast

import pytest

from engine import SamplingParams
from engine.grammar import Grammars, Matcher
from engine.kv.cache import KVCache
from engine.pending_generations import PendingGenerations, Start
from engine.sequence import TokenSequence


class FakeGrammars:
    """Grammars that are compiled when the test sets the result of a future."""

    def __init__(self) -> None:
        self.futures: list[Future[Matcher]] = []
        self.scopes: list[str] = []

    def compile(self, sampling: SamplingParams, scope: str, prefix: str) -> Future[Matcher]:
        self.scopes.append(scope)
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def grammars() -> FakeGrammars:
    return FakeGrammars()


@pytest.fixture
def pending(grammars: FakeGrammars) -> PendingGenerations:
    pending = PendingGenerations(cast(Grammars, grammars))
    cache = KVCache(8, 16)
    for number in (1, 2):
        sequence = TokenSequence(number, cache, f"scope {number}", 0.0, number)
        pending.add(sequence, Start(SamplingParams(regex="a"), 10 * number, 10 * number, b""))
    return pending


def test_only_compiled_grammars_are_taken(pending: PendingGenerations, grammars: FakeGrammars) -> None:
    assert (len(pending), 1 in pending, 3 in pending) == (2, True, False)
    assert grammars.scopes == ["scope 1", "scope 2"]
    assert pending.take_compiled(is_idle=False) == []
    grammars.futures[1].set_exception(ValueError("no grammar"))
    (compiled,) = pending.take_compiled(is_idle=False)
    assert (compiled.sequence.id, compiled.start.limit) == (2, 20)
    assert isinstance(compiled.matcher.exception(), ValueError)
    assert (len(pending), 1 in pending, 2 in pending) == (1, True, False)


def test_cancelled_grammar_is_not_compiled(pending: PendingGenerations, grammars: FakeGrammars) -> None:
    pending.cancel(1)
    pending.cancel(1)
    assert grammars.futures[0].cancelled()
    assert 1 not in pending
    assert pending.take_compiled(is_idle=False) == []


def test_busy_engine_waits_only_for_new_grammars(pending: PendingGenerations, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.pending_generations._FRESH_SECONDS", 0.2)
    monkeypatch.setattr("engine.pending_generations._POLL_SECONDS", 0.2)

    def duration(*, is_idle: bool) -> float:
        began = time.monotonic()
        pending.take_compiled(is_idle=is_idle)
        return time.monotonic() - began

    assert duration(is_idle=False) >= 0.2, "they have just arrived"
    with monkeypatch.context() as patch:
        patch.setattr("engine.pending_generations._FRESH_SECONDS", 3600.0)
        patch.setattr("engine.pending_generations._POLL_SECONDS", 3600.0)
        assert pending.take_compiled(is_idle=False) == [], "if it waits, the test's time limit ends it"
    assert duration(is_idle=True) >= 0.2
