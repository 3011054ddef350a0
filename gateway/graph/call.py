"""A call: one model request, as the segments of its prompt and the variables that it produces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from gateway.graph.errors import Failure
from gateway.graph.references import Reference
from gateway.graph.variable import Piece, Reader, Variable

if TYPE_CHECKING:
    from gateway.graph.session import Session


class CallState(StrEnum):
    """State of a call, as the API reports it. See docs/api.md."""

    WAITING = "waiting"
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    is_final: bool
    """Whether the state never changes again."""

    def __init__(self, value: str) -> None:
        self.is_final = value in ("done", "failed", "cancelled")


class Objective(StrEnum):
    """Optimisation goal of a call: a low latency of its answer, or the throughput of the engines."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling parameters, in the terms of the engine protocol. None leaves a parameter to the engine.

    The fields are those of `engine.protocol.SamplingParams`. `given`: names of the fields that the client specified,
    including those set to the default here, because upstream servers may have other defaults.
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
    regex: str | None = None
    json_schema: str | None = None
    grammar: str | None = None
    thinks: Literal["perhaps", "begun"] | None = None
    prediction: str = field(default="", compare=False)
    given: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @cached_property
    def specified(self) -> Mapping[str, Any]:
        """The parameters that the client specified or that differ from their defaults, by name."""
        defaults = ((parameter.name, getattr(_DEFAULTS, parameter.name)) for parameter in fields(self))
        return {
            name: value for name, default in defaults if (value := getattr(self, name)) != default or name in self.given
        }

    @property
    def is_constrained(self) -> bool:
        """Whether a regular expression, JSON schema or grammar constrains the text."""
        return self.regex is not None or self.json_schema is not None or self.grammar is not None

    @property
    def is_deterministic(self) -> bool:
        """Whether the same prompt always gives the same text."""
        return self.temperature == 0.0 or self.top_p == 0.0 or self.seed is not None

    @property
    def with_positive_top_p(self) -> "SamplingParams":
        """The same sampling for engines without `top_p` 0. That leaves one token, as temperature 0 does."""
        return self if self.top_p else replace(self, temperature=0.0, top_p=1.0)


_DEFAULTS = SamplingParams()


@dataclass(frozen=True)
class Transform:
    """Steps from a generated text to the value of a variable, in the order of the fields. None or False skips a step.

    `line` counts from 0, or from the end if negative. `regex` selects `group` of the first match. `json` is a path as
    in a reference.
    """

    strip: bool = False
    line: int | None = None
    regex: str | None = None
    group: int = 0
    json: str | None = None


@dataclass(frozen=True)
class Text:
    """Known text of a prompt, as tokens. `weight`: number of tokens for estimates, if it differs from their number: an
    image may have many tokens and be prefilled fast."""

    tokens: Sequence[int]
    weight: int | None = None

    @property
    def length(self) -> int:
        """Number of tokens for estimates."""
        return len(self.tokens) if self.weight is None else self.weight


@dataclass(frozen=True)
class Input:
    """Place in a prompt where a variable's value goes. `where`: path of the request's field that contains it."""

    reference: Reference
    where: str


REASONING_START, REASONING_END = "<think>", "</think>"
"""Tags around the reasoning that some models emit before their answer."""


@dataclass(frozen=True)
class Slot:
    """Place in a prompt where the model generates text.

    `name` None: the call's output. `thinks`: whether the generated text may begin with reasoning; `begun`: the prompt
    ends inside the reasoning.
    """

    name: str | None
    sampling: SamplingParams
    transform: Transform | None = None
    where: str = "semantic.output"
    thinks: Literal["perhaps", "begun"] | None = None


Segment = Text | Input | Slot


@dataclass(frozen=True)
class Rendering:
    """A call's prompt, rendered for one model. All renderings of a call have the same slots."""

    model: str
    segments: Sequence[Segment]


@dataclass(frozen=True, kw_only=True)
class CallSpec:
    """A call as a client requests it, before it joins a graph.

    `output` None: the session generates a name. `parts`: texts and references to inputs and slots that are joined to
    form the output, if no slot generates it. With an empty `model` the call has no prompt: it is a template, and its
    output is its parts. `fallbacks`: the prompt rendered for other models, in order of preference, for when no engine
    of this model answers. `inputs`: variables that are set by value before the call. `share`: an identical call may
    serve this one. `salt`: the call's KV cache is shared only with calls of the same salt. `where`: path of the call in
    a request that contains several. `prompt_field`: name of the request's field that contains the prompt.
    """

    model: str
    segments: Sequence[Segment] = ()
    output: str | None = None
    parts: Sequence[str | Input] | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    deferred: bool = False
    objective: Objective | None = None
    share: bool = True
    salt: str = ""
    where: str = ""
    prompt_field: str = "messages"
    fallbacks: Sequence[Rendering] = ()
    slots: Sequence[Slot] = field(init=False, compare=False, repr=False)
    """Slots, in the order in which they are generated."""
    references: Sequence[Input] = field(init=False, compare=False, repr=False)
    """All places where a variable is read, also those that read the call's own slots."""

    def __post_init__(self) -> None:
        slots, references = [], []
        for segment in self.segments:
            if isinstance(segment, Slot):
                slots.append(segment)
            elif isinstance(segment, Input):
                references.append(segment)
        if self.parts is not None:
            references += [part for part in self.parts if isinstance(part, Input)]
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "references", references)

    def field_path(self, field: str) -> str:
        """Return the path of one of the call's fields in the request."""
        return f"{self.where}.{field}" if self.where else field

    @property
    def renderings(self) -> list[Rendering]:
        """The call's own prompt, then those of its fallbacks."""
        return [Rendering(self.model, self.segments), *self.fallbacks]

    @property
    def is_deterministic(self) -> bool:
        """Whether another run of the call gives the same text."""
        return all(slot.sampling.is_deterministic for slot in self.slots)


