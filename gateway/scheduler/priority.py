"""The order of waiting work: for each call, by when it is to be worked on.

A reader who comes for a variable wants it by a time: now, plus the longest way through the graph to it, plus some
times all the work that it needs. What feeds it is due a little earlier, the more so the longer it takes, and so on
backwards. So within an application the longest remaining way goes first, and calls that feed one consumer go together;
between applications small ones go before large ones, and equal ones in the order in which they came; and since all are
times of one clock, whoever waits comes to the front by itself: deadlines of EDF, inherited along the graph.

No clock and no I/O: whoever calls says what time it is.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from gateway.engines.protocol import Urgency
from gateway.graph.call import Call, Objective
from gateway.graph.prefix_hash import PrefixKey, prefix_keys
from gateway.graph.variable import Variable
from gateway.scheduler.cost_model import Cost, CostModel
from gateway.scheduler.fair_queue import FairQueue
from gateway.scheduler.objective import sources
from gateway.scheduler.prefix_index import PrefixIndex

PATIENCE_SECONDS = 30.0
"""So much later is wanted what nobody waits for yet, and what somebody says there is time for."""
OUTSTANDING = 3.0
"""So many times the work that it needs, in seconds, something is wanted later. Little makes the order that of arrival
under load, since nearly everything is late then; much makes large applications wait for small ones."""
LATER = 120.0
"""So many seconds later, besides, is wanted what is not short: where more comes than can be done everything is late in
the end, and a question that takes a second must not wait behind all of it."""
SHORT = 2.0
"""Seconds of work; from here to twice as much, `LATER` comes in by degrees."""
WITHIN = 1e-6
"""Share of a call's time by which it is due before what it feeds: enough for an order in an application, and so little
that engines take all of it for one urgency. Were it all of it, the beginning of a long application would go before the
end of one that came earlier, and all would end late."""
_LOOKED_AT = 1000
"""Calls that are looked at to find how much work something needs; what needs more is taken to need all there is."""


class Order(StrEnum):
    """How waiting work is ordered."""

    NEED = "need"
    ARRIVAL = "arrival"


class Priorities:
    """Owner of the ranks of all unfinished calls; lower goes first.

    For every call

        rank = min(own wants, ranks of the unfinished calls that read it or are served by it) - WITHIN * time

    so nothing ranks behind what it feeds. Nothing that comes later than a call's own want overtakes it.

    A change of the graph notes the calls that it concerns. The next question for ranks computes these and their
    ancestors, as far as that changes any, each of them once: in time linear in the edges between them, however many
    changes there were.
    """

    def __init__(
        self, estimates: CostModel, order: Order = Order.NEED, weights: Mapping[str, float] | None = None
    ) -> None:
        """With `Order.ARRIVAL` engines are told of nothing but who came first, as other servers have it. `weights`: of
        tenants whose share is not 1."""
        self.estimates = estimates
        self._order = order
        self.prefix_index = PrefixIndex()
        self._known: dict[str, _Known] = {}
        self._sessions: dict[int, _Work] = {}
        self.shares = FairQueue(weights or {})
        self._changed: dict[str, Call] = {}
        self._stale: dict[str, Call] = {}
        """Calls whose ranks are to be computed anew: their readers, or what their clients want, have changed."""

    def add(self, call: Call, now: float) -> None:
        """A call joined the graph, behind everything it reads. May be called again."""
        if call.id in self._known or call.state.final:
            return
        prefixes = prefix_keys(call, own=False)
        cost = self.estimates.cost(call, self.prefix_index.known(prefixes, id(call.session)))
        self.prefix_index.add(prefixes, id(call.session))
        feeding = [known for source in sources(call) if (known := self._known.get(source.id)) is not None]
        path = cost.time + max([feeds.path for feeds in feeding], default=0.0)
        lead = self.shares.asked(call.session.tenant, cost.work)
        session = self._sessions.setdefault(id(call.session), _Work())
        session.calls += 1
        session.seconds += cost.work
        patience = 0.0 if call.spec.objective is Objective.LATENCY else PATIENCE_SECONDS
        unread = now + lead + patience + path + _slack(session.seconds)
        self._known[call.id] = known = _Known(call, prefixes, cost, path, lead, unread)
        self._changed[call.id] = call
        known.readers = self._count_readers(call)
        for feeds in feeding:
            if not feeds.readers:
                self._stale[feeds.call.id] = feeds.call  # wanted no more for its own sake
            feeds.readers += 1
        if feeding or known.readers:
            self._stale[call.id] = call
        else:  # it stands alone, as most do
            known.rank = unread - known.ahead
        for variable in call.outputs:
            if variable.subscribers:  # who came before the call was added
                self.wanted(variable, Objective.LATENCY if variable.latency_subscribers else Objective.THROUGHPUT, now)

    def prompt_read(self, call: Call) -> None:
        """An engine has read the call's prompt: others that begin alike have less to do."""
        self.prefix_index.read(self.prefixes(call))

    def wanted(self, variable: Variable, objective: Objective, now: float) -> None:
        """A client waits for the variable. Of calls that are yet to be added, `add` looks for itself."""
        call = variable.producer
        known = None if call is None else self._known.get(call.id)
        if call is None or known is None:
            return
        patient = objective is Objective.THROUGHPUT or call.spec.objective is Objective.THROUGHPUT
        patience = PATIENCE_SECONDS if patient else 0.0
        want = now + known.lead + patience + known.path + _slack(self._needed(call))
        if want < known.want:
            known.want = want
            self._stale[call.id] = call
        self._changed[call.id] = call  # perhaps it is watched now

    def follow(self, call: Call, leader: Call) -> None:
        """The call is served by the leader from here on, or no more."""
        known = self._known.get(leader.id)
        if known is not None:
            known.readers = self._count_readers(leader)
            self._stale[leader.id] = self._changed[leader.id] = leader

    def left(self, variable: Variable) -> None:
        """A client waits no more."""
        call = variable.producer
        if call is not None and call.id in self._known:
            self._changed[call.id] = call

    def end(self, call: Call) -> None:
        """The call has ended: what fed it is needed by the others alone."""
        known = self._known.pop(call.id, None)
        if known is None:
            return
        self._changed.pop(call.id, None)
        self.shares.done(call.session.tenant, known.cost.work)
        session = self._sessions[id(call.session)]
        session.calls -= 1
        session.seconds -= known.cost.work
        if not session.calls:
            del self._sessions[id(call.session)]
        for source in sources(call):
            feeds = self._known.get(source.id)
            if feeds is not None:
                feeds.readers -= 1
                if not feeds.readers or feeds.rank == known.rank - feeds.ahead:
                    self._stale[source.id] = source

    def urgency(self, call: Call) -> Urgency:
        """What an engine is told of it."""
        if self._order is Order.ARRIVAL:
            return Urgency(call.arrival, interactive=True)
        return Urgency(self.rank(call), _is_interactive(call))

    def rank(self, call: Call) -> float:
        """By when it is to be worked on, in seconds of the caller's clock. Of a call that has ended, 0."""
        self._settle()
        known = self._known.get(call.id)
        return 0.0 if known is None else known.rank

    def prefixes(self, call: Call) -> list[PrefixKey]:
        """Of its prompt."""
        known = self._known.get(call.id)
        return prefix_keys(call, own=False) if known is None else known.prefixes

    def changed(self) -> Iterator[Call]:
        """The calls whose urgency may have changed since this was asked before."""
        self._settle()
        changed, self._changed = self._changed, {}
        return iter(changed.values())

    def _needed(self, call: Call) -> float:
        """Seconds of unfinished work that the call waits for, its own included."""
        if not call.inputs and call.leader is None:
            return self._known[call.id].cost.work
        seconds = 0.0
        stack, seen = [call], {call.id}
        while stack:
            known = self._known.get(stack.pop().id)
            if known is None:
                continue
            if len(seen) > _LOOKED_AT:
                return self._sessions[id(call.session)].seconds
            seconds += known.cost.work
            for source in sources(known.call):
                if source.id not in seen:
                    seen.add(source.id)
                    stack.append(source)
        return seconds

    def _settle(self) -> None:
        """Compute the ranks that changes of the graph concern."""
        if not self._stale:
            return
        stale, self._stale = self._stale, {}
        affected: dict[str, Call] = {}
        for call in stale.values():
            self._update(call, affected)
        if affected:
            for call in self._readers_first(list(affected.values())):
                if call.id in affected:
                    self._update(call, affected)

    def _update(self, call: Call, affected: dict[str, Call]) -> None:
        """Compute the rank of a call. If it changes, add the sources to `affected` whose ranks change with it."""
        known = self._known.get(call.id)
        if known is None:
            return
        before, rank = known.rank, self.computed(call)
        if rank == before:
            return
        known.rank = rank
        self._changed[call.id] = call
        for source in sources(call):
            feeds = self._known.get(source.id)
            if feeds is not None and (rank - feeds.ahead < feeds.rank or feeds.rank == before - feeds.ahead):
                affected[source.id] = source

    def _readers_first(self, calls: list[Call]) -> Iterator[Call]:
        """Return the calls and their unfinished ancestors, every call after all that read it."""
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
                elif source.id not in seen and source.id in self._known:
                    seen.add(source.id)
                    stack.append((source, sources(source)))
        return reversed(order)

    def _count_readers(self, call: Call) -> int:
        """Return how many edges lead to unfinished calls that read this one."""
        return sum([reader.id in self._known for reader in _readers(call)])

    def computed(self, call: Call) -> float:
        """The rank as it follows from those of the calls that need it."""
        known = self._known[call.id]
        readers = [self._known[reader.id].rank for reader in _readers(call) if reader.id in self._known]
        return min(known.want, min(readers, default=known.unread)) - known.ahead

    def check_integrity(self) -> None:
        """Computes everything anew. Raises AssertionError on any difference."""
        self._settle()
        for name, known in self._known.items():
            assert not known.call.state.final, f"{name} has ended"
            assert known.rank == self.computed(known.call), f"the rank of {name} is not what it should be"
            readers = self._count_readers(known.call)
            assert known.readers == readers, f"{name} has {readers} readers"
        sessions = Counter(id(known.call.session) for known in self._known.values())
        assert sessions == {id: work.calls for id, work in self._sessions.items()}, "work that is not there"
        tenants = Counter(known.call.session.tenant for known in self._known.values())
        assert tenants == self.shares.unfinished(), "tenants that do nothing"


