"""Exceptions of the engine.

EngineError
├── CheckpointError     the model cannot be found, fetched or parsed; the message says what to do
└── ContextError        a command is invalid for its context; other contexts are not affected
"""


class EngineError(Exception):
    """Base class of the exceptions that the engine raises on purpose."""


class CheckpointError(EngineError):
    """The model reference leads to no usable checkpoint."""


class ContextError(EngineError):
    """A command was rejected. `code` is stable and meant for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
