"""Response types of the Semantic Variable extension's endpoints; see docs/api.md, which also lists the states."""

from typing import Literal, NotRequired, TypedDict

from compat.openai.answers import CompletionUsage


class FailureObject(TypedDict):
    """The reason why a variable has no value. `call`: the first call that failed."""

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
    """All variables of a session."""

    object: Literal["list"]
    data: list[VariableObject]


class SessionUsage(TypedDict):
    """Total number of tokens and calls of a session. `cost`: if the server has prices."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    calls_run: int
    calls_shared: int
    tool_calls: int
    cost: NotRequired[float]


class UsageRow(TypedDict):
    """Sums of the calls of a key, a session, a model and a day, as far as the request groups by them. `tool_calls`:
    runs of tools, which `calls` does not include. `lost_tokens`: completion tokens of attempts whose engine was lost.
    `cost`: in the currency of the operator's prices."""

    key: NotRequired[str]
    session: NotRequired[str]
    model: NotRequired[str]
    day: NotRequired[str]
    calls: int
    tool_calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    lost_tokens: int
    cost: float


class UsageList(TypedDict):
    """A page of usage. `next`: offset of the next page."""

    object: Literal["list"]
    data: list[UsageRow]
    has_more: bool
    next: int | None


SessionState = Literal["running", "idle", "deleted"]


class LimitsObject(TypedDict):
    """Limits of what the calls of a session may use together."""

    tokens: int | None
    cost: float | None
    calls: int | None
    seconds: float | None


class SessionObject(TypedDict):
    """A session. Times are seconds of the Unix clock. `limits`: if the client has set any."""

    id: str
    object: Literal["session"]
    created_at: int
    expires_at: int
    metadata: dict[str, str]
    state: SessionState
    usage: SessionUsage
    limits: NotRequired[LimitsObject]


class SessionList(TypedDict):
    """All sessions of an API key."""

    object: Literal["list"]
    data: list[SessionObject]


class PromptDifference(TypedDict):
    """First difference between the prompt of a call and that of an earlier call which it continues. From there on, no
    engine can reuse the tokens of the earlier prompt.

    `call`: id of the earlier call. `message`: index of the message, null for the tools. `field`: path of the field in
    it. `offset`: position in the field's text, in characters. `earlier`, `later`: excerpts of both texts, at most 80
    characters. `spoiler`: known cause. `lost_tokens`: tokens of the earlier prompt that were computed again because of
    it, null if the engine does not report enough to know it."""

    call: str
    message: int | None
    role: str
    field: str
    offset: int
    earlier: str
    later: str
    spoiler: Literal["billing_line", "countdown", "date", "reasoning", "tools", "cache_control", "unknown"]
    lost_tokens: int | None


class CallObject(TypedDict):
    """A call of a graph. Times are seconds of the Unix clock. `spent_ms`: how the time was spent, by phase.
    `waits_for`: the cause of the wait for the next token, null if the call has ended. `cost` is there if the server has
    prices. `prompt_difference` is there if the call is of a program and its prompt does not extend that of the call
    which it continues. `form`: kind of the call's form, null if it has none; otherwise `model` is empty. `tool`: server
    and name of the tool that the call runs, as `server/name`. `parent`: id of the call whose form added this call."""

    id: str
    model: str
    state: str
    waiting_on: list[str]
    why: str | None
    waits_for: str | None
    inputs: list[str]
    output: str
    slots: list[str]
    form: NotRequired[str | None]
    tool: NotRequired[str | None]
    parent: NotRequired[str | None]
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
    cost: NotRequired[float]
    prompt_difference: NotRequired[PromptDifference]


Edge = TypedDict("Edge", {"from": str, "to": str})
"""Edge of a graph: from a variable to a call that reads it, or from a call to a variable that it produces."""


class GraphObject(TypedDict):
    """The current graph of a session. `last_event_id`: id of the latest event that it includes."""

    last_event_id: int

    calls: list[CallObject]
    variables: list[VariableObject]
    edges: list[Edge]


class ProgramUsage(TypedDict):
    """Sums over all calls of a program. `cost` is there if the server has prices."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    calls: int
    cost: NotRequired[float]


class ProgramObject(TypedDict):
    """A program: requests that belong to one run of an application. Times are seconds of the Unix clock. `session`: the
    session that it stands for, if the client named one."""

    id: str
    object: Literal["program"]
    created_at: int
    last_used_at: int
    state: Literal["running", "idle"]
    session: str | None
    usage: ProgramUsage


class ProgramList(TypedDict):
    """A page of programs."""

    object: Literal["list"]
    data: list[ProgramObject]
    has_more: bool


ProgramLink = TypedDict(
    "ProgramLink",
    {
        "from": str,
        "to": str,
        "kind": Literal["extends", "answer", "spawns"],
        "characters": int,
        "gap_ms": float | None,
        "program": str,
    },
)
"""A link from an earlier call to a later one. `characters`: text of an answer that the later prompt has in one piece.
`gap_ms`: time between the end of the earlier call and the request of the later one, if known: a tool's run, or a
person. `program`: program of the earlier call."""


class ProgramGraph(ProgramObject):
    """A program with its remembered calls. `variables`: the answers, without values; `edges`: as in a session's
    graph."""

    last_event_id: int
    calls: list[CallObject]
    variables: list[VariableObject]
    edges: list[Edge]
    links: list[ProgramLink]


class GraphAnswer(TypedDict):
    """Response to a graph that was run in one request. `errors`: errors of outputs without a value."""

    session: str
    outputs: dict[str, str | None]
    usage: CompletionUsage
    errors: NotRequired[dict[str, FailureObject | None]]


class Tokens(TypedDict):
    """The tokens of a prompt. `max_model_len`: the model's context window, if known."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: NotRequired[list[str]]


class Detokenized(TypedDict):
    """The text of a list of tokens."""

    prompt: str


class Health(TypedDict):
    """State of the server."""

    status: Literal["ok", "ready", "starting", "stopping"]
