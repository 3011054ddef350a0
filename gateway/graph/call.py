"""A call: one model request, as segments of a prompt and the variables that take what is generated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from gateway.graph.errors import Failure
from gateway.graph.references import Reference
from gateway.graph.variable import Variable

if TYPE_CHECKING:
    from gateway.graph.session import Session


class CallState(StrEnum):
    """See API.md, Vocabulary."""

    WAITING = "waiting"
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    final: bool
    """Whether nothing comes after it."""

    def __init__(self, value: str) -> None:
        self.final = value in ("done", "failed", "cancelled")


class Objective(StrEnum):
    """What a call is for: an answer soon, or much work done."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a text is chosen, in the terms of the engines' contract; None leaves it to the engine.

    The fields are those of `engine.protocol.SamplingParams`. `given`: names of the fields that the client set, also to
    a value that is the default here; engines elsewhere may have other defaults.
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
    def told(self) -> Mapping[str, Any]:
        """What the client gave, and what else is not as usual, by name."""
        usual = ((own.name, getattr(_USUAL, own.name)) for own in fields(self))
        return {name: value for name, other in usual if (value := getattr(self, name)) != other or name in self.given}

    @property
    def held(self) -> bool:
        """Whether the text is held to a form."""
        return self.regex is not None or self.json_schema is not None or self.grammar is not None

    @property
    def deterministic(self) -> bool:
        """Whether the same prompt gives the same text."""
        return self.temperature == 0.0 or self.top_p == 0.0 or self.seed is not None

    @property
    def plain(self) -> "SamplingParams":
        """The same sampling for engines without `top_p` 0, which leaves only one token, as temperature 0 does."""
        return self if self.top_p else replace(self, temperature=0.0, top_p=1.0)


_USUAL = SamplingParams()


@dataclass(frozen=True)
class Transform:
    """What is made of a generated text before it becomes a value: steps in the order in which they stand here, None or
    False leaves one out.

    `line` counts from 0, or from the end if negative. `regex` takes the first match's `group`. `json` is a path as in
    a reference.
    """

    strip: bool = False
    line: int | None = None
    regex: str | None = None
    group: int = 0
    json: str | None = None


@dataclass(frozen=True)
class Text:
    """A piece of prompt that is known, as tokens. `weight`: how many it is to be reckoned as, if that is not their
    number: an image may be written long, and is read fast."""

    tokens: Sequence[int]
    weight: int | None = None

    @property
    def length(self) -> int:
        """Tokens, for reckoning."""
        return len(self.tokens) if self.weight is None else self.weight


@dataclass(frozen=True)
class Input:
    """A piece of prompt that is a variable's value. `where`: the field of the request that holds it."""

    reference: Reference
    where: str


THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
"""Between these, models that think write what is no part of their answer."""


@dataclass(frozen=True)
class Slot:
    """A place where text is generated. `name` None: the call's output. `thinks`: whether thoughts may stand before it
    in what is generated; `begun`: the prompt ends within them."""

    name: str | None
    sampling: SamplingParams
    transform: Transform | None = None
    where: str = "semantic.output"
    thinks: Literal["perhaps", "begun"] | None = None


Segment = Text | Input | Slot


@dataclass(frozen=True)
class Rendering:
    """A call's prompt as one model is given it. Its slots are the call's."""

    model: str
    segments: Sequence[Segment]


@dataclass(frozen=True, kw_only=True)
class CallSpec:
    """What a client asks for, before it is part of a graph.

    `output` None: a generated name. `parts`: what the output is put together from where no slot generates it: texts and
    references to inputs and slots. With an empty `model` the call has no prompt: its output is its parts, a template.
    `fallbacks`: the same for other models, which answer if no engine of this one does, in this order. `inputs`:
    variables set by value before the call. `share`: an identical call may serve this one. `salt`: its KV is
    shared with calls of the same salt only. `where`: the path of what asks for it in a larger request.
    `prompt_field`: the name of the request's field that has the prompt.
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
    """In the order in which they are generated."""
    references: Sequence[Input] = field(init=False, compare=False, repr=False)
    """Every place where a value is read, those of its own slots among them."""

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

    def at(self, field: str) -> str:
        """The path of one of its fields in the request."""
        return f"{self.where}.{field}" if self.where else field

    @property
    def renderings(self) -> list[Rendering]:
        """Its own prompt, then those of its fallbacks."""
        return [Rendering(self.model, self.segments), *self.fallbacks]

    @property
    def deterministic(self) -> bool:
        """Whether running it again gives the same."""
        return all(slot.sampling.deterministic for slot in self.slots)


@dataclass(slots=True)
class Usage:
    """Tokens of one call. `prompt` includes `cached`. `missed`: those of the prompt that were not, by the reason.
    `accepted`, `rejected`: those of the prediction that were right, and that were checked and wrong. `reasoning`: those
    of the completion that are no part of the answer."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    missed: dict[str, int] = field(default_factory=dict)
    accepted: int = 0
    rejected: int = 0
    reasoning: int = 0


