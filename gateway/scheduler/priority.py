"""Priorities: the order of waiting work, as a deadline for each call.

A subscriber wants a variable by a deadline: now, plus the longest path through the graph to it, plus a multiple of all
the work that it needs. Its inputs are due a little earlier, by an amount that grows with the time of the call that
reads them, and so on backwards. So within an application the longest remaining path goes first, and calls that feed one
consumer run together. Between applications, small ones go before large ones, and equal ones in the order of arrival.
All deadlines are times of one clock, so no call waits for ever. This is earliest deadline first (EDF), with deadlines
inherited along the graph.

A plain request of a program that has attained much service gets a deadline that is later by at most `MAX_DELAY`. If
programs are ordered as a whole, the deadline also depends on the arrival and the progress of its program, so that
programs that run end before newcomers take their memory. See `gateway.programs.service` for both, and for the bounds of
starvation.

There is no clock and no I/O here: the caller passes the time.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from gateway.engines.protocol import Urgency
from gateway.graph.call import Call, Objective, ProgramMember
from gateway.graph.prefix_hash import PrefixKey, prefix_keys
from gateway.graph.variable import Variable
from gateway.programs.service import MAX_DELAY, ProgramService
from gateway.scheduler.cost_model import Cost, CostModel
from gateway.scheduler.fair_queue import FairQueue
from gateway.scheduler.objective import dependents_of, sources
from gateway.scheduler.prefix_index import PrefixIndex

PATIENCE_SECONDS = 30.0
"""Deadline extension, in seconds, for calls without a waiting client, and for calls of objective throughput."""
WORK_FACTOR = 3.0
"""Deadline extension per second of needed work.

With a small factor, almost every call is late under load, and the order becomes that of arrival. With a large factor,
large applications wait for small ones.
"""
LONG_WORK_EXTENSION = 120.0
"""Additional deadline extension, in seconds, for work that is not short.

Under overload every call becomes late. A question that takes a second must not wait for all of the late work.
"""
SHORT_WORK = 2.0
"""Work in seconds up to which LONG_WORK_EXTENSION does not apply. From here to twice as much it grows to its full
size."""
PRODUCER_LEAD = 1e-6
"""Share of a call's time by which the calls that it reads are due before it.

