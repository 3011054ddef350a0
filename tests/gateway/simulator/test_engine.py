"""Tests of gateway/simulator/engine.py: simulated steps, prefixes and memory."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import ContextEvent, EngineLost, PrefillResult, TokenDelta, Urgency
from gateway.simulator import clock
from gateway.simulator.engine import CPU, TABLES, BadTable, Costs, SimulatedContext, SimulatedEngine, read_costs

FLAT = Costs("flat", ((1, 1.0), (1000, 1.0)), attention=0.0, step_rows=64, kv_tokens=320)


URGENT = Urgency(0.0, interactive=False)


def test_step_costs_are_interpolated() -> None:
    assert CPU.step(1, 0) == pytest.approx(0.0104)
    assert CPU.step(3, 0) == pytest.approx((0.0104 + 0.0116) / 2), "linear interpolation"
    assert CPU.step(449, 0) > CPU.step(257, 0) + (CPU.step(257, 0) - CPU.step(65, 0)) * 0.99
    assert CPU.step(1, 1000) > CPU.step(1, 0)


async def run_context(context: SimulatedContext, prompt: list[int], tokens: int) -> tuple[int, int]:
    """Return the numbers of cached prompt tokens and of generated tokens."""
    context.fill(prompt)
    cached = generated = 0
    events: list[ContextEvent] = []
    await context.generate(SamplingParams(max_tokens=tokens), events.append)
    for event in events:
        match event:
            case PrefillResult(_, cached_tokens):
                cached = cached_tokens
            case TokenDelta(piece):
                generated += piece.tokens
    context.free()
    return cached, generated


def test_contexts_share_steps_and_prefixes() -> None:
    async def work() -> tuple[list[tuple[int, int]], float, int]:
        engine = SimulatedEngine("one", FLAT)
        first = await run_context(engine.open("", URGENT), [7] * 32, 3)
        both = await asyncio.gather(
            *(run_context(engine.open("", URGENT), [7] * 32 + [index], 3) for index in range(2))
        )
        other = await run_context(engine.open("another key", URGENT), [7] * 32, 1)
        return [first, *both, other], asyncio.get_running_loop().time(), engine.load

    answers, seconds, load = clock.run(work())
    assert answers == [(0, 3), (32, 3), (32, 3), (0, 1)]
    # each step takes a second: two steps for a new prompt, one for the rest of a cached one, one for each token
    assert seconds == pytest.approx((2 + 3) + (1 + 3) + (2 + 1))
    assert load == 0


def test_the_least_recently_used_blocks_are_evicted() -> None:
    async def work() -> list[int]:
        engine = SimulatedEngine("one", FLAT)
        texts = [[index] * 160 for index in range(3)]
        return [(await run_context(engine.open("", URGENT), [*texts[index], 1], 1))[0] for index in (0, 1, 0, 2, 1, 2)]

    assert clock.run(work()) == [0, 0, 160, 0, 0, 160]


@pytest.mark.parametrize("costs", TABLES.values(), ids=TABLES)
def test_a_step_never_costs_less_for_more_rows(costs: Costs) -> None:
    for rows, seconds in costs.rows:
        assert costs.step(rows, 0) == pytest.approx(seconds), "the table itself"
    times = [costs.step(rows, 0) for rows in range(1, 2 * costs.step_rows)]
    assert times == sorted(times)
    assert costs.step(8, 1_000) == pytest.approx(costs.step(8, 0) + 1_000 * costs.attention)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[[1, 0.01], [8, 0.02]]", None),
        ("[[1, 0.01]]", "at least two rows"),
        ("[[8, 0.01], [1, 0.02]]", "increasing order"),
        ("[[1, 0.01], [1, 0.02]]", "increasing order"),
        ("5", "is not a table of costs: Expected"),
        ("[", "is not a table of costs"),
    ],
)
def test_tables_are_read_from_files(tmp_path: Path, rows: str, message: str | None) -> None:
    path = tmp_path / "costs.json"
    path.write_text(f'{{"name": "mine", "rows": {rows}, "attention": 0.0, "step_rows": 64, "kv_tokens": 320}}')
    if message is None:
        assert read_costs(path) == Costs("mine", ((1, 0.01), (8, 0.02)), 0.0, 64, 320)
    else:
        with pytest.raises(BadTable, match=message) as refusal:
            read_costs(path)
        assert str(path) in str(refusal.value)


PROMPTS = st.lists(st.tuples(st.integers(1, 100), st.integers(1, 6), st.booleans()), min_size=1, max_size=8)


@settings(max_examples=50)
@given(PROMPTS)
def test_every_context_ends_with_its_tokens(prompts: list[tuple[int, int, bool]]) -> None:
    async def work() -> tuple[list[tuple[int, int]], float, float, int]:
        engine = SimulatedEngine("one", FLAT)
        contexts = [
            engine.open("", Urgency(float(rank), interactive)) for rank, (_, _, interactive) in enumerate(prompts)
        ]
        answers = await asyncio.gather(
            *(
                run_context(context, [7] * length, tokens)
                for context, (length, tokens, _) in zip(contexts, prompts, strict=True)
            )
        )
        return list(answers), engine.busy, asyncio.get_running_loop().time(), engine.load

    answers, busy, seconds, load = clock.run(work())
    assert [generated for _, generated in answers] == [tokens for _, tokens, _ in prompts]
    assert all(cached < length for (cached, _), (length, _, _) in zip(answers, prompts, strict=True)), (
        "the last token of a prompt is never cached"
    )
    assert load == 0
    assert max(tokens for _, tokens, _ in prompts) <= busy <= seconds
    assert busy <= sum(-(-length // 16) + tokens + 1 for length, tokens, _ in prompts), "each step makes progress"


def test_prompts_without_a_generation_are_prefilled_as_far_as_whole_blocks() -> None:
    async def work() -> int:
        engine = SimulatedEngine("one", FLAT)
        context = engine.open("", URGENT)
        context.fill([7] * 40)
        await asyncio.sleep(10.0)
        assert (context.length, context.unread) == (32, 8)
        busy = engine.busy
        context.fill([8] * 7)
        await asyncio.sleep(10.0)
        assert (context.length, engine.busy) == (32, busy), "the third block is not full"
        context.fill([9])
        await asyncio.sleep(10.0)
        assert (context.length, context.unread) == (48, 0)
        _, generated = await run_context(context, [9], 3)
        return generated

    assert clock.run(work()) == 3


def test_the_more_urgent_prompt_is_prefilled_first() -> None:
    async def work() -> list[str]:
        engine, ended = SimulatedEngine("one", FLAT), list[str]()

        async def ask(name: str, token: int, rank: float) -> None:
            await run_context(engine.open("", Urgency(rank, interactive=False)), [token] * 320, 1)
            ended.append(name)

        await asyncio.gather(ask("late", 1, 9.0), ask("early", 2, 1.0))
        return ended

    assert clock.run(work()) == ["early", "late"]


def test_a_changed_rank_overtakes() -> None:
    async def work() -> list[str]:
        engine, ended = SimulatedEngine("one", FLAT), list[str]()
        contexts = {name: engine.open("", Urgency(rank, interactive=False)) for name, rank in (("a", 1.0), ("b", 2.0))}

        async def ask(name: str) -> None:
            await run_context(contexts[name], [ord(name)] * 640, 1)
            ended.append(name)

        asking = asyncio.gather(*map(ask, contexts))
        await asyncio.sleep(1.5)
        contexts["b"].rerank(Urgency(0.0, interactive=False))
        await asking
        return ended

    assert clock.run(work()) == ["b", "a"]


def test_a_freed_context_neither_generates_nor_costs_steps() -> None:
    async def work() -> None:
        engine = SimulatedEngine("one", FLAT)
        context = engine.open("", URGENT)
        context.fill([7] * 32)
        for _ in range(2):
            context.free()
        with pytest.raises(EngineLost, match="freed"):
            await context.generate(SamplingParams(), lambda event: None)
        await asyncio.sleep(10.0)
        assert (engine.busy, engine.load, engine.working) == (0.0, 0, False)

    clock.run(work())
