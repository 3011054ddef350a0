"""Errors of accounts: a limit or a budget of an API key is reached, or the key is not accepted any more."""

from typing import ClassVar

from gateway.graph.errors import GraphError


class LimitReached(GraphError):
    """A limit of the API key is reached. `retry_after`: seconds until a request may be admitted; None if unknown."""

    code: ClassVar[str] = "rate_limit_exceeded"

    def __init__(self, message: str, where: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message, where)
        self.retry_after = retry_after


class QuotaReached(LimitReached):
    """A budget of the API key is used up. `retry_after`: seconds until the budget's next period; None if there is
    none."""

    code: ClassVar[str] = "insufficient_quota"


class KeyEnded(GraphError):
    """The API key was deleted or has expired since its request was authenticated."""

    code: ClassVar[str] = "invalid_api_key"


class KeyDisabled(KeyEnded):
    """The API key was disabled since its request was authenticated."""

    code: ClassVar[str] = "api_key_disabled"


class KeyStoreError(GraphError):
    """API keys cannot be stored or read now."""

    code: ClassVar[str] = "journal_failed"
