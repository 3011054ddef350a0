"""How tests ask an engine, whatever it is."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from gateway.engines.protocol import Delta, Engine, EngineContext, Told, Urgency
from gateway.graph.call import Sampling

LONG = Sampling(max_tokens=400, ignore_eos=True, temperature=0.0)
SOON = Urgency(0.0, watched=True)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for it."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def coming(context: EngineContext, sampling: Sampling) -> AsyncGenerator[Told, None]:
    """What comes of a context, one after another; whoever reads no further ends it."""
    queue: asyncio.Queue[Told | None] = asyncio.Queue()
    generating = asyncio.ensure_future(context.generate(sampling, queue.put_nowait))
    generating.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (event := await queue.get()) is not None:
            yield event
        generating.result()
    finally:
        generating.cancel()


async def read(engine: Engine, sampling: Sampling, count: int = 10**9, tokens: Sequence[int] = (1, 2, 3)) -> list[Told]:
    """What comes of a context with these tokens, as far as `count` events."""
    context = engine.open("", SOON)
    context.fill(tokens)
    events: list[Told] = []
    try:
        async for event in coming(context, sampling):
            events.append(event)
            if len(events) >= count:
                break
    finally:
        context.free()
    return events


def text(events: Sequence[Told]) -> str:
    """What was generated."""
    return "".join(event.piece.text for event in events if isinstance(event, Delta))


def generated(events: Sequence[Told]) -> int:
    """How many tokens were."""
    return sum(event.piece.tokens for event in events if isinstance(event, Delta))
