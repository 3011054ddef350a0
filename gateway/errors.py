"""Errors that a client receives. Each has its HTTP status, code and param.

RequestError                the server refuses a request
└── FailedCall              a call ran and failed; the status follows from the failure's code
"""

import math
from collections.abc import Mapping

from gateway.graph.errors import Failure, GraphError

_STATUS = {
    "invalid_value": 400,
    "unknown_variable": 400,
    "bad_reference": 400,
    "bad_text": 400,
    "cycle": 400,
    "session_conflict": 400,
    "context_length_exceeded": 400,
    "slot_without_place": 400,
    "bad_token": 400,
    "bad_grammar": 400,
    "engine_refused": 400,
    "unsupported_by_engine": 400,
    "unknown_tool": 400,
    "invalid_api_key": 401,
    "api_key_disabled": 401,
    "session_not_found": 404,
    "variable_not_found": 404,
    "variable_already_set": 409,
    "session_exists": 409,
    "cancelled": 409,
    "session_expired": 410,
    "too_large": 413,
    "transform_failed": 422,
    "grammar_dead_end": 422,
    "grammar_too_complex": 422,
    "condition_failed": 422,
    "max_rounds_reached": 422,
    "max_turns_reached": 422,
    "upstream_failed": 424,
    "skipped": 424,
    "tool_failed": 424,
    "tool_too_large": 424,
    "tool_protocol_error": 424,
    "overloaded": 429,
    "budget_exceeded": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "engine_overloaded": 429,
    "bad_logits": 500,
    "step_failed": 500,
    "internal_error": 500,
    "interrupted": 503,
    "journal_failed": 503,
    "engine_failed": 503,
    "engine_unavailable": 503,
    "tool_unavailable": 503,
    "tool_timeout": 504,
}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def field_path(where: str, field: str) -> str:
    """Return the path of a field of a request that is itself at path `where` in a larger request."""
    return f"{where}.{field}" if where and field else where or field


class RequestError(Exception):
    """An error response, in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("Retry-After", "1")

    @property
    def type(self) -> str:
        """Return OpenAI's error type for the status."""
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @classmethod
    def of_graph(cls, error: GraphError) -> "RequestError":
        """Return the error for a change that the graph refused."""
        request_error = cls(_STATUS[error.code], str(error), code=error.code, param=error.where)
        if error.retry_after is not None:
            request_error.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        if error.code in ("insufficient_quota", "budget_exceeded"):
            request_error.headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's clients obey it
            if error.retry_after is None:
                del request_error.headers["Retry-After"]  # there is no time at which a retry would succeed
        return request_error


class FailedCall(RequestError):
    """The answer to a client that waited for a call that failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(_STATUS.get(failure.code, 500), failure.message, code=failure.code, param=failure.field)
