"""A call: one model request, as the segments of its prompt and the variables that it produces."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

from gateway.graph.errors import Failure
from gateway.graph.forms.form import Branch, Form, Map, Origin, Repeat, ToolRun, references_of
from gateway.graph.segments import Input, Segment, Slot
from gateway.graph.trace_context import TraceContext
from gateway.graph.variable import Piece, Reader, Variable, VariableState

if TYPE_CHECKING:
    from gateway.graph.budget import Budget
    from gateway.graph.session import Session


class CallState(StrEnum):
    """State of a call, as the API reports it. See docs/api.md."""

    WAITING = "waiting"
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    is_final: bool
    """Whether the state never changes again."""

    def __init__(self, value: str) -> None:
        self.is_final = value in ("done", "failed", "cancelled")


WaitCause = Literal["inputs", "tool", "queue", "prompt", "answer"]
"""Cause of a call's wait: the value of another call, a value that a client sets (such as the result of a tool), an
engine, its prefill, its own next token."""

_WAIT_CAUSES: Mapping[CallState, WaitCause] = {
    CallState.WAITING: "inputs",
    CallState.QUEUED: "queue",
    CallState.PREFILL: "prompt",
    CallState.DECODE: "answer",
    CallState.RUNNING: "tool",
}
"""Causes by state, for calls that wait for no variable."""


class Objective(StrEnum):
    """Optimisation goal of a call: a low latency of its answer, or the throughput of the engines."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True)
class Rendering:
    """A call's prompt, rendered for one model. All renderings of a call have the same slots."""

    model: str
    segments: Sequence[Segment]


@dataclass(frozen=True, kw_only=True)
class CallSpec:
    """A call as a client requests it, before it joins a graph.

    `output` None: the session generates a name. `parts`: texts and references to inputs and slots that are joined to
    form the output, if no slot generates it. An empty `model` describes a call without a prompt: a template, whose
    parts form the value, or a form. `form`: form that the call runs, and `more_outputs`: its outputs beside `output`.
    `origin`: place in the form that added the call. `unresolved`: reason why the call fails once it runs: it reads
    a path that an element of a map lacks; None if there is none. `fallbacks`: the prompt rendered for other models,
    in order of preference; used if no engine of this model answers. `inputs`: values in the request, by the
    variables that are set to them before the call starts. `defaults`: texts that replace references of the
    prompt whose variables are skipped, by the names of these variables. `share`: an identical call may serve this one.
    `salt`: the call's KV cache is shared only with calls of the same salt. `where`: path of the call in a request that
    contains several. `prompt_field`: name of the request's field that contains the prompt.
    """

    model: str
    segments: Sequence[Segment] = ()
    output: str | None = None
    parts: Sequence[str | Input] | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    deferred: bool = False
    objective: Objective | None = None
    share: bool = True
    salt: str = ""
    where: str = ""
    prompt_field: str = "messages"
    fallbacks: Sequence[Rendering] = ()
    form: Form | None = None
    more_outputs: Sequence[str] = ()
    origin: Origin | None = None
    unresolved: str | None = None
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
        if self.form is not None:
            references += references_of(self.form)
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "references", references)

    def field_path(self, field: str) -> str:
        """Return the path of one of the call's fields in the request."""
        return f"{self.where}.{field}" if self.where else field

    @property
    def output_path(self) -> str:
        """Path of the request's field that names the outputs. A branch has none: the calls on its sides name them."""
        if self.model:
            return self.field_path("semantic.output")
        if isinstance(self.form, Repeat):
            return self.field_path("outputs")
        return self.where if self.form is None or isinstance(self.form, Branch) else self.field_path("output")

    def as_form(self, form: Form) -> "CallSpec":
        """Return a call that runs a form in place of this call, with the same output, inputs and place."""
        return CallSpec(
            model="",
            form=form,
            output=self.output,
            inputs=self.inputs,
            deferred=self.deferred,
            objective=self.objective,
            where=self.where,
            prompt_field=self.prompt_field,
        )

    @property
    def is_counted(self) -> bool:
        """Whether the call is a call of a model or a tool, and not a template or another form."""
        return bool(self.model) or isinstance(self.form, ToolRun)

    @property
    def names(self) -> list[str]:
        """Names of the variables that the call generates, its output last. A name that the session will generate is
        left out."""
        names = [slot.name for slot in self.slots if slot.name is not None]
        return [*names, *self.more_outputs, *([self.output] if self.output else [])]

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

    def add(self, other: "Usage") -> None:
        """Add the counts of another call."""
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.reasoning += other.reasoning
        for reason, tokens in other.missed.items():
            self.missed[reason] = self.missed.get(reason, 0) + tokens


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


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that failed, after which its call got another one.

    `engine`: None if no engine accepted the call. `code`: code of the failure. `times`: times of this attempt; it was
    created when the attempt before it failed, and finished when it failed itself.
    """

    engine: str | None
    model: str
    code: str
    times: Times


class ProgramMember(Protocol):
    """Place of a call in the program that it belongs to. See `gateway/programs`."""

    @property
    def id(self) -> str:
        """Unique id."""

    @property
    def parent(self) -> "ProgramMember | None":
        """Place of the call whose prompt and answer this call's prompt extends."""

    @property
    def program_id(self) -> str:
        """Id of the program."""


