"""A program: the calls of one run of an application, as far as its requests show it."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from gateway.graph.call import Call, CallState, Times, Usage
from gateway.graph.errors import Failure
from gateway.programs.facts import AnswerKeys
from gateway.programs.prompt_difference import Difference

EdgeKind = Literal["extends", "answer", "spawns"]
"""Relation of two calls: the prompt extends the other's prompt and answer; holds its answer, whole or in part; or is
the first prompt of an agent that the other's answer or session started."""
Evidence = Literal["session", "id", "content", "text", "none"]
"""Evidence that connected a call with its program: a named session, an id of the client, its messages, a text that it
has in common with an answer; or none, because it began the program."""


class Edge(NamedTuple):
    """An edge from an earlier call, by its id, to the call that has the edge. `program`: that of the earlier call when
    the edge was found. `length`: characters that the two have in common, for texts of answers."""

    source: str
    program: str
    kind: EdgeKind
    length: int = 0


@dataclass(slots=True)  # not frozen: each request makes one, and setting frozen fields takes three times as long
class CallRecord:
    """Record of a call that has ended."""

    model: str
    state: CallState
    engine: str | None
    finish_reason: str | None
    failure: Failure | None
    times: Times
    usage: Usage
    cost: float | None


@dataclass(frozen=True, slots=True)
class LostPrefix:
    """Difference because of which a call does not extend the prompt of an earlier one although it continues it.

    `earlier`: id of the earlier call. `tokens`: number of tokens of its prompt that were computed again for this
    reason, if the engine reports enough to know it.
    """

    earlier: str
    difference: Difference
    tokens: int | None


@dataclass(eq=False, slots=True)
class ProgramCall:
    """A call in its program.

    `chain`: hash of the messages without those of the system; `depth`: their number in the whole prompt. `system`: hash
    of the instructions. `parent`: the call whose conversation it extends, while that is remembered.
    """

    id: str
    program: "Program"
    begun: float
    """Time of the request, in seconds of the clock of `ProgramIndex.begin`."""
    chain: int = 0
    depth: int = 0
    system: int = 0
    has_answers: bool = False
    """Whether the prompt has messages of the assistant."""
    weak: str | None = None
    parent: "ProgramCall | None" = None
    evidence: Evidence = "none"
    edges: Sequence[Edge] = ()
    tool_names: Sequence[str] = ()
    """Names of the tools that the answer calls: the next request of the program follows their run."""
    answer: AnswerKeys | None = None
    """Keys of the answer, once the call has ended with one."""
    ended: float | None = None
    """Time of the end, in seconds of the same clock; None while the call runs."""
    is_extended: bool = False
    """Whether a later call extends it."""
    is_done: bool = False
    """Whether it has ended with an answer."""
    is_forgotten: bool = False
    parser_factory: Callable[[], Any] | None = None
    """Creates a parser that finds tool calls in the answer, for the gateway, while the call runs."""
    call: Call | None = None
    """The call while it runs, if the gateway has attached it."""
    record: CallRecord | None = None
    size: int = 0
    """Approximate memory, in bytes."""
    prompt: Sequence[str] = ()
    """New texts of the prompt, while the call runs."""
    continued: "ProgramCall | None" = None
    """The call whose prompt this prompt should extend, because it has its answer, while the call runs."""
    source: Any = None
    """The prompt as the gateway has it, while the call runs."""
    lost_prefix: LostPrefix | None = None
    """Difference between the prompt and that of the continued call, once it is known."""

    @property
    def program_id(self) -> str:
        """Id of its program. It changes if that program turns out to be part of another."""
        return self.program.id

    @property
    def follows_tools(self) -> bool:
        """Whether the call extends an answer that calls tools, so that the tools have run in between."""
        return self.parent is not None and bool(self.parent.tool_names)


@dataclass(eq=False, slots=True)
class Program:
    """Owner of its remembered calls and of the sums over all its calls.

    `created_at`, `last_used_at`: Unix times of the first and of the latest event, in seconds, which are only shown.
    `last_used`: time of the latest event, in seconds of the clock of `ProgramIndex.begin`. `session`: session of the
    gateway that it stands for. `is_named`: whether an id of the client names it.
    """

    id: str
    tenant: str
    created_at: float
    last_used: float
    last_used_at: float = 0.0
    order: int = 0
    """Number of its latest use: higher than that of a program which was used before."""
    session: str | None = None
    is_named: bool = False
    calls: "OrderedDict[str, ProgramCall]" = field(default_factory=OrderedDict)
    """Remembered calls by id, the one that was used longest ago first."""
    names: list[str] = field(default_factory=list)
    """Ids of the client that lead to this program."""
    former_ids: list[str] = field(default_factory=list)
    """Ids of programs that turned out to be part of this one."""
    call_count: int = 0
    """Number of all calls, including forgotten ones."""
    running: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
