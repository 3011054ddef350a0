"""Repair a JSON object that arrives in pieces, such as the arguments of a tool call that a model has written."""

import json
import re

_SPACE = " \t\n\r"
_SPACES = re.compile(rf"[{_SPACE}]+")
_PLAIN = {'"': re.compile(r'[^"\\\x00-\x1f]+'), "'": re.compile(r"[^\"'\\\x00-\x1f]+")}
"""Text inside a string that stands for itself, by the quote that ends the string."""
_WORD = re.compile(r'[^\[\]{}",:\n]+')
"""Text of a value without quotes."""
_KEY = re.compile(r'[^\[\]{}",:=\s]+')
"""Text of a key without quotes."""
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS = {
    **{text: text for text in ("true", "false", "null")},
    "True": "true",
    "False": "false",
    "None": "null",
    "undefined": "null",
    "NaN": "null",
}
_ESCAPES = '"\\/bfnrtu'
_HEX = re.compile(r"[0-9a-fA-F]*")
_FENCE = re.compile(r"```\w*\s*")
"""Beginning of a block of code."""
_CLOSERS = {"{": "}", "[": "]"}


class JsonRepairer:
    """Incremental repair of one JSON object, or of any JSON that stands in its place.

    Valid JSON is returned unchanged, character by character. Otherwise the result is valid JSON all the same: other
    quotes, Python's literals, missing and superfluous commas, control characters in strings, missing ends. What has
    been returned is never changed later. Text in place of an object is wrapped: `{"arguments": text}`; for null, and
    without any text, the object is empty.
    """

    def __init__(self) -> None:
        self.has_ended = False
        """Whether the object is complete. Text after it is ignored."""
        self._state = "start"
        """Expected text. `start`: the object. `key`, `colon`, `value`; `after`: a comma or an end, after a value.
        `string`, `escape`, `hex`: inside a string. `quote`: a quote that may end the string. `word`: inside a value or
        key without quotes. `other`: the text is not an object."""
        self._stack: list[str] = []
        """Brackets that are open."""
        self._opened = {"}": 0, "]": 0}
        """Number of open brackets by the bracket that closes them."""
        self._held: list[str] = []
        """Pieces of text that is not returned yet: a comma and white space, a value without quotes, or white space
        after a quote. They are joined once: text may arrive character by character."""
        self._other: list[str] = []
        """A text that is not an object."""
        self._quote = '"'
        self._is_key = False
        """Whether the string or word is a key."""
        self._out: list[str] = []
        self.consumed = 0
        """Number of characters that belong to the object, of the text that was pushed last."""

    @property
    def held(self) -> str:
        """The end of the text so far, from which no JSON was returned yet."""
        begin = {"escape": "\\", "hex": "\\", "quote": self._quote}.get(self._state, "")
        return "".join([begin, *self._held, *self._other])

    @property
    def is_in_string(self) -> bool:
        """Whether the text so far ends inside a string."""
        return self._state in ("string", "escape", "hex")

    def push(self, text: str) -> str:
        """Add text. Return the JSON that follows from it."""
        position = 0
        while position < len(text) and not self.has_ended:
            position = self._step(text, position)
        self.consumed = position
        return self._take()

    def finish(self) -> str:
        """Return the rest of the JSON, after the last text."""
        if self._state in ("start", "other"):
            self._out.append(_wrap(self.held))
            self.has_ended = True
            return self._take()
        if self._state == "escape":
            self._out.append("\\\\")
        elif self._state == "hex":
            self._out.append("\\\\" + self._take_held())
        if self._state in ("string", "escape", "hex", "quote"):
            self._out.append('"')
            self._state = "colon" if self._is_key else "after"
        elif self._state == "word":
            self._end_word()
        self._held.clear()
        while self._stack:
            self._close()
        self.has_ended = True
        return self._take()

    def _take(self) -> str:
        text, self._out = "".join(self._out), []
        return text

    def _take_held(self) -> str:
        text, self._held = "".join(self._held), []
        return text

    def _step(self, text: str, position: int) -> int:
        """Read from one character on. Return the position after the text that was read."""
        character = text[position]
        match self._state:
            case "string":
                return self._read_string(text, position)
            case "escape" | "hex":
                return self._read_escape(text, position)
            case "quote":
                return self._read_quote(text, position)
            case "word":
                return self._read_word(text, position)
            case "start":
                return self._read_start(character, position)
            case "other":
                self._other.append(text[position:])
                return len(text)
        if character in _SPACE:
            space = _SPACES.match(text, position)
            assert space is not None
            (self._held or self._out).append(space[0])
            return space.end()
        if character in "}]":
            self._close_with(character)
            return position + 1
        match self._state:
            case "colon":
                return self._read_colon(character, position)
            case "after":
                return self._read_after(character, position)
            case _:
                return self._read_item(character, position)

    def _read_start(self, character: str, position: int) -> int:
        if character in "{[":
            self._out.append(self._take_held())
            self._open(character)
        else:
            self._held.append(character)
            if character not in _SPACE:
                self._state = "other"
        return position + 1

    # between strings and words

    def _read_item(self, character: str, position: int) -> int:
        """Read the beginning of a key or value."""
        is_key = self._state == "key"
        if character in ",:" or (is_key and character in "{[=") or (not is_key and character == ">"):
            if character == "," and not is_key and self._stack[-1] == "{":  # a key without a value
                self._out.append("null")
                self._state = "after"
                return position
            return position + 1
        self._out.append(self._take_held())
        if character in "{[":
            self._open(character)
            return position + 1
        self._is_key = is_key
        if character in "\"'":
            self._quote, self._state = character, "string"
            self._out.append('"')
            return position + 1
        self._state = "word"
        return position

    def _read_colon(self, character: str, position: int) -> int:
        self._state = "value"
        if character == ",":
            self._out.append(": null")
            self._state = "after"
            return position
        self._out.append(":")
        return position + (character in ":=")

    def _read_after(self, character: str, position: int) -> int:
        if character == ":":
            return position + 1
        self._held = [","]
        self._state = "key" if self._stack[-1] == "{" else "value"
        return position + (character == ",")

    def _open(self, bracket: str) -> None:
        self._stack.append(bracket)
        self._opened[_CLOSERS[bracket]] += 1
        self._out.append(bracket)
        self._state = "key" if bracket == "{" else "value"

    def _close_with(self, bracket: str) -> None:
        """Close the innermost bracket of this kind, and all inside it. Ignore a bracket that closes none."""
        if not self._opened[bracket]:
            return
        self._out.append(self._take_held()[1:])  # white space after a comma
        while self._close() != bracket:
            pass

    def _close(self) -> str:
        """Close the innermost bracket, and return its end."""
        if self._state == "colon":
            self._out.append(": null")
        elif self._state == "value" and self._stack[-1] == "{":
            self._out.append("null")
        closer = _CLOSERS[self._stack.pop()]
        self._opened[closer] -= 1
        self._out.append(closer)
        self._state = "after"
        self.has_ended = not self._stack
        return closer

    # words

    def _read_word(self, text: str, position: int) -> int:
        found = (_KEY if self._is_key else _WORD).match(text, position)
        if found is not None:
            self._held.append(found[0])
            return found.end()
        self._end_word()
        return position

    def _end_word(self) -> None:
        held = self._take_held()
        word = held.rstrip(_SPACE)
        space = held[len(word) :]
        if self._is_key or not (_NUMBER.fullmatch(word) or word in _LITERALS):
            self._out.append(json.dumps(word.rstrip("'"), ensure_ascii=False))
        else:
            self._out.append(_LITERALS.get(word, word))
        self._out.append(space)
        self._state = "colon" if self._is_key else "after"

    # strings

    def _read_string(self, text: str, position: int) -> int:
        found = _PLAIN[self._quote].match(text, position)
        if found is not None:
            self._out.append(found[0])
            return found.end()
        character = text[position]
        if character == self._quote:
            self._state = "quote"
        elif character == "\\":
            self._state = "escape"
        else:
            self._out.append(_escape(character))
        return position + 1

    def _read_quote(self, text: str, position: int) -> int:
        """Decide whether a quote ends the string. It does, unless the text after it can only be inside a string."""
        character = text[position]
        if character in _SPACE:
            space = _SPACES.match(text, position)
            assert space is not None
            self._held.append(space[0])
            return space.end()
        held = self._take_held()
        if character in ",:}]" or (character == "=" and self._is_key):
            self._out.append('"' + held)
            self._state = "colon" if self._is_key else "after"
        else:
            self._out.append(_escape(self._quote + held))
            self._state = "string"
        return position

    def _read_escape(self, text: str, position: int) -> int:
        if self._state == "escape":
            character = text[position]
            if character == "u":
                self._state, self._held = "hex", ["u"]
                return position + 1
            self._state = "string"
            if character in _ESCAPES:
                self._out.append("\\" + character)
                return position + 1
            if character == "'":
                return self._emit_character(character, position)
            self._out.append("\\\\")
            return position
        held = self._take_held()
        digits = _HEX.match(text, position, position + 5 - len(held))
        assert digits is not None
        held += digits[0]
        if len(held) < 5 and digits.end() == len(text):
            self._held = [held]
            return digits.end()
        self._out.append(("\\" if len(held) == 5 else "\\\\") + held)
        self._state = "string"
        return digits.end()

    def _emit_character(self, character: str, position: int) -> int:
        self._out.append(character)
        return position + 1


