"""Decode the input of a custom tool from a call's arguments, which arrive in pieces."""

import json
import re

_BEGIN = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_BEGINS = re.compile(r'\s*(?:\{\s*(?:"(?:i(?:n(?:p(?:u(?:t(?:"\s*(?::\s*)?)?)?)?)?)?)?)?)?')
"""Pattern of the beginnings of `_BEGIN`."""
_MAX_BEGIN = 1_000
"""Length in characters after which a text without a complete beginning has another form."""
_ESCAPE = re.compile(r'\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
"""Pattern of an escape. Characters beyond 16 bits have two escapes, which are one match."""
_PART = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?")
"""Pattern of a text that may become a longer escape when more text arrives."""


class InputDecoder:
    """Decoder of `{"input": "…"}`. Arguments of another form are the input as they are."""

    def __init__(self) -> None:
        self._buffer = ""
        """Text that arrived and was not decoded yet."""
        self._state = "begin"

    def push(self, text: str) -> str:
        """Add a piece of the arguments, and return the next piece of the input."""
        self._buffer += text
        if self._state == "begin":
            begin = _BEGIN.match(self._buffer)
            if begin is not None:
                self._buffer, self._state = self._buffer[begin.end() :], "string"
            elif len(self._buffer) > _MAX_BEGIN or _BEGINS.fullmatch(self._buffer) is None:
                self._state = "other"
        match self._state:
            case "string":
                return self._decode()
            case "other":
                text, self._buffer = self._buffer, ""
                return text
            case "ended":
                self._buffer = ""
        return ""

    def finish(self) -> str:
        """Return the rest of the input at the end of the arguments, which may be cut off."""
        rest = self._buffer if self._state in ("begin", "other") else ""
        self._buffer = ""
        return rest

    def _decode(self) -> str:
        """Return the decoded characters up to the end of the string, or up to an escape that is not complete."""
        end = position = 0
        while position < len(self._buffer):
            character = self._buffer[position]
            if character == '"':
                self._state = "ended"
                end = position
                break
            if character != "\\":
                position += 1
            elif _PART.fullmatch(self._buffer, position):
                break
            else:
                escape = _ESCAPE.match(self._buffer, position)
                position = position + 1 if escape is None else escape.end()
            end = position
        text, self._buffer = self._buffer[:end], "" if self._state == "ended" else self._buffer[end:]
        return _ESCAPE.sub(_unescape, text)


def _unescape(escape: re.Match[str]) -> str:
    """Return the character of an escape. Half of a character stays as it is."""
    character: str = json.loads(f'"{escape[0]}"')
    return escape[0] if "\ud800" <= character <= "\udfff" else character
