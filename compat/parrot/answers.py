"""Answers. Every success is one of these, with status 200."""

from typing import TypedDict


class ProgramAnswer(TypedDict):
    """A session that was begun."""

    session_id: int
    session_auth: str


class Told(TypedDict):
    """What stands for a placeholder."""

    parameter_name: str
    is_output: bool
    var_name: str
    var_id: str


class SemanticCallAnswer(TypedDict):
    """A call that was taken; `param_info`: of each placeholder, in order."""

    request_id: int
    param_info: list[Told]


class Registered(TypedDict):
    """A variable that was made."""

    var_id: str


class Value(TypedDict):
    """A variable's value."""

    content: str


class VariableInfo(TypedDict):
    """A variable, with its value if that is there."""

    var_id: str
    var_name: str
    state: str
    content: str | None


class Variables(TypedDict):
    """All of a session."""

    vars: list[VariableInfo]


class Nothing(TypedDict):
    """Done, and nothing to say."""


class ErrorAnswer(TypedDict):
    """What went wrong. `traceback` is empty: the client prints it, and it is nobody's business."""

    error: str
    traceback: str
