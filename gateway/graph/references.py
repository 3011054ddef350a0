r"""Grammar of `<<name>>` references.

    reference = "<<" name *( "." key ) ">>"
    name      = [A-Za-z_][A-Za-z0-9_]{0,63}
    key       = one or more characters other than ".", "<", ">" and white space

`\<<name>>` is the text `<<name>>`. All other text is literal.
"""

import json
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gateway.graph.errors import BadReference, TooLarge, UnresolvedPath
from gateway.graph.text import has_surrogate

MAX_REFERENCES = 10_000
"""Maximum number of references in one prompt or template. Each occupies about 200 bytes, however short it is."""

MAX_NAME = 64
"""Maximum length of a name that a client chooses, in characters."""
_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
_REFERENCE = re.compile(rf"<<({_NAME})((?:\.[^.<>\s]++)*+)>>")  # a literal prefix makes the search 40 times as fast
_WHOLE_NAME = re.compile(_NAME)


class _EveryName:
    """All names of variables."""

    def __contains__(self, name: object) -> bool:
        return True


EVERY_NAME: Container[str] = _EveryName()
"""The references of a request that uses variables: `<<name>>` is one for every name, and an unknown name is an
error."""
NO_NAME: Container[str] = frozenset()
"""The references of a request without a session: all text is literal."""


@dataclass(frozen=True)
class Reference:
    """Place in a prompt where a variable's value goes. `path` selects a part of a value that is JSON."""

    name: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"<<{'.'.join((self.name, *self.path))}>>"


def parse(text: str, names: Container[str] = EVERY_NAME) -> Iterator[str | Reference]:
    """Yield literal pieces and references of `text` in order; escapes are resolved, empty pieces left out.

    `names`: names that are references. Other names are literal, and so are their escapes.
    Raises TooLarge if there are more than MAX_REFERENCES.
    """
    literal = ""
    end = found = 0
    for match in _REFERENCE.finditer(text):
        begin = match.start()
        name, path = match.groups()
        if name not in names:
            continue
        if begin > end and text[begin - 1] == "\\":  # escaped
            literal += text[end : begin - 1] + match.group()
            end = match.end()
            continue
        literal += text[end:begin]
        end = match.end()
        found += 1
        check_references(found)
        if literal:
            yield literal
            literal = ""
        yield Reference(name, tuple(path.split(".")[1:]))
    literal += text[end:]
    if literal:
        yield literal


def find_names(text: str) -> Iterator[str]:
    """Yield the name of everything in the text that has the form of a reference, escaped or not."""
    return (match[1] for match in _REFERENCE.finditer(text))


def check_references(count: int, maximum: int = MAX_REFERENCES, where: str | None = None) -> None:
    """Raise TooLarge if there are more than `maximum` references."""
    if count > maximum:
        raise TooLarge(f"more than {maximum} references to variables", where)


def check_name(name: str, where: str) -> str:
    """Return the name. Raises BadReference if it is not a valid variable name."""
    if not _WHOLE_NAME.fullmatch(name):
        short = name if len(name) <= 2 * MAX_NAME else f"{name[: 2 * MAX_NAME]}…"
        raise BadReference(
            f"{short!r} is not a variable name: letters, digits and underscores, not beginning with a digit, "
            "at most 64 characters",
            where,
        )
    return name


def resolve(value: str, reference: Reference, *, begin: int = 0) -> str:
    """Return the text that replaces a reference, from the variable's value.

    Without a path this is the value. With a path it is the string there, or compact JSON. Raises UnresolvedPath if the
    path leads nowhere. `begin`: number of keys of the path that lead to `value`, if it is only a part of the variable's
    value.
    """
    if not reference.path:
        return value
    try:
        found: Any = _parsed(value)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UnresolvedPath(f"{reference}: the value of {reference.name} is not JSON: {why}") from None
    for depth, key in enumerate(reference.path[begin:], begin):
        index = list_index(key)
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and index is not None and index < len(found):
            found = found[index]
        else:
            place = ".".join((reference.name, *reference.path[:depth]))
            raise UnresolvedPath(f"{reference} cannot be resolved: {place} has no {key!r}")
    try:
        text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    except (RecursionError, ValueError):  # a ValueError: an integer of more digits than Python converts
        raise UnresolvedPath(f"{reference} stands for JSON that is nested too deeply or too large to write") from None
    if has_surrogate(text):
        raise UnresolvedPath(f"{reference} stands for a string with a lone surrogate, which is not Unicode text")
    return text


@lru_cache(maxsize=4)
def _parsed(value: str) -> Any:
    """Return a value parsed as JSON. Raises ValueError or RecursionError.

    It is cached, so that several references into one value parse it once.
    """
    return json.loads(value)


def list_index(key: str) -> int | None:
    """Return the list index that a key of a path stands for; None if the key is not an index."""
    return int(key) if key.isascii() and key.isdecimal() and len(key) < 19 else None