It is enough to order the calls of an application, and so small that engines treat them as equally urgent. With the
whole time, the beginning of a long application would go before the end of an earlier one, and both would end late.
"""
_UNKNOWN_WINDOW = 131_072
"""Assumed window of a model whose server does not report it, in tokens."""
_MAX_VISITED = 1000
"""Maximum number of calls that are visited to sum up the work that a call needs. Beyond it, the work of the whole
session counts."""


class Order(StrEnum):
    """Order of waiting work: by deadline (`need`), or first come, first served (`arrival`)."""

    NEED = "need"
    ARRIVAL = "arrival"


class Priorities:
    """Owner of the ranks of all unfinished calls. The lowest rank goes first.

    For each call

        rank = min(own deadline, ranks of the unfinished calls that read or follow it) - PRODUCER_LEAD * time

    So a call never has a higher rank than a call that needs it. Calls of its tenant that arrive after a call's own
    deadline cannot overtake it, except calls of programs that are due earlier: these for a bounded time, see
    `gateway.programs.service`.

    A change of the graph marks the calls that it concerns. The next query of ranks computes these calls and, as far as
    their ranks change, their ancestors, once each. The time is linear in the edges between them, however many changes
    there were.
    """

    def __init__(
        self,
        cost_model: CostModel,
        order: Order = Order.NEED,
        weights: Mapping[str, float] | None = None,
        *,
        orders_programs: bool = False,
        window_of: Callable[[str], int | None] = lambda model: None,
    ) -> None:
        """`order`: with `Order.ARRIVAL`, engines get the order of arrival only. `weights`: weights of the
        tenants for the fair queue; 1 if not listed. `orders_programs`: calls of programs go in the order of the
        programs. `window_of`: returns the window of a model, in tokens, None if it is not known."""
        self.cost_model = cost_model
        self.order = order
        self._orders_programs = orders_programs
        self._window_of = window_of
        self.prefix_index = PrefixIndex()
        self._entries: dict[str, _Entry] = {}
        self._sessions: dict[int, _Outstanding] = {}
        self.fair_queue = FairQueue({} if weights is None else weights)
        self.programs = ProgramService(weights)
        """Service that programs have attained."""
        self._changed: dict[str, Call] = {}
        self._stale: dict[str, Call] = {}
        """Calls whose ranks must be computed again, because their dependents or their deadlines have changed."""

    def add(self, call: Call, now: float) -> None:
        """Add a call that joined the graph, after all calls that it reads. Adding it a second time does nothing."""
        if call.id in self._entries or call.state.is_final:
            return
        prefixes = prefix_keys(call, own=False)
        cost = self.cost_model.cost(call, self.prefix_index.covered_tokens(prefixes, id(call.session)))
        self.prefix_index.add(prefixes, id(call.session))
        source_entries = [entry for source in sources(call) if (entry := self._entries.get(source.id)) is not None]
        path = cost.time + max([source_entry.path for source_entry in source_entries], default=0.0)
        fair_offset = self.fair_queue.request(call.session.tenant, cost.work)
        session = self._sessions.setdefault(id(call.session), _Outstanding())
        session.calls += 1
        session.seconds += cost.work
        patience = 0.0 if call.spec.objective is Objective.LATENCY else PATIENCE_SECONDS
        if call.program is not None and not call.session.id:
            fair_offset += self._program_offset(call, call.program, cost, now)
        elif self._orders_programs:
            fair_offset -= self.programs.average_lead(call.session.tenant, now)
        deadline_unread = now + fair_offset + patience + path + deadline_extension(session.seconds)
        self._entries[call.id] = entry = _Entry(call, prefixes, cost, path, fair_offset, deadline_unread)
        self._changed[call.id] = call
        entry.dependents = self._count_dependents(call)
        for source_entry in source_entries:
            if not source_entry.dependents:
                self._stale[source_entry.call.id] = source_entry.call  # its unread deadline does not count any more
            source_entry.dependents += 1
        if source_entries or entry.dependents:
            self._stale[call.id] = call
        else:  # the common case: a call without edges
            entry.rank = deadline_unread - entry.producer_lead
        for variable in call.outputs:
            if variable.subscribers:  # clients that subscribed before the call was added
                self.subscribe(
                    variable, Objective.LATENCY if variable.latency_subscribers else Objective.THROUGHPUT, now
                )

    def _program_offset(self, call: Call, member: ProgramMember, cost: Cost, now: float) -> float:
        """Record a call of a program. Return how much later its deadline is because of its program, in seconds."""
        program, tenant = member.program_id, call.session.tenant
        window = self._window_of(call.spec.model or "") or _UNKNOWN_WINDOW
        extends = member.parent is not None and member.parent.program_id == program
        self.programs.begin(program, tenant, now, cost.prompt / window, extends=extends)
        if self._orders_programs:
            return -self.programs.lead(program, tenant, now)
        return min(MAX_DELAY, self.programs.delay(program, now))

    def program_rank(self, call: Call, now: float) -> float:
        """Return the rank of a call's program: the lowest goes first. For a call without one, the time."""
        return now if call.program is None else self.programs.rank(call.program.program_id, now)

    def charge_program(self, call: Call, now: float) -> None:
        """Add what a call has used to the service of its program."""
        if call.program is not None and not call.session.id:
            self.programs.charge(call.program.program_id, self.cost_model.used_seconds(call), now)

    def prompt_prefilled(self, call: Call) -> None:
        """Record that an engine has prefilled the call's prompt: calls with the same beginning have less work."""
        self.prefix_index.mark_prefilled(self.prefixes(call))

    def subscribe(self, variable: Variable, objective: Objective, now: float) -> None:
        """Record a client that waits for the variable. For a call that is added later, `add` looks for subscribers."""
        call = variable.producer
        entry = None if call is None else self._entries.get(call.id)
        if call is None or entry is None:
            return
        patient = objective is Objective.THROUGHPUT or call.spec.objective is Objective.THROUGHPUT
        patience = PATIENCE_SECONDS if patient else 0.0
        deadline = now + entry.fair_offset + patience + entry.path + deadline_extension(self._needed_work(call))
        if deadline < entry.deadline:
            entry.deadline = deadline
            self._stale[call.id] = call
        self._changed[call.id] = call  # it may have become interactive

    def follow(self, call: Call, leader: Call) -> None:
        """Record that the call follows the leader from now on, or has stopped following it."""
        entry = self._entries.get(leader.id)
        if entry is not None:
            entry.dependents = self._count_dependents(leader)
            self._stale[leader.id] = self._changed[leader.id] = leader

    def unsubscribe(self, variable: Variable) -> None:
        """Record that a client waits for the variable no longer."""
        call = variable.producer
        if call is not None and call.id in self._entries:
            self._changed[call.id] = call

    def end(self, call: Call) -> None:
        """Remove a call that has ended. The calls that it waited for get ranks that follow from their other dependents
        alone."""
        entry = self._entries.pop(call.id, None)
        if entry is None:
            return
        self._changed.pop(call.id, None)
        self.fair_queue.finish(call.session.tenant, entry.cost.work)
        session = self._sessions[id(call.session)]
        session.calls -= 1
        session.seconds -= entry.cost.work
        if not session.calls:
            del self._sessions[id(call.session)]
        for source in sources(call):
            source_entry = self._entries.get(source.id)
            if source_entry is not None:
                source_entry.dependents -= 1
                if not source_entry.dependents or source_entry.rank == entry.rank - source_entry.producer_lead:
                    self._stale[source.id] = source

    def urgency(self, call: Call) -> Urgency:
        """Return the urgency of the call for engines."""
        if self.order is Order.ARRIVAL:
            return Urgency(call.arrival, interactive=True)
        return Urgency(self.rank(call), _is_interactive(call))

    def rank(self, call: Call) -> float:
        """Return the call's rank: its deadline in seconds of the caller's clock. For a call that has ended, 0."""
        self._settle()
        entry = self._entries.get(call.id)
        return 0.0 if entry is None else entry.rank

    def prefixes(self, call: Call) -> list[PrefixKey]:
        """Return the prefix keys of the call's prompt."""
        entry = self._entries.get(call.id)
        return prefix_keys(call, own=False) if entry is None else entry.prefixes

    def changed(self) -> Iterator[Call]:
        """Return the calls whose urgency may have changed since this method ran last."""
        self._settle()
        changed, self._changed = self._changed, {}
        return iter(changed.values())

    def _needed_work(self, call: Call) -> float:
        """Return the seconds of unfinished work that the call waits for, its own included."""
        if not call.inputs and call.leader is None:
            return self._entries[call.id].cost.work
        seconds = 0.0
        stack, seen = [call], {call.id}
        while stack:
            entry = self._entries.get(stack.pop().id)
            if entry is None:
                continue
            if len(seen) > _MAX_VISITED:
                return self._sessions[id(call.session)].seconds
            seconds += entry.cost.work
            for source in sources(entry.call):
                if source.id not in seen:
                    seen.add(source.id)
                    stack.append(source)
        return seconds

    def _settle(self) -> None:
        """Compute the ranks of all calls that are marked as stale, and of their ancestors."""
        if not self._stale:
            return
        stale, self._stale = self._stale, {}
        affected: dict[str, Call] = {}
        for call in stale.values():
            self._update(call, affected)
        if affected:
            for call in self._dependents_first(list(affected.values())):
                if call.id in affected:
                    self._update(call, affected)

    def _update(self, call: Call, affected: dict[str, Call]) -> None:
        """Compute the rank of a call. If it changes, add those of the calls that it waits for to `affected` whose ranks
        change with it."""
        entry = self._entries.get(call.id)
        if entry is None:
            return
        before, rank = entry.rank, self.compute_rank(call)
        if rank == before:
            return
        entry.rank = rank
        self._changed[call.id] = call
        for source in sources(call):
            source_entry = self._entries.get(source.id)
            if source_entry is not None and (
                rank - source_entry.producer_lead < source_entry.rank
                or source_entry.rank == before - source_entry.producer_lead
            ):
                affected[source.id] = source

    def _dependents_first(self, calls: list[Call]) -> Iterator[Call]:
        """Return the calls and their unfinished ancestors, each call after all its dependents."""
        seen: set[str] = set()
        order: list[Call] = []
        for start in calls:
            if start.id in seen:
                continue
            seen.add(start.id)
            stack = [(start, sources(start))]
            while stack:
                call, rest = stack[-1]
                source = next(rest, None)
                if source is None:
                    order.append(call)
                    stack.pop()
                elif source.id not in seen and source.id in self._entries:
                    seen.add(source.id)
                    stack.append((source, sources(source)))
        return reversed(order)

    def _count_dependents(self, call: Call) -> int:
        """Return the number of edges from the call to unfinished calls that read or follow it."""
        return sum([dependent.id in self._entries for dependent in dependents_of(call)])

    def compute_rank(self, call: Call) -> float:
        """Return the rank that follows from the call's own deadline and the ranks of its dependents."""
        entry = self._entries[call.id]
        dependents = [
            self._entries[dependent.id].rank for dependent in dependents_of(call) if dependent.id in self._entries
        ]
        return min(entry.deadline, min(dependents, default=entry.deadline_unread)) - entry.producer_lead

    def check_integrity(self) -> None:
        """Compute everything again. Raises AssertionError on any difference."""
        self._settle()
        for name, entry in self._entries.items():
            assert not entry.call.state.is_final, f"{name} has ended"
            assert entry.rank == self.compute_rank(entry.call), f"the rank of {name} is stale"
            dependents = self._count_dependents(entry.call)
            assert entry.dependents == dependents, f"{name} has {dependents} readers"
        sessions = Counter(id(entry.call.session) for entry in self._entries.values())
        assert sessions == {id: work.calls for id, work in self._sessions.items()}, "work that is not there"
        tenants = Counter(entry.call.session.tenant for entry in self._entries.values())
        assert tenants == self.fair_queue.unfinished(), "tenants that do nothing"


