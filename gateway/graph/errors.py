"""Errors that the graph raises, and the reason why a variable or call has no value.

    GraphError              carries the wire contract's `code` and the `where` of the offending field
    ├── UnknownVariable
    ├── BadReference
    ├── VariableAlreadySet
    ├── Cycle
    ├── SlotWithoutPlace
    ├── TooLarge
    ├── TooManyWaiters
    ├── SessionClosed       the session ended while the request arrived
    ├── BadText             a string has a lone surrogate, so it is not Unicode text
    └── UnresolvedPath      a path that the value does not contain

`Failure` is not an exception. It is the state of a failed variable or call, which many requests read.
"""

from dataclasses import dataclass
from typing import ClassVar


class GraphError(Exception):
    """A change that the graph rejects. The graph stays unchanged."""

    code: ClassVar[str] = "invalid_value"
    retry_after: float | None = None
    """Seconds after which the change may succeed, if that is known."""

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where


class UnknownVariable(GraphError):
    """The session has no variable with this name."""

    code = "unknown_variable"


class BadReference(GraphError):
    """A malformed name, or a reference in a wrong place."""

    code = "bad_reference"


class VariableAlreadySet(GraphError):
    """The variable has a value or a producer already. A name is assigned once."""

    code = "variable_already_set"


class Cycle(GraphError):
    """A call would wait for itself."""

    code = "cycle"


class SlotWithoutPlace(GraphError):
    """No assistant message has a place for this slot."""

    code = "slot_without_place"


class TooLarge(GraphError):
    """The change would exceed a configured limit of the graph."""

    code = "too_large"


class TooManyWaiters(GraphError):
    """The maximum number of clients waits for the session's variables."""

    code = "overloaded"


class SessionClosed(GraphError):
    """The session has ended. Nothing can be added to it."""

    code = "cancelled"


class BadText(GraphError):
    """The string cannot be encoded as UTF-8, so it can be neither stored nor sent."""

    code = "bad_text"


class UnresolvedPath(GraphError):
    """The value does not contain the path of a reference."""

    code = "bad_reference"


LONGEST_MESSAGE = 2_000
"""Maximum length of a failure's message, in characters. Every call and variable that fails because of it stores it."""


@dataclass(frozen=True)
class Failure:
    """Reason why there is no value. `call`: the first failed call in a chain of failures. `field`: path of the field at
    fault in that call's request, if there is one.

    The message may quote texts of clients and engines. It is cut to LONGEST_MESSAGE characters, and lone surrogates
    become U+FFFD, so that a failure can always be stored and sent.
    """

    code: str
    message: str
    call: str | None = None
    field: str | None = None

    def __post_init__(self) -> None:
        message = self.message
        if not message.isascii() or len(message) > LONGEST_MESSAGE:
            message = message.encode("utf-16", "surrogatepass").decode("utf-16", "replace")[:LONGEST_MESSAGE]
            object.__setattr__(self, "message", message)
