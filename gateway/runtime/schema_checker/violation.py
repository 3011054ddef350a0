"""Violations of a schema, and how messages name places, properties and paths."""

import json
import re
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE = 300
"""Maximum length of the description of a violation, in characters."""
_MAX_NAME = 40
"""Length from which names of properties are shortened in messages, in characters."""
_MAX_PATH = 160
"""Length from which paths are shortened in messages, in characters."""
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Place = tuple[Any, str | int] | None
"""Place of a value: its parent's place and its key there; None for the whole value."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The first violation that was found."""

    place: Place
    keyword: str
    why: str

    @property
    def path(self) -> str:
        """JSON path of the value, without its beginning `$`; empty for the whole value. Long paths are cut at the
        beginning."""
        return "" if self.place is None else _path(self.place)

    def __str__(self) -> str:
        """Return a sentence that names the place, the keyword and the reason, in at most `MAX_MESSAGE` characters."""
        return _cropped(f"{_path(self.place)}: {self.keyword}: {self.why}", MAX_MESSAGE)


def _cropped(text: str, maximum: int) -> str:
    return text if len(text) <= maximum else text[: maximum - 1] + "…"


def quoted(name: str) -> str:
    """Return the name of a property for a message: short, and in quotation marks."""
    name = _cropped(name, _MAX_NAME)
    return json.dumps(name, ensure_ascii=not name.isprintable())


def _path(place: Place) -> str:
    """Return a JSON path without its beginning `$` or `$.`; the path of the whole value is `$`. Long paths are cut at
    the beginning."""
    keys: list[str] = []
    length = 0
    while place is not None and length < _MAX_PATH:
        place, key = place
        keys.append(_key_text(key))
        length += len(keys[-1])
    if not keys:
        return "$"
    text = "".join(reversed(keys))
    return text.removeprefix(".") if place is None else f"…{text}"


def _key_text(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if len(key) <= _MAX_NAME and _IDENTIFIER.fullmatch(key) else f"[{quoted(key)}]"