def deadline_extension(work: float) -> float:
    """Return the deadline extension, in seconds, of a variable that needs this many seconds of work."""
    return WORK_FACTOR * work + LONG_WORK_EXTENSION * min(1.0, max(0.0, work / SHORT_WORK - 1.0))


@dataclass(slots=True)
class _Outstanding:
    """Unfinished work of one session, in seconds, and its number of calls."""

    calls: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Entry:
    """State of an unfinished call.

    `path`: seconds of the longest path to its end. `fair_offset`: see `FairQueue.request`. `deadline_unread`: deadline
    that applies while no call reads it. `deadline`: deadline of its earliest subscriber. `dependents`: number of
    unfinished calls that read or follow it.
    """

    call: Call
    prefixes: list[PrefixKey]
    cost: Cost
    path: float
    fair_offset: float
    deadline_unread: float
    deadline: float = math.inf
    rank: float = math.inf
    dependents: int = 0

    @property
    def producer_lead(self) -> float:
        """Seconds by which the calls that it reads are due before it."""
        return PRODUCER_LEAD * self.cost.time


def _is_interactive(call: Call) -> bool:
    """Return whether a client waits for an output of the call, and for nothing else."""
    for variable in call.outputs:
        if variable.interactive_subscribers:
            return True
    return any(map(_is_interactive, call.followers))