@dataclass(slots=True)
class Usage:
    """Token counts of one call.

    `prompt` includes `cached`. `missed`: prompt tokens that were not cached, by reason. `accepted`: predicted tokens
    that were right. `rejected`: predicted tokens that were verified and wrong. `reasoning`: completion tokens that are
    not part of the answer.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    missed: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    rejected: int = 0
    reasoning: int = 0


@dataclass(slots=True)
class Times:
    """Times of a call, in seconds of the Unix clock. None until the event happens.

    `held` and `starved` are durations in seconds: how long the prompt waited for a place in an engine's steps, and for
    memory.
    """

    created: float
    queued: float | None = None
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
    held: float = 0.0
    starved: float = 0.0


@dataclass(eq=False, slots=True)
class Call:
    """Owner of a call's state. Only the scheduler's coroutine for the call changes the state.

    `inputs`: the variables that the prompt refers to, by name. `slots`: the variables that it generates in place, by
    name.
    """

    id: str
    spec: CallSpec
    inputs: dict[str, Variable]
    slots: dict[str, Variable]
    output: Variable
    times: Times
    session: "Session"
    arrival: int
    depth: int = 1
    """Number of calls on the longest path to this call, itself included."""
    on_change: "Callable[[Call], None] | None" = None
    """Called after every change of state."""
    state: CallState = CallState.WAITING
    failure: Failure | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    engine: str | None = None
    model: str | None = None
    """Model whose rendering of the prompt was sent."""
    slot_texts: dict[str, str] = field(default_factory=dict)
    """Texts of the finished slots, as they stand in the prompt."""
    identity: bytes | None = None
    """Digest of what the call does, if it may serve identical calls."""
    leader: "Call | None" = None
    """The identical call that serves this one."""
    followers: "list[Call]" = field(default_factory=list)
    """Calls that are served by this one."""
    unfinished_followers: int = 0
    """Number of followers that have not ended."""
    awaits: "Variable | None" = None
    """Variable that the call's coroutine waits for now; None if it waits for none."""
    outputs: list[Variable] = field(init=False)
    """The call's slots, then its output."""

    def __post_init__(self) -> None:
        self.outputs = [*self.slots.values(), self.output]

    @property
    def scope(self) -> str:
        """Scope in which KV cache is shared with the call: its tenant and its salt."""
        salt = self.spec.salt
        return f"{self.session.tenant}\0{salt}" if salt else self.session.tenant

    @property
    def waiting_on(self) -> list[str]:
        """Names of the inputs that are not final yet."""
        if self.state.is_final:
            return []
        return [name for name, variable in self.inputs.items() if not variable.state.is_final]

    @property
    def is_needed(self) -> bool:
        """Whether a client or a call can still read an output."""
        if self.unfinished_followers:
            return True
        return any(
            (self.spec.deferred and not variable.is_deleted) or variable.subscribers or variable.unfinished_consumers
            for variable in self.outputs
        )

    def follow(self, leader: "Call") -> None:
        """Let an identical call serve this one."""
        self.leader = leader
        leader.followers.append(self)
        leader.unfinished_followers += 1

    def stop_following(self) -> None:
        """Stop following the leader, because this call must run itself."""
        if self.leader is not None:
            self.leader.followers.remove(self)
            self.leader.unfinished_followers -= not self.state.is_final
            self.leader = None

    async def until_final(self, variable: Variable) -> None:
        """Wait until the variable is ready, failed or cancelled. Coroutines of calls wait for variables only here, so
        that `is_stuck` knows what they wait for."""
        if variable.state.is_final:
            return
        self.awaits = variable
        try:
            await variable.wait_final()
        finally:
            self.awaits = None

    async def next_pieces(self, reader: Reader, variable: Variable) -> Sequence[Piece]:
        """Wait for the next pieces of a growing variable, and return them. See `Reader.next_pieces`."""
        self.awaits = variable
        try:
            return await reader.next_pieces()
        finally:
            self.awaits = None

    @property
    def is_stuck(self) -> bool:
        """Whether the call waits for a variable that can never get a value: its producer has ended or waits for this
        call, or it has no producer and was deleted, so that no client can set it."""
        awaited, seen = self.awaits, {self.id}
        while awaited is not None and not awaited.state.is_final:
            producer = awaited.producer
            if producer is None:
                return awaited.is_deleted
            if producer.state.is_final or producer.id in seen:
                return True
            seen.add(producer.id)
            awaited = producer.awaits
        return False

    def conclude(self) -> None:
        """Bring the outputs to the final state that corresponds to the call's."""
        for variable in self.outputs:
            if self.state is CallState.DONE:
                variable.complete()
            elif self.failure is None or self.state is CallState.CANCELLED:
                variable.cancel(self.failure or Failure("cancelled", "the call was cancelled", self.id))
            else:
                variable.fail(self.failure)

    def set_state(self, state: CallState) -> None:
        """Change the state. Call it after all other changes that belong to the new state."""
        self.state = state
        if self.on_change is not None:
            self.on_change(self)