@dataclass(eq=False, slots=True)
class Call:
    """Owner of a call's state. Only the scheduler's coroutine for the call changes the state.

    `inputs`: the variables that the prompt refers to, by name. `slots`: the variables of the slots in its prompt, by
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
    """Function that is called after every change of state."""
    state: CallState = CallState.WAITING
    failure: Failure | None = None
    usage: Usage = field(default_factory=Usage)
    lost_tokens: int = 0
    """Completion tokens of attempts that did not end the call; `usage` does not count them."""
    finish_reason: str | None = None
    stop_string: str | None = None
    """Stop string that ended the text, if the engine reported one."""
    engine: str | None = None
    model: str | None = None
    """Model whose rendering of the prompt was sent."""
    failed_attempts: Sequence[FailedAttempt] = ()
    """Attempts before the current or last one. `engine`, `model` and `times` are those of the current one."""
    slot_texts: dict[str, str] = field(default_factory=dict)
    """Texts of the finished slots, as they stand in the prompt."""
    identity: bytes | None = None
    """Digest that is equal for identical calls, if the call may serve them."""
    budget: "Budget | None" = None
    """Limits of what the calls that the form adds may use, and the calls that these add."""
    children: "dict[str, Call]" = field(default_factory=dict)
    """Calls that this call's form has added, by their place in the form."""
    adoption: "asyncio.Event | None" = None
    """Event that is set when the form adds a call, while a client waits for one."""
    was_running: bool = False
    """Whether the call was in the state `running` before a restart."""
    leader: "Call | None" = None
    """The identical call that serves this one."""
    followers: "list[Call]" = field(default_factory=list)
    """Calls that are served by this one."""
    unfinished_followers: int = 0
    """Number of followers that have not ended."""
    trace: TraceContext | None = None
    """Span that the call's request belongs to, if the request names one and traces are exported."""
    program: ProgramMember | None = None
    """Place in a program, if the gateway looks for programs and the call is of a request of its own."""
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
    def budgets(self) -> "Sequence[Budget]":
        """All budgets that count the call: that of its session, and those of the forms that it is inside."""
        found = [] if self.session.budget is None else [self.session.budget]
        call = self
        while call.spec.origin is not None:
            call = self.session.calls[call.spec.origin.call]
            if call.budget is not None:
                found.append(call.budget)
        return found

    @property
    def waiting_on(self) -> list[str]:
        """Names of the inputs that are not final yet."""
        if self.state.is_final:
            return []
        return [name for name, variable in self.inputs.items() if not variable.state.is_final]

    @property
    def spent_tokens(self) -> tuple[int, int, int]:
        """Prompt tokens, those of them that were cached, and completion tokens that the call has used so far.

        A call that an identical one serves uses none, and neither does a form: its calls do. A prompt counts once an
        engine has prefilled it.
        """
        if self.leader is not None or self.spec.form is not None:
            return 0, 0, 0
        usage = self.usage
        if self.times.started is None:
            return 0, 0, usage.completion
        return usage.prompt, usage.cached, usage.completion

    @property
    def has_run_tool(self) -> bool:
        """Whether the call has begun to run a tool. The result of an identical call is no run of its own."""
        is_tool = isinstance(self.spec.form, ToolRun) and self.leader is None
        return is_tool and (self.was_running or self.times.started is not None)

    @property
    def waits_for(self) -> "WaitCause | None":
        """Cause of the wait for the next token; None if the call has ended. It costs the same for all calls."""
        if self.awaits is not None:
            return "tool" if self.awaits.producer is None else "inputs"
        return _WAIT_CAUSES.get(self.state)

    @property
    def is_needed(self) -> bool:
        """Whether a client or a call can still read an output, or the call ends anyway: all outputs are final."""
        if self.unfinished_followers or all(variable.state.is_final for variable in self.outputs):
            return True
        return any(
            (self.spec.deferred and not variable.is_deleted) or variable.subscribers or variable.unfinished_consumers
            for variable in self.outputs
        )

    def descendants(self) -> "Iterator[Call]":
        """Yield the calls that the form has added, and those that these have added."""
        stack = list(self.children.values())
        while stack:
            call = stack.pop()
            yield call
            stack += call.children.values()

    def default_of(self, source: Variable) -> str | None:
        """Return the text that replaces references to a skipped variable in this call. Return None if the variable is
        not skipped, or if this call has no default of its own for it; the branch may have one."""
        return self.spec.defaults.get(source.name) if source.state is VariableState.SKIPPED else None

    def survives(self, source: Variable) -> bool:
        """Return whether the call continues although a variable that it reads has ended without a value.

        A call continues if it has a default for the variable, which is skipped. A form continues, and fails only once
        it needs the variable, so that its result does not depend on which of its calls fails first. Exception: a map
        with `on_error` "fail" ends as soon as the answer for an element has failed.
        """
        if self.default_of(source) is not None:
            return True
        form = self.spec.form
        if not isinstance(form, Map) or form.on_error != "fail":
            return form is not None
        producer = source.producer
        if producer is None or source is not producer.output:  # further outputs of an element are not in the results
            return True
        return producer.spec.origin is None or producer.spec.origin.call != self.id

    def adopt(self, child: "Call") -> None:
        """Read the outputs of a call that this call's form has added."""
        assert child.spec.origin is not None, "only a form adds calls"
        self.children[child.spec.origin.place] = child
        if self.adoption is not None:
            self.adoption.set()
        for variable in child.outputs:
            self.inputs[variable.name] = variable
            variable.consumers.append(self)
            variable.unfinished_consumers += not self.state.is_final

    async def until_child(self, place: str) -> "Call | None":
        """Wait for the call at a place of this call's form, and return it; None if the form ends without it."""
        while place not in self.children and not self.output.state.is_final:
            if self.adoption is None or self.adoption.is_set():
                self.adoption = asyncio.Event()
            waits = [
                asyncio.ensure_future(self.adoption.wait()),
                asyncio.ensure_future(self.output.wait_final()),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        return self.children.get(place)

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
        that `is_stuck` knows the variable."""
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
