"""Find the arguments of a tool call in text that arrives in pieces, and repair them."""

from gateway.prompts.tool_calls.json_scanner import JsonScanner
from gateway.runtime.json_repair import JsonRepairer, repair_json
from gateway.runtime.suffix_overlap import suffix_overlap


class ArgumentsReader:
    """Reader of the arguments of one tool call. An object becomes valid JSON while it arrives, a value of another kind
    at its end."""

    def __init__(self, mark: str, *, repairs: bool) -> None:
        """`mark`: mark that ends the tool call, outside strings; "" if there is none. `repairs`: whether arguments that
        are not JSON are repaired."""
        self.has_ended = False
        """Whether the arguments are complete."""
        self.consumed = 0
        """Number of characters of the last pushed text that belong to the arguments."""
        self._mark = mark
        self._repairs = repairs
        self._repairer: JsonRepairer | None = None
        """Repairer of an object."""
        self._scanner = JsonScanner()
        self._value: list[str] = []
        """Pieces of the text so far of a value that is not an object."""

    @property
    def held(self) -> str:
        """The end of the text so far that was not returned yet."""
        return "".join(self._value) if self._repairer is None else self._repairer.held

    def push(self, text: str) -> str:
        """Add text. Return the arguments that follow from it; the caller keeps the text that was not consumed."""
        self.consumed = 0
        if self._repairs and self._repairer is None and not self._value and text[:1] == "{":
            self._repairer = JsonRepairer()
        if self._repairer is not None:
            return self._push_object(self._repairer, text)
        piece, self.has_ended = self._scanner.split(text)
        self.consumed = len(piece)
        if not self._repairs:
            return piece
        self._value.append(piece)
        if not self.has_ended:
            return ""
        value, self._value = "".join(self._value), []
        return repair_json(value)

    def _push_object(self, repairer: JsonRepairer, text: str) -> str:
        found = ""
        while self._mark and not repairer.has_ended:
            position = text.find(self._mark, self.consumed)
            if position < 0:
                break
            found += repairer.push(text[self.consumed : position])
            if repairer.has_ended or not repairer.is_in_string:
                self.consumed = position if not repairer.has_ended else self.consumed + repairer.consumed
                self.has_ended = True
                return found + repairer.finish()
            found += repairer.push(self._mark)
            self.consumed = position + len(self._mark)
        end = len(text) - suffix_overlap(text, self._mark) if self._mark else len(text)
        end = max(end, self.consumed)
        found += repairer.push(text[self.consumed : end])
        self.consumed += repairer.consumed
        self.has_ended = repairer.has_ended
        return found
