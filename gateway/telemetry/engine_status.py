"""State of one engine, for the API and the live page."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """State of one engine.

    `load`: number of open contexts. `kv_blocks` and `kv_blocks_in_use`: blocks of its KV cache; None if the engine does
    not report them. `restarts`: number of times it was connected again. `step_seconds`: duration of a step with one or
    two decoding contexts, in seconds. `problem`: why it accepts no work, if that is known.
    """

    name: str
    is_ready: bool
    load: int
    kv_blocks: int | None = None
    kv_blocks_in_use: int | None = None
    restarts: int = 0
    step_seconds: float | None = None
    problem: str | None = None
