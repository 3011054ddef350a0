"""Transforms: steps from a model's answer to the value of a variable."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from gateway.graph.errors import UnresolvedPath
from gateway.graph.references import Reference, resolve
from gateway.graph.transform import Transform
from gateway.runtime import regex as patterns

_searchers = ThreadPoolExecutor(1, "transform")
"""Thread for regular expression searches, one at a time: a search may take a second and cannot be stopped."""


class TransformFailed(Exception):
    """The answer does not contain the text that the transform selects."""


async def apply(transform: Transform, text: str) -> str:
    """Return the value that the transform makes of the text. Raises TransformFailed if a step finds nothing."""
    if transform.strip:
        text = text.strip()
    if transform.line is not None:
        lines = text.splitlines()
        if not -len(lines) <= transform.line < len(lines):
            raise TransformFailed(f"the answer has no line {transform.line}, only {len(lines)} lines")
        text = lines[transform.line]
    if transform.regex is not None:
        text = await _search(transform.regex, transform.group, text)
    if transform.json is not None:
        try:
            text = resolve(text, Reference("answer", tuple(transform.json.split("."))))
        except UnresolvedPath as error:
            raise TransformFailed(f"{error}; it is {_short(text)}") from error
    return text


async def search(regex: str, group: int, text: str) -> str | None:
    """Return the group of the first match; None if there is no match. Raises TransformFailed if the pattern cannot be
    searched in this text."""
    try:
        pattern = patterns.compiled(regex)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_searchers, patterns.search, pattern, group, text)
    except patterns.BadPattern as error:
        raise TransformFailed(str(error)) from None


async def _search(regex: str, group: int, text: str) -> str:
    """Return the group of the first match. Raises TransformFailed if there is no match."""
    found = await search(regex, group, text)
    if found is None:
        raise TransformFailed(f"group {group} of {regex!r} matches nothing in the answer: {_short(text)}")
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
