"""Interface of the tools for their callers: descriptions, results and errors. Only the standard library."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

Path = tuple[str | int, ...]
"""Path of a value in the arguments of a call: keys of objects and indexes of lists."""

TIMEOUT = "tool_timeout"
TOO_LARGE = "tool_too_large"
UNAVAILABLE = "tool_unavailable"
PROTOCOL_ERROR = "tool_protocol_error"


@dataclass(frozen=True)
class ToolDescription:
    """A tool that the operator allows. `input_schema`: JSON schema of its arguments."""

    server: str
    name: str
    description: str
    input_schema: Mapping[str, Any]
    is_read_only: bool
    """Whether a call changes nothing."""
    is_idempotent: bool
    """Whether a second call with the same arguments changes nothing more. A read-only tool is idempotent."""


@dataclass(frozen=True)
class ToolResult:
    """Result of a call. `is_error`: whether the tool reports that it failed; `text` says why. `bytes`: size of the text
    in UTF-8. `seconds`: duration of the call, without its wait for a free place."""

    text: str
    is_error: bool
    bytes: int
    seconds: float


class ToolRefused(Exception):
    """A call that cannot be made. Nothing was sent to the server. `where`: path of the field at fault."""

    code: ClassVar[str] = "invalid_value"

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where


class UnknownTool(ToolRefused):
    """There is no such server or tool, or the operator does not allow it."""

    code = "unknown_tool"


class BadArguments(ToolRefused):
    """The arguments violate the tool's schema. `where`: path of the value in the arguments, empty for all of them."""

    code = "invalid_value"


class UrlRefused(ToolRefused):
    """The operator does not allow this URL of a client."""

    code = "invalid_value"


class ToolFailed(Exception):
    """A call, or a request for descriptions, that failed. `code`: `tool_timeout`, `tool_too_large`, `tool_unavailable`
    or `tool_protocol_error`. The message is one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tools(Protocol):
    """All tools that the operator allows."""

    async def describe(self, server: str, pattern: str = "*") -> Sequence[ToolDescription]:
        """Return the allowed tools of a server whose names match the pattern. Raises UnknownTool if there is none, and
        ToolFailed if the server is not available."""
        ...

    async def check(
        self, server: str, name: str, arguments: Mapping[str, Any], *, unknown: Collection[Path] = (), tenant: str = ""
    ) -> None:
        """Raise BadArguments if the arguments violate the tool's schema for all values at the paths `unknown`. Raises
        UnknownTool and ToolFailed as `describe` does."""
        ...

    async def call(self, server: str, name: str, arguments: dict[str, Any], *, tenant: str) -> ToolResult:
        """Call a tool and return its result. If the caller is cancelled, the gateway sends a cancellation to the
        server. Raises UnknownTool and ToolFailed."""
        ...

    def is_pure(self, server: str, name: str) -> bool:
        """Return whether equal calls may share a result, because the tool is read-only and idempotent. False for tools
        that are not known now."""
        ...

    def is_idempotent(self, server: str, name: str) -> bool:
        """Return whether a call may be repeated. False for tools that are not known now."""
        ...
