"""Helpers of tests that generate text with any engine."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import ContextEvent, Engine, EngineContext, TokenDelta, Urgency

LONG = SamplingParams(max_tokens=400, ignore_eos=True, temperature=0.0)
URGENT = Urgency(0.0, interactive=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def stream_events(context: EngineContext, sampling: SamplingParams) -> AsyncGenerator[ContextEvent, None]:
    """Yield the events of a generation. Closing the iterator aborts it."""
    queue: asyncio.Queue[ContextEvent | None] = asyncio.Queue()
    generating = asyncio.ensure_future(context.generate(sampling, queue.put_nowait))
    generating.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield event
        generating.result()
    finally:
        generating.cancel()


async def read_events(
    engine: Engine, sampling: SamplingParams, count: int = 10**9, tokens: Sequence[int] = (1, 2, 3)
) -> list[ContextEvent]:
    """Return the first `count` events of a generation behind these tokens."""
    context = engine.open("", URGENT)
    context.fill(tokens)
    events: list[ContextEvent] = []
    try:
        async for event in stream_events(context, sampling):
            events.append(event)
            if len(events) >= count:
                break
    finally:
        context.free()
    return events


def text(events: Sequence[ContextEvent]) -> str:
    """Return the generated text."""
    return "".join(event.piece.text for event in events if isinstance(event, TokenDelta))


def token_count_of(events: Sequence[ContextEvent]) -> int:
    """Return the number of generated tokens."""
    return sum(event.piece.tokens for event in events if isinstance(event, TokenDelta))
