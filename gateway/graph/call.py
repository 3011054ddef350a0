"""A call: one model request, as segments of a prompt and the variable that takes the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.graph.errors import Failure
from gateway.graph.references import Reference
from gateway.graph.variable import Variable


class CallState(StrEnum):
    """See API.md, Vocabulary."""

    WAITING = "waiting"
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing comes after it."""
        return self in (CallState.DONE, CallState.FAILED, CallState.CANCELLED)


class Objective(StrEnum):
    """What a call is for: an answer soon, or much work done."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True)
class Text:
    """A piece of prompt that is known, as tokens."""

    tokens: Sequence[int]


@dataclass(frozen=True)
class Input:
    """A piece of prompt that is a variable's value. `where`: the field of the request that holds it."""

    reference: Reference
    where: str


Segment = Text | Input


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the answer is chosen, in the terms of the engines' contract; None leaves it to the engine.

    Fields mean what they mean in `engine.link.Sampling`.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True, kw_only=True)
class CallSpec:
    """What a client asks for, before it is part of a graph. `output` None: a generated name."""

    model: str
    segments: Sequence[Segment]
    sampling: Sampling
    output: str | None = None
    deferred: bool = False
    objective: Objective | None = None


@dataclass
class Usage:
    """Tokens of one call. `prompt` includes `cached`."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass
class Times:
    """Seconds of the Unix clock; None until it happens."""

    created: float
    queued: float | None = None
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(eq=False)
class Call:
    """Owner of a call's state; the dispatcher's coroutine for it is the only one that moves it on.

    `inputs`: the variables that the segments refer to, by name.
    """

    id: str
    spec: CallSpec
    inputs: dict[str, Variable]
    output: Variable
    times: Times
    scope: str
    """Whose KV may be shared with: the tenant."""
    arrival: int
    state: CallState = CallState.WAITING
    failure: Failure | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    engine: str | None = None

    @property
    def waiting_on(self) -> list[str]:
        """Names of the inputs that are not final yet."""
        if self.state is not CallState.WAITING:
            return []
        return [name for name, variable in self.inputs.items() if not variable.state.final]

    @property
    def wanted(self) -> bool:
        """Whether anybody can still read what it makes: see API.md, promise 4."""
        if self.spec.deferred or self.output.readers:
            return True
        return any(not consumer.state.final for consumer in self.output.consumers)
