"""Contents of prompts, for tests of prompts and of engines without a scheduler."""

from collections.abc import Iterable
from typing import Any

from engine.tokenizer import Tokenizer
from gateway.engines.protocol import Engine
from gateway.graph.segments import Characters, Messages, PromptContent, Segment, Text


def content_of(segment: Text | Characters | Messages) -> PromptContent:
    """Return the content of a known segment."""
    match segment:
        case Text(tokens):
            return tokens
        case Characters(text):
            return text
        case Messages():
            return segment


async def content_of_text(engine: Engine, text: str) -> Any:
    """Return the content of a text: its tokens, or the text."""
    run = engine.open_text(adds_space=False)
    pushed: Any = await run.push(text)
    rest: Any = await run.finish()
    return pushed + rest


def joined_texts(segments: Iterable[Segment], tokenizer: Tokenizer) -> list[Any]:
    """Return the segments, with joined texts instead of tokens and characters."""
    found: list[Any] = []
    for segment in segments:
        text = segment.text if isinstance(segment, Characters) else segment
        if isinstance(text, Text):
            text = tokenizer.decode(list(text.tokens), skip_special=False)
        if isinstance(text, str) and found and isinstance(found[-1], str):
            found[-1] += text
        else:
            found.append(text)
    return found
