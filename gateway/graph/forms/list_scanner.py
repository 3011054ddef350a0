"""Find the elements of a JSON list while the text that contains it grows."""

import json
from collections.abc import Sequence
from typing import Any

_SPACE = " \t\n\r"
_OPENING, _CLOSING = "[{", "]}"


class BadList(ValueError):
    """The text has no list at the path. The message says why."""


def text_of(value: Any) -> str:
    """Return the text that a part of a JSON value stands for in a prompt: a string as it is, otherwise compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class ListScanner:
    """Scanner of a growing JSON text. It returns an element as soon as the text shows that the element is complete.

    The list is at `path`, as in a reference: keys of objects and indexes of lists. The result depends on the text
    alone, not on the pieces in which it arrives. Time and memory are linear in the text.
    """

    def __init__(self, path: Sequence[str] = ()) -> None:
        self._path = tuple(path)
        self._containers: list[_Container] = []
        """The containers around the position, up to the list."""
        self._matching = 0
        """Number of containers, from the outermost one, whose current key is that of the path."""
        self._string: list[str] | None = None
        """Characters of the string that is being read before the list, quoted; None outside strings."""
        self._in_string = False
        self._is_escaped = False
        self._expects_value = True
        """Whether a value may begin at the position, before the list."""
        self._is_in_list = False
        self._is_lost = False
        """Whether the text as a whole is not a list."""
        self._depth = 0
        """Number of containers inside the current element."""
        self._element: list[str] = []
        """Characters of the current element."""
        self._count = 0
        self.is_closed = False
        """Whether the end of the list was read."""

    def push(self, text: str) -> list[str]:
        """Read more text. Return the texts of the elements that it completes, see `text_of`. Raises BadList if the list
        or an element is malformed."""
        elements: list[str] = []
        for character in text:
            if self.is_closed or self._is_lost:
                break
            if self._is_in_list:
                self._read_element(character, elements)
            else:
                self._search(character)
        return elements

    def close(self, value: str) -> None:
        """Check that the list has ended. `value`: the whole text. Raises BadList, which says what the text has at the
        path."""
        if self.is_closed:
            return
        place = ".".join(self._path)
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else "it begins with "
            begin = "" if isinstance(error, RecursionError) else repr(value if len(value) <= 60 else f"{value[:57]}...")
            raise BadList(f"the value is not JSON: {why}{begin}") from None
        for key in self._path:
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and _is_index(key) and int(key) < len(found):
                found = found[int(key)]
            else:
                raise BadList(f"the value has nothing at {place!r}")
        raise BadList(f"the value{f' at {place!r}' if place else ''} is {_kind(found)}, not a list")

    # before the list

    def _search(self, character: str) -> None:
        if self._in_string:
            self._read_string(character)
            return
        if character in _SPACE:
            return
        if character == '"':
            self._begin_value(character)
            self._in_string, self._string = True, [character]
        elif character in _OPENING:
            self._begin_value(character)
            if not self._is_in_list:
                self._containers.append(_Container(is_list=character == "["))
                self._match()
        elif character in _CLOSING:
            if self._containers:
                self._containers.pop()
                self._matching = min(self._matching, len(self._containers))
            self._expects_value = False
        elif character == ",":
            if self._containers:
                container = self._containers[-1]
                container.index += 1
                container.key = None
                self._match()
            self._expects_value = True
        elif character == ":":
            self._match()
            self._expects_value = True
        else:
            self._begin_value(character)

    def _read_string(self, character: str) -> None:
        assert self._string is not None
        self._string.append(character)
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            container = self._containers[-1] if self._containers else None
            if container is not None and not container.is_list and container.key is None:
                try:
                    container.key = json.loads("".join(self._string))
                except ValueError:
                    raise BadList("the value is not JSON: a key is not a valid string") from None
            self._in_string, self._string = False, None

    def _begin_value(self, character: str) -> None:
        """Note that a value begins. It is the list if it begins with a bracket at the path."""
        if not self._expects_value:
            return
        container = self._containers[-1] if self._containers else None
        if container is not None and not container.is_list and container.key is None:
            return  # a key of an object
        self._expects_value = False
        if self._matching == len(self._containers) == len(self._path):
            self._is_in_list = character == "["
            self._is_lost = not self._is_in_list and not self._path

    def _match(self) -> None:
        """Update the number of containers whose key is that of the path, after the innermost one has changed."""
        depth = len(self._containers)
        self._expects_value = True
        if depth > len(self._path) or self._matching < depth - 1:
            return
        container = self._containers[-1]
        self._matching = depth if container.has_key(self._path[depth - 1]) else depth - 1

    # in the list

    def _read_element(self, character: str, elements: list[str]) -> None:
        if self._in_string:
            self._element.append(character)
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._in_string = False
            return
        if not self._depth and character in ",]":
            self._end_element(character, elements)
            return
        if character == '"':
            self._in_string = True
        elif character in _OPENING:
            self._depth += 1
        elif character in _CLOSING:
            self._depth -= 1
            if self._depth < 0:
                raise BadList(f"the list is not JSON: {character!r} after {self._count} elements")
        elif character in _SPACE and not self._element:
            return
        self._element.append(character)

    def _end_element(self, character: str, elements: list[str]) -> None:
        raw = "".join(self._element)
        self._element = []
        self.is_closed = character == "]"
        if self.is_closed and not raw and not self._count:
            return
        try:
            elements.append(text_of(json.loads(raw)))
        except (ValueError, RecursionError):
            short = raw if len(raw) <= 60 else raw[:57] + "..."
            raise BadList(f"element {self._count} of the list is not JSON: {short!r}") from None
        self._count += 1


class _Container:
    """An object or a list before the list that is searched."""

    __slots__ = ("index", "is_list", "key")

    def __init__(self, *, is_list: bool) -> None:
        self.is_list = is_list
        self.index = 0
        self.key: str | None = None

    def has_key(self, key: str) -> bool:
        """Return whether the current value of the container is at this key of a path."""
        return _is_index(key) and int(key) == self.index if self.is_list else key == self.key


def _is_index(key: str) -> bool:
    """Return whether a key of a path can be an index, see `references.resolve`."""
    return key.isascii() and key.isdecimal() and len(key) < 19


def _kind(value: Any) -> str:
    """Return the kind of a JSON value, with its article, or its name in JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return "a number"
    return "a string" if isinstance(value, str) else "an object" if isinstance(value, dict) else "a list"