def _escape(text: str) -> str:
    """Return the text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _wrap(text: str) -> str:
    """Return JSON for a text that does not begin as an object or list does."""
    stripped = text.strip()
    fence = _FENCE.match(stripped)
    inner = stripped if fence is None else stripped[fence.end() :].removesuffix("```").rstrip()
    try:
        value = json.loads(inner, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        value = None if inner in ("", *_LITERALS) else inner
        if isinstance(value, str) and value[:1] in "{[":
            return repair_json(value)
    else:
        if isinstance(value, str) and value.strip()[:1] == "{":  # encoded twice
            return repair_json(_without_surrogates(value.strip()))
        if value is not None and not isinstance(value, str):
            return text if inner is stripped else inner
    if value is None or value == "":
        return "{}"
    return json.dumps({"arguments": _without_surrogates(value)}, ensure_ascii=False)


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads as numbers and JSON does not have."""
    raise ValueError(name)


def _without_surrogates(text: str) -> str:
    """Return the text with question marks for lone surrogates, which no UTF-8 has."""
    return text.encode(errors="replace").decode()


def repair_json(text: str) -> str:
    """Return the repaired JSON of a whole text. See `JsonRepairer`."""
    repairer = JsonRepairer()
    return repairer.push(text) + repairer.finish()
