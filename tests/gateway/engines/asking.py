"""How tests ask an engine, whatever it is."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from gateway.engines.protocol import ContextEvent, Engine, EngineContext, TokenDelta, Urgency
from gateway.graph.call import SamplingParams

LONG = SamplingParams(max_tokens=400, ignore_eos=True, temperature=0.0)
SOON = Urgency(0.0, interactive=True)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for it."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def coming(context: EngineContext, sampling: SamplingParams) -> AsyncGenerator[ContextEvent, None]:
    """What comes of a context, one after another; whoever reads no further ends it."""
    queue: asyncio.Queue[ContextEvent | None] = asyncio.Queue()
    generating = asyncio.ensure_future(context.generate(sampling, queue.put_nowait))
    generating.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield event
        generating.result()
    finally:
        generating.cancel()


async def read(
    engine: Engine, sampling: SamplingParams, count: int = 10**9, tokens: Sequence[int] = (1, 2, 3)
) -> list[ContextEvent]:
    """What comes of a context with these tokens, as far as `count` events."""
    context = engine.open("", SOON)
    context.fill(tokens)
    events: list[ContextEvent] = []
    try:
        async for event in coming(context, sampling):
            events.append(event)
            if len(events) >= count:
                break
    finally:
        context.free()
    return events


def text(events: Sequence[ContextEvent]) -> str:
    """What was generated."""
    return "".join(event.piece.text for event in events if isinstance(event, TokenDelta))


def generated(events: Sequence[ContextEvent]) -> int:
    """How many tokens were."""
    return sum(event.piece.tokens for event in events if isinstance(event, TokenDelta))
