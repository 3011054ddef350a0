"""What an engine refuses.

EngineError
├── CheckpointError     a model that cannot be found, fetched or understood: the message says what to do
└── ContextError        a command that does not fit its context; the context alone is affected
"""


class EngineError(Exception):
    """Base of all errors an engine raises on purpose."""


class CheckpointError(EngineError):
    """The model reference leads to nothing usable."""


class ContextError(EngineError):
    """A command was refused. `code` is stable and meant for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