def _slack(work: float) -> float:
    """Seconds by which something may come later, that needs so many seconds of work."""
    return OUTSTANDING * work + LATER * min(1.0, max(0.0, work / SHORT - 1.0))


@dataclass(slots=True)
class _Work:
    """What is outstanding of a session."""

    calls: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Known:
    """What is known of an unfinished call. `path`: seconds of the longest way to its end. `lead`: see
    `FairQueue.asked`. `unread`: by when it is wanted as long as nothing reads it; `want`: since
    somebody waits for it. `readers`: unfinished calls that read it."""

    call: Call
    prefixes: list[PrefixKey]
    cost: Cost
    path: float
    lead: float
    unread: float
    want: float = math.inf
    rank: float = math.inf
    readers: int = 0

    @property
    def ahead(self) -> float:
        """So much before what it feeds it is due."""
        return WITHIN * self.cost.time


def _readers(call: Call) -> Iterator[Call]:
    """The calls that need what this one makes."""
    yield from call.followers
    for variable in call.outputs:
        yield from variable.consumers


def _is_interactive(call: Call) -> bool:
    """Whether a client waits for what it makes, and for nothing else."""
    for variable in call.outputs:
        if variable.interactive_subscribers:
            return True
    return any(map(_is_interactive, call.followers))
