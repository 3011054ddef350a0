"""References in the arguments of a tool: in all strings of a JSON value, except keys of objects."""

import re
from collections.abc import Callable, Container, Iterator
from typing import Any

from gateway.graph.references import Reference, parse

_INDEX = re.compile(r"\[(\d+)\]")

Path = tuple[str | int, ...]
"""Path of a value: keys of objects and indexes of lists."""


def strings_of(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield the strings of a JSON value with their paths, keys of objects left out."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings_of(inner, (*path, index))


def replace_strings(value: Any, replace: Callable[[str, Path], Any], path: Path = ()) -> Any:
    """Return a JSON value in which each string is replaced by what `replace` returns for it and its path."""
    if isinstance(value, str):
        return replace(value, path)
    if isinstance(value, dict):
        return {key: replace_strings(inner, replace, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [replace_strings(inner, replace, (*path, index)) for index, inner in enumerate(value)]
    return value


def is_whole_reference(text: str, names: Container[str]) -> bool:
    """Return whether a string consists of one reference. The argument may then be any JSON value."""
    parts = list(parse(text, names))
    return len(parts) == 1 and isinstance(parts[0], Reference)


def dotted_path(where: str) -> str:
    """Return a path in the form of `path_text`. `where`: path of an error, with indexes in brackets."""
    return _INDEX.sub(r".\1", where)


def path_text(path: Path) -> str:
    """Return a path as text, for the name of a field."""
    return ".".join(map(str, path))
