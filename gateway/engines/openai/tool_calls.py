"""Check the tool calls of upstream servers, and turn them into text in Hermes' format, which
`gateway.prompts.tool_calls` parses."""

import json
from collections.abc import Sequence
from enum import Enum

import msgspec

from gateway.runtime.json_repair import JsonRepairer

_BEGIN, _END = "<tool_call>\n", "\n</tool_call>"
_MAX_CALLS = 1_000
"""Maximum number of tool calls in one answer. Each occupies some kilobytes, however short it is."""


class MalformedCalls(Enum):
    """Treatment of tool calls whose arguments are not JSON."""

    REPAIR = "repair"
    """The arguments become valid JSON."""
    REFUSE = "refuse"
    """The call fails."""
    PASS = "pass"
    """The arguments are passed on as they are."""


class MalformedToolCall(Exception):
    """The arguments of a tool call are not JSON, or it has no name."""


class FunctionFragment(msgspec.Struct):
    """Fragment of a called function: its name, and a piece of its arguments."""

    name: str | None = None
    arguments: str | None = None


class ToolCallFragment(msgspec.Struct):
    """Entry of `tool_calls` in an answer, or in one event of it."""

    index: int | None = None
    id: str | None = None
    function: FunctionFragment = msgspec.field(default_factory=FunctionFragment)


class _ToolCall:
    """A tool call while it arrives."""

    def __init__(self, index: int | None, id: str | None) -> None:
        self.index = index
        self.id = id
        self.name = ""
        self.pending: list[str] = []
        """Pieces of the arguments that were not written yet."""
        self.written: list[str] = []
        """Pieces of the arguments as the server sent them, if malformed ones are refused."""
        self.texts: list[str] = []
        """Pieces of the answer's text that arrived after the call had begun. They follow it."""
        self.is_begun = False
        self.repairer = JsonRepairer()


class ToolCallWriter:
    """Writer of the tool calls of one answer. They are written one after the other, also if their fragments alternate.

    Servers number calls by `index`. Some leave it out, or repeat it for another call, which then has another `id`.
    """

    def __init__(self, malformed: MalformedCalls) -> None:
        self._malformed = malformed
        self._calls: list[_ToolCall] = []
        self._by_index: dict[int, _ToolCall] = {}
        """The latest call of each index."""
        self._by_id: dict[str, _ToolCall] = {}
        self._position = 0
        """Position of the call that is being written."""

    @property
    def count(self) -> int:
        """Number of tool calls so far."""
        return len(self._calls)

    def add(self, fragments: Sequence[ToolCallFragment], *, whole: bool = False) -> str:
        """Add fragments, and return the text that follows from them. `whole`: each is a complete tool call.

        Raises ValueError if there are too many calls.
        """
        text = ""
        for fragment in fragments:
            call = None if whole else self._find(fragment)
            if call is None:
                call = self._begin(fragment)
            call.name = call.name or fragment.function.name or ""
            if fragment.function.arguments:
                call.pending.append(fragment.function.arguments)
            text += self._write(last=False)
        return text

    def add_text(self, text: str) -> str:
        """Add a piece of the answer's text, and return the text that follows from it.

        A piece that arrives within a tool call stands behind the call.
        """
        if not text or self._position == len(self._calls):
            return text
        self._calls[-1].texts.append(text)
        return self._write(last=False)

    def finish(self, *, cut: bool) -> str:
        """Return the end of the text. `cut`: a limit of tokens ended the answer, so the last call gets no end.

        Raises MalformedToolCall if malformed calls are refused.
        """
        return self._write(last=not cut)

    def _begin(self, fragment: ToolCallFragment) -> _ToolCall:
        """Return a new call for its first fragment."""
        if len(self._calls) == _MAX_CALLS:
            raise ValueError(f"the answer has more than {_MAX_CALLS} tool calls")
        call = _ToolCall(fragment.index, fragment.id)
        self._calls.append(call)
        if call.index is not None:
            self._by_index[call.index] = call
        if call.id:
            self._by_id[call.id] = call
        return call

    def _find(self, fragment: ToolCallFragment) -> _ToolCall | None:
        """Return the call that a fragment continues; None if it begins another call."""
        if not self._calls:
            return None
        is_named, last = bool(fragment.function.name), self._calls[-1]
        if fragment.index is not None and last.index is not None:
            call = self._by_index.get(fragment.index)
            is_other = call is not None and is_named and fragment.id and call.id and fragment.id != call.id
            return None if is_other else call
        if fragment.id and last.id:
            return self._by_id.get(fragment.id)
        return None if is_named and last.name else last

    def _write(self, *, last: bool) -> str:
        """Return the text of the calls up to the one whose end is not known yet. `last`: all calls have ended."""
        text = ""
        while self._position < len(self._calls):
            call = self._calls[self._position]
            text += self._write_arguments(call) if call.name else ""
            has_followers = self._position + 1 < len(self._calls)
            if self._malformed is MalformedCalls.PASS:
                has_ended = last or has_followers
            else:
                is_left = has_followers or bool(call.texts)
                has_ended = last or (is_left and bool(call.name) and call.repairer.has_ended)
            if not has_ended:
                break
            text += self._end(call) if call.is_begun else self._nameless()
            self._position += 1
            if call.is_begun:
                text += "}" + _END + ("\n" if has_followers or call.texts else "")
            text += "".join(call.texts)
        return text

    def _write_arguments(self, call: _ToolCall) -> str:
        text = ""
        if not call.is_begun:
            call.is_begun = True
            text = f'{_BEGIN}{{"name": {json.dumps(call.name)}, "arguments": '
        for piece in call.pending:
            if self._malformed is MalformedCalls.REFUSE:
                call.written.append(piece)
            text += piece if self._malformed is MalformedCalls.PASS else call.repairer.push(piece)
        call.pending.clear()
        return text

    def _end(self, call: _ToolCall) -> str:
        """Return the end of a call's arguments."""
        if self._malformed is MalformedCalls.PASS:
            return ""
        written = "".join(call.written)
        if self._malformed is MalformedCalls.REFUSE and written.strip() and not _is_json(written):
            raise MalformedToolCall(f"the arguments of a call of {call.name[:64]!r} are not JSON")
        return call.repairer.finish()

    def _nameless(self) -> str:
        """Return the text of a call without a name: none, as no client can run it."""
        if self._malformed is MalformedCalls.REFUSE:
            raise MalformedToolCall("a tool call has no name")
        return ""


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True
