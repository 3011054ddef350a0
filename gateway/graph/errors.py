"""What the graph refuses, and why a value will never be.

    GraphError              carries the wire contract's `code` and the `where` of the offending field
    ├── UnknownVariable
    ├── BadReference
    ├── VariableAlreadySet
    ├── Cycle
    ├── SlotWithoutPlace
    ├── TooLarge
    ├── TooManyWaiters
    ├── SessionClosed       the session ended while the request arrived
    ├── BadText             a string with a lone surrogate, so not Unicode text
    └── UnresolvedPath      a path into a value that turned out not to hold it

`Failure` is no exception: it is the state of a variable or call that failed, and is read by many.
"""

from dataclasses import dataclass
from typing import ClassVar


class GraphError(Exception):
    """A change that the graph refuses. Nothing was changed."""

    code: ClassVar[str] = "invalid_value"

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where


class UnknownVariable(GraphError):
    """A name that the session does not know."""

    code = "unknown_variable"


class BadReference(GraphError):
    """Something that cannot be a name or does not fit where it stands."""

    code = "bad_reference"


class VariableAlreadySet(GraphError):
    """A name is assigned once."""

    code = "variable_already_set"


class Cycle(GraphError):
    """A call would wait for itself."""

    code = "cycle"


class SlotWithoutPlace(GraphError):
    """A slot that no assistant message has a place for."""

    code = "slot_without_place"


class TooLarge(GraphError):
    """A configured bound of the graph would be passed."""

    code = "too_large"


class TooManyWaiters(GraphError):
    """As many clients wait for a session's variables as may."""

    code = "overloaded"


class SessionClosed(GraphError):
    """The session has ended: nothing can be added to it."""

    code = "cancelled"


class BadText(GraphError):
    """The string cannot be encoded as UTF-8, so it can be neither stored nor sent."""

    code = "bad_text"


class UnresolvedPath(GraphError):
    """A reference's path is not in the value."""

    code = "bad_reference"


LONGEST_MESSAGE = 2_000
"""Maximum length of a failure's message, in characters. Every call and variable that fails because of it stores it."""


@dataclass(frozen=True)
class Failure:
    """Why there is no value. `call`: the first failed call in a chain of failures. `field`: path of the field at fault
    in that call's request, if a field is at fault.

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
