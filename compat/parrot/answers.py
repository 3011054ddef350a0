"""Responses. Every successful response has one of these types, and status 200."""

from typing import TypedDict


class ProgramAnswer(TypedDict):
    """Answer to the creation of a session: its id and its secret."""

    session_id: int
    session_auth: str


class Told(TypedDict):
    """One placeholder of a call, and the variable that belongs to it."""

    parameter_name: str
    is_output: bool
    var_name: str
    var_id: str


class SemanticCallAnswer(TypedDict):
    """Answer to the submission of a call: its id. `param_info`: variables of the placeholders, in order."""

    request_id: int
    param_info: list[Told]


class Registered(TypedDict):
    """Answer to the registration of a variable: its id."""

    var_id: str


class Value(TypedDict):
    """Answer to the request for a variable: its value."""

    content: str


class VariableInfo(TypedDict):
    """A variable, with its value if it has one."""

    var_id: str
    var_name: str
    state: str
    content: str | None


class Variables(TypedDict):
    """All variables of a session."""

    vars: list[VariableInfo]


class Nothing(TypedDict):
    """An empty response."""


class ErrorAnswer(TypedDict):
    """An error response.

    `traceback` exists because Parrot's client prints it. It is empty, because a traceback would reveal internals.
    """

    error: str
    traceback: str
