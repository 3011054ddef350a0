"""What is made of an answer before it becomes a value."""

import asyncio

import regex  # like re, but it can be told to give up: patterns come from clients

from gateway.graph.call import Transform
from gateway.graph.errors import UnresolvedPath
from gateway.graph.references import Reference, resolve

_REGEX_SECONDS = 1.0


class TransformFailed(Exception):
    """The answer holds nothing of what the transform looks for."""


async def apply(transform: Transform, text: str) -> str:
    """The value. Raises TransformFailed."""
    if transform.strip:
        text = text.strip()
    if transform.line is not None:
        lines = text.splitlines()
        if not -len(lines) <= transform.line < len(lines):
            raise TransformFailed(f"the answer has no line {transform.line}, only {len(lines)} lines")
        text = lines[transform.line]
    if transform.regex is not None:
        text = await asyncio.to_thread(_match, transform.regex, transform.group, text)
    if transform.json is not None:
        try:
            text = resolve(text, Reference("answer", tuple(transform.json.split("."))))
        except UnresolvedPath as error:
            raise TransformFailed(f"{error}; it is {_short(text)}") from error
    return text


def _match(pattern: str, group: int, text: str) -> str:
    try:
        match = regex.search(pattern, text, timeout=_REGEX_SECONDS, concurrent=True)
    except TimeoutError:
        raise TransformFailed(f"looking for {pattern!r} took over {_REGEX_SECONDS:g} s") from None
    found = None if match is None else match.group(group)
    if found is None:
        raise TransformFailed(f"the answer has nothing that {pattern!r} matches: it is {_short(text)}")
    return str(found)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