@dataclass(slots=True)
class Times:
    """Seconds of the Unix clock; None until it happens. `held` and `starved` are durations: how long its prompt waited
    for room in an engine's steps, and for memory."""

    created: float
    queued: float | None = None
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
    held: float = 0.0
    starved: float = 0.0


@dataclass(eq=False, slots=True)
class Call:
    """Owner of a call's state; the dispatcher's coroutine for it is the only one that moves it on.

    `inputs`: the variables that the prompt refers to, by name. `slots`: those it generates in place, by name.
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
    """Calls on the longest way to it, itself counted."""
    note: "Callable[[Call], None] | None" = None
    """Called after every change of state."""
    state: CallState = CallState.WAITING
    failure: Failure | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    engine: str | None = None
    model: str | None = None
    """Whose prompt it was given."""
    made: dict[str, str] = field(default_factory=dict)
    """Texts of the slots that are done, as they stand in the prompt."""
    identity: bytes | None = None
    """What it does, as a digest, if it may serve identical calls."""
    leader: "Call | None" = None
    """The identical call that serves this one."""
    followers: "list[Call]" = field(default_factory=list)
    """Calls that are served by this one."""
    unfinished_followers: int = 0
    """How many of the followers have not ended."""
    awaits: "Variable | None" = None
    """Variable that the call's coroutine waits for now; None if it waits for none."""
    outputs: list[Variable] = field(init=False)
    """Its slots, then its output."""

    def __post_init__(self) -> None:
        self.outputs = [*self.slots.values(), self.output]

    @property
    def scope(self) -> str:
        """Whose KV may be shared with it: the tenant's, and of the same salt."""
        salt = self.spec.salt
        return f"{self.session.tenant}\0{salt}" if salt else self.session.tenant

    @property
    def waiting_on(self) -> list[str]:
        """Names of the inputs that are not final yet."""
        if self.state.final:
            return []
        return [name for name, variable in self.inputs.items() if not variable.state.final]

    @property
    def is_needed(self) -> bool:
        """Whether anybody can still read what it makes: see API.md, promise 4."""
        if self.unfinished_followers:
            return True
        return any(
            (self.spec.deferred and not variable.deleted) or variable.subscribers or variable.unfinished_consumers
            for variable in self.outputs
        )

    def follow(self, leader: "Call") -> None:
        """Be served by an identical call from here on."""
        self.leader = leader
        leader.followers.append(self)
        leader.unfinished_followers += 1

    def stop_following(self) -> None:
        """Be served by the leader no longer; it starts anew."""
        if self.leader is not None:
            self.leader.followers.remove(self)
            self.leader.unfinished_followers -= not self.state.final
            self.leader = None

    async def until_final(self, variable: Variable) -> None:
        """Wait until the variable is ready, failed or cancelled. Coroutines of calls wait for variables only here, so
        that `is_stuck` knows what they wait for."""
        if variable.state.final:
            return
        self.awaits = variable
        try:
            await variable.wait_final()
        finally:
            self.awaits = None

    @property
    def is_stuck(self) -> bool:
        """Whether the call waits for a variable that can never get a value: its producer has ended or waits for this
        call, or it has no producer and was deleted, so that no client can set it."""
        awaited, seen = self.awaits, {self.id}
        while awaited is not None and not awaited.state.final:
            producer = awaited.producer
            if producer is None:
                return awaited.deleted
            if producer.state.final or producer.id in seen:
                return True
            seen.add(producer.id)
            awaited = producer.awaits
        return False

    def conclude(self) -> None:
        """What the call makes ends as it did."""
        for variable in self.outputs:
            if self.state is CallState.DONE:
                variable.complete()
            elif self.failure is None or self.state is CallState.CANCELLED:
                variable.cancel(self.failure or Failure("cancelled", "the call was cancelled", self.id))
            else:
                variable.fail(self.failure)

    def move(self, state: CallState) -> None:
        """To a new state, once nothing else of the call changes with it any more."""
        self.state = state
        if self.note is not None:
            self.note(self)
