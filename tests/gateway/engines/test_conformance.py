"""gateway/engines/base.py: what every kind of engine has to do, asked of each."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.config import EngineConfig
from gateway.engines.base import ContextRefused, Delta, Engine, Filled, Urgency
from gateway.engines.embedded import EmbeddedEngine
from gateway.engines.tcp import TcpEngine
from gateway.graph.call import Sampling
from tests.checkpoints import write_tiny_llama
from tests.gateway.engines.asking import LONG, SOON, read, text
from tests.server import EngineElsewhere

GREEDY = Sampling(max_tokens=12, ignore_eos=True, temperature=0.0)


@pytest.fixture(scope="module", params=["embedded", "over TCP"])
async def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    folder: Path = write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=512)
    if request.param == "embedded":
        embedded = EmbeddedEngine("embedded", EngineConfig(model=str(folder), kv_tokens=2048), lambda: None)
        await embedded.start()
        yield embedded
        await embedded.close()
        return
    options = ("--model", str(folder), "--kv-tokens", "2048")
    with await asyncio.to_thread(EngineElsewhere, *options) as elsewhere:
        called = TcpEngine("called", "127.0.0.1", elsewhere.port, elsewhere.TOKEN, lambda: None)
        await called.start()
        yield called
        await called.close()


async def test_a_context_is_filled_and_goes_on(engine: Engine) -> None:
    filled, *deltas = await read(engine, Sampling(max_tokens=5, ignore_eos=True))
    assert filled == Filled(tokens=3, cached=0, missed={"part_of_a_block": 3})
    assert [delta.finish for delta in deltas if isinstance(delta, Delta)] == [None] * 4 + ["length"]
    assert engine.load == 0


async def test_what_was_filled_before_is_found_again(engine: Engine) -> None:
    tokens = [7 + at % 200 for at in range(40)]
    first, again = [await read(engine, GREEDY, tokens=tokens) for _ in range(2)]
    assert isinstance(first[0], Filled)
    assert isinstance(again[0], Filled)
    assert (first[0].cached, again[0].cached) == (0, 32)
    assert text(first) == text(again)


async def test_scopes_share_nothing(engine: Engine) -> None:
    tokens = [9 + at % 190 for at in range(40)]
    cached = []
    for scope in ("a", "b", "a"):
        context = engine.open(scope, SOON)
        context.fill(tokens)
        event = await anext(context.generate(GREEDY))
        assert isinstance(event, Filled)
        cached.append(event.cached)
        context.free()
    assert cached == [0, 0, 32]


async def test_filled_in_pieces_is_filled_at_once(engine: Engine) -> None:
    tokens = [11 + at % 180 for at in range(50)]
    whole = await read(engine, GREEDY, tokens=tokens)
    context = engine.open("", SOON)
    for part in (tokens[:1], tokens[1:30], [], tokens[30:]):
        context.fill(part)
    pieces = [event async for event in context.generate(GREEDY)]
    assert text(pieces) == text(whole)
    context.fill([5, 6])
    more = [event async for event in context.generate(GREEDY)]
    assert len(more) == 13, "what was generated stays, and more goes behind it"
    context.free()


async def test_a_stop_string_ends_it_and_is_not_shown(engine: Engine) -> None:
    whole = text(await read(engine, GREEDY))
    stop = whole[4:6]
    events = await read(engine, Sampling(max_tokens=12, ignore_eos=True, temperature=0.0, stop=(stop,)))
    assert text(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], Delta)
    assert events[-1].finish == "stop"


async def test_log_probabilities_are_told(engine: Engine) -> None:
    events = await read(engine, Sampling(max_tokens=3, ignore_eos=True, logprobs=True, top_logprobs=2))
    entries = [entry for event in events if isinstance(event, Delta) for entry in event.piece.logprobs]
    assert len(entries) == 3


async def test_a_refusal_is_raised_where_it_is_awaited(engine: Engine) -> None:
    context = engine.open("", SOON)
    context.fill([1] * 600)
    with pytest.raises(ContextRefused, match="600 tokens do not fit") as refusal:
        await anext(context.generate(Sampling()))
    assert refusal.value.code == "context_length_exceeded"
    context.free()
    with pytest.raises(ContextRefused) as refusal:
        await read(engine, Sampling(logit_bias={99_999: 1.0}))
    assert refusal.value.code == "bad_token"
    assert await read(engine, Sampling(max_tokens=1)), "nobody else is harmed"


async def test_a_context_freed_early_frees_the_engine(engine: Engine) -> None:
    await read(engine, LONG, count=3)
    # had the freed one gone on, this would have waited for its 400 tokens
    events = await read(engine, Sampling(max_tokens=2, ignore_eos=True))
    assert len(events) == 3
    assert engine.load == 0


async def test_many_at_once_get_what_each_alone_gets(engine: Engine) -> None:
    prompts = [[20 + at, 21, 22 + at] for at in range(12)]
    alone = [text(await read(engine, GREEDY, tokens=tokens)) for tokens in prompts]
    together = await asyncio.gather(*(read(engine, GREEDY, tokens=tokens) for tokens in prompts))
    assert [text(events) for events in together] == alone
    assert len(set(alone)) > 6


async def test_it_takes_another_urgency(engine: Engine) -> None:
    context = engine.open("", SOON)
    context.fill([1, 2])
    context.rerank(Urgency(5.0, watched=False))
    assert len([event async for event in context.generate(GREEDY)]) == 13
    context.free()
    context.free()
    assert engine.load == 0


async def test_its_pace_is_known(engine: Engine) -> None:
    await read(engine, GREEDY)
    assert engine.pace is not None
    assert 0 < engine.pace.row_seconds < 1
    assert 0 < engine.pace.step_seconds < 10


async def test_values_are_encoded_as_text(engine: Engine) -> None:
    tokens = await engine.encode("</s>")
    assert len(tokens) == 4, "no control token, whatever it says"
    assert list(await engine.encode("x" * 5000)) == list(await engine.encode("x")) * 5000
    settled, length = engine.encode_settled("some text that grows")
    assert (await engine.encode("some text that grows and"))[: len(settled)] == settled
    assert length <= 20
