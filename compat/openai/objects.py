"""What the Semantic Variable extension's endpoints answer with; see API.md. States are named there."""

from typing import Literal, NotRequired, TypedDict

from compat.openai.answers import CompletionUsage


class FailureObject(TypedDict):
    """Why there is no value. `call`: the first call that failed."""

    code: str
    message: str
    call: str | None


class VariableObject(TypedDict):
    """A variable."""

    name: str
    state: str
    value: str | None
    error: FailureObject | None
    producer: str | None
    consumers: list[str]


class VariableList(TypedDict):
    """All of a session."""

    object: Literal["list"]
    data: list[VariableObject]


class SessionUsage(TypedDict):
    """Tokens and calls of a session, summed."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    calls_run: int
    calls_shared: int


SessionState = Literal["running", "idle", "deleted"]


class SessionObject(TypedDict):
    """A session. Times are seconds of the Unix clock."""

    id: str
    object: Literal["session"]
    created_at: int
    expires_at: int
    metadata: dict[str, str]
    state: SessionState
    usage: SessionUsage


class SessionList(TypedDict):
    """All of a key."""

    object: Literal["list"]
    data: list[SessionObject]


class CallObject(TypedDict):
    """A call of a graph. Times are seconds of the Unix clock; `spent_ms` says on what they were spent."""

    id: str
    model: str
    state: str
    waiting_on: list[str]
    why: str | None
    inputs: list[str]
    output: str
    slots: list[str]
    shared_with: str | None
    objective: str
    priority: float
    engine: str | None
    prompt_tokens: int
    cached_tokens: int
    missed_tokens: dict[str, int]
    completion_tokens: int
    finish_reason: str | None
    error: FailureObject | None
    prefix_hashes: list[str]
    created: float
    queued: float | None
    started: float | None
    first_token: float | None
    finished: float | None
    spent_ms: dict[str, float]


Edge = TypedDict("Edge", {"from": str, "to": str})
"""From a variable to a call that reads it, or from a call to a variable that it makes."""


class GraphObject(TypedDict):
    """A session's graph as it stands."""

    calls: list[CallObject]
    variables: list[VariableObject]
    edges: list[Edge]


class GraphAnswer(TypedDict):
    """What a graph that was run at once has made. `errors`: of the outputs that there will not be."""

    session: str
    outputs: dict[str, str | None]
    usage: CompletionUsage
    errors: NotRequired[dict[str, FailureObject | None]]


class Tokens(TypedDict):
    """The tokens of a prompt; `max_model_len`: the model's window, if it is known."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: NotRequired[list[str]]


class Detokenized(TypedDict):
    """The text of tokens."""

    prompt: str


class Health(TypedDict):
    """Whether there is somebody."""

    status: Literal["ok", "ready", "starting", "stopping"]
