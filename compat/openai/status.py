"""Response types of `GET /v1/status`; see docs/api.md."""

from typing import Literal, TypedDict


class EngineObject(TypedDict):
    """An engine. `load`: number of open contexts. `kv_blocks`, `step_seconds`: null if the engine does not report them.
    `problem`: why it accepts no work now, if that is known."""

    name: str
    models: list[str]
    ready: bool
    load: int
    kv_blocks: int | None
    kv_blocks_in_use: int | None
    restarts: int
    step_seconds: float | None
    problem: str | None


class StatusCounters(TypedDict):
    """Counters since the start of the server. `calls`: calls that ended, by state. `missed_tokens`: prompt tokens that
    were not cached, by reason."""

    requests: int
    calls: dict[str, int]
    tokens: dict[str, int]
    missed_tokens: dict[str, int]


class StatusObject(TypedDict):
    """State of the server. `time`: its clock, in seconds of the Unix clock. `waiting`: number of unfinished calls by
    the cause of their wait."""

    object: Literal["status"]
    time: float
    state: Literal["ready", "starting", "stopping"]
    engines: list[EngineObject]
    counters: StatusCounters
    unfinished: int
    waiting: dict[str, int]
