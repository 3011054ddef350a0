"""Find the end of a JSON value in text that arrives in pieces."""


class JsonScanner:
    """Scanner that finds the end of one JSON value."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._has_begun = False

    def split(self, text: str) -> tuple[str, bool]:
        """Return the part of the text that belongs to the value, and whether the value ends there."""
        for index, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                    if not self._depth:
                        return text[: index + 1], True
                continue
            if character == '"':
                self._in_string = self._has_begun = True
            elif character in "{[":
                self._depth += 1
                self._has_begun = True
            elif character in "}]":
                if not self._depth:
                    return text[:index], True  # the end of the object or list around the value
                self._depth -= 1
                if not self._depth:
                    return text[: index + 1], True
            elif not self._depth and self._has_begun and character in ", \n\t":
                return text[:index], True
            elif not character.isspace():
                self._has_begun = True
        return text, False
