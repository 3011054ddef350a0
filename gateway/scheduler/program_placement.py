"""Placement of programs: the calls of a program's main agent run on one engine, its *home*, and move together.

Pure: the caller passes the engines and the time. For calls without a program, and for calls of named sessions, the
placement of single calls (`gateway.scheduler.placement`) decides alone. For the others:

1. The first call of a program chooses the home: the engine with the lowest cost of a single call plus PROGRAM_TOKENS
   for each of its active programs. A program is active for ACTIVE_SECONDS after its last call, once a call of it has
   extended another one.
2. A call that extends another one runs at home.
3. A call that begins a conversation, as a sub-agent does, prefers the home: by the cost of single calls, the home
   counts as if it had HOME_TOKENS more of the prompt. So a program with many sub-agents uses other engines as
   well. A conversation that began on another engine is *away*: its later calls are placed by the cost of single calls.
4. If the home does not accept the call, the program moves immediately: the home is gone or draining, or has just lost
   or refused the call.
5. If the home is overloaded, the program moves. The load of an engine, in tokens, is

       RUNNING_TOKENS * open contexts + PROGRAM_TOKENS * active programs

   Let the cost of a move be the tokens of the program's largest prompt that the other engine must compute again. The
   program moves if (load of the home - load of the other engine) > cost of the move + MOVE_MARGIN. A move changes the
   difference of the two loads by at most MOVE_MARGIN. So with unchanged loads, the program never moves back. It moves
   for this reason at most once in MOVE_SECONDS.

After a move, what the earlier homes hold of the program's prompts does not count: all later calls follow.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.engines.protocol import Engine
from gateway.graph.call import Call
from gateway.scheduler.placement import CONTEXT_TOKENS, Placement, place

MAX_PROGRAMS = 10_000
"""Maximum number of programs whose homes are remembered, some 7 MB."""
MAX_MODELS = 8
"""Maximum number of models of one program that have a home."""
IDLE_SECONDS = 7_200.0
"""Time without a call after which a home is forgotten, in seconds: that of `ProgramLimits.idle_seconds`."""
ACTIVE_SECONDS = 300.0
"""Time after its last call for which a program is active, in seconds, once a call of it has extended another one."""
RUNNING_TOKENS = 64
"""Load of one open context, in prompt tokens: in each step of an answer of 64 tokens, it takes a row."""
PROGRAM_TOKENS = 4_096
"""Load of one active program, in prompt tokens: about what four turns of an agent add to its prompt. With less, engines
are idle while agents with common instructions share one. In the model of the tests, agents end as soon with half and
with twice as much, and later with a quarter."""
MOVE_MARGIN = 2 * PROGRAM_TOKENS
"""Difference of loads, in tokens, in addition to what a move costs: the hysteresis of moves."""
MAX_AWAY = 20_000
"""Maximum number of calls, the latest, that are remembered to have run away from their programs' homes."""
MOVE_SECONDS = 60.0
"""Minimum time between two moves of a program because of overload, in seconds."""
HOME_TOKENS = 8 * CONTEXT_TOKENS
"""Cached prompt tokens that the home is worth to a new conversation."""


@dataclass(eq=False, slots=True)
class _Home:
    """Engine on which a program's calls for one model run.

    `tokens`: size of the largest prompt that ran there. `moved`: time of the last move because of overload. `left`:
    engines that the program has left.
    """

    engine: str
    tokens: float = 0.0
    moved: float = float("-inf")
    left: set[str] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class _Placed:
    """Homes of a program by model, and the time of its last call. `is_active`: whether it counts as load."""

    last_call: float
    homes: dict[str, _Home] = field(default_factory=dict)
    is_active: bool = False


class ProgramPlacement:
    """Owner of the homes of programs."""

    def __init__(self, place: Placement = place) -> None:
        """`place`: placement of single calls."""
        self._place = place
        self._single: OrderedDict[str, _Placed] = OrderedDict()
        """Programs in which no call extends another one, by id, the one with the latest call last."""
        self._agents: OrderedDict[str, _Placed] = OrderedDict()
        """All other programs, in the same order."""
        self._active: OrderedDict[str, _Placed] = OrderedDict()
        """Programs of `_agents` that count as load, in the same order."""
        self._away: OrderedDict[str, None] = OrderedDict()
        """Calls that ran away from home, by the id of their place in the program, the latest last."""
        self._loads: Counter[str] = Counter()
        """Number of homes of active programs, by the engine's name."""

    def __len__(self) -> int:
        return len(self._single) + len(self._agents)

    def home(self, program: str, model: str) -> str | None:
        """Return the name of the engine on which a program runs; None if it is not known."""
        placed = self._agents.get(program) or self._single.get(program)
        home = None if placed is None else placed.homes.get(model)
        return None if home is None else home.engine

    def active_programs(self, engine: str) -> int:
        """Return the number of active programs of an engine, by its name."""
        return self._loads[engine]

    def choose(
        self,
        call: Call,
        model: str,
        engines: Sequence[Engine],
        prefix_tokens: Mapping[Engine, int],
        prompt_units: int,
        now: float,
    ) -> Engine:
        """Return the engine for a call, one of `engines`: those that are ready and accept it, at least one.

        `model`: the one that the engines run. `prefix_tokens`: see `place`. `prompt_units`: length of the prompt, in
        units of `Engine.tokens_per_unit`. `now`: clock, in seconds.
        """
        member = call.program
        if member is None or call.session.id:
            return engines[0] if len(engines) == 1 else self._place(call, engines, prefix_tokens)
        placed = self._touch(member.program_id, now, is_agent=member.parent is not None)
        by_name = {engine.name: engine for engine in engines}
        home = placed.homes.get(model)
        if home is None:
            engine = self._new_home(call, engines, prefix_tokens)
            if len(placed.homes) >= MAX_MODELS:
                self._remove_home(placed, next(iter(placed.homes)))
            home = placed.homes[model] = _Home(engine.name)
            self._loads[engine.name] += placed.is_active
        elif home.engine not in by_name:
            self._move(placed, home, self._new_home(call, engines, _without(prefix_tokens, home.left)).name)
        else:
            tokens = prompt_units * by_name[home.engine].tokens_per_unit
            home.tokens = max(home.tokens, tokens)
            if now - home.moved >= MOVE_SECONDS:
                target = self._relief(home, by_name, _without(prefix_tokens, home.left))
                if target is not None:
                    self._move(placed, home, target)
                    home.moved = now
        engine = by_name[home.engine]
        home.tokens = max(home.tokens, prompt_units * engine.tokens_per_unit)
        if len(engines) == 1 or (member.parent is not None and member.parent.id not in self._away):
            return engine
        held = {engine: prefix_tokens[engine] for engine in engines if engine in prefix_tokens}
        held = _without(held, home.left)
        if member.parent is None:
            held[engine] = held.get(engine, 0) + round(HOME_TOKENS / engine.tokens_per_unit)
        chosen = self._place(call, engines, held)
        if chosen is not engine:
            self._away[member.id] = None
            if len(self._away) > MAX_AWAY:
                self._away.popitem(last=False)
        return chosen

    def leave(self, call: Call, model: str, lost: str, engine: str) -> None:
        """Move a call's program from an engine that has lost the call, if that is its home, to the one that runs the
        call now. Both are names."""
        if call.program is None or call.session.id:
            return
        program = call.program.program_id
        placed = self._agents.get(program) or self._single.get(program)
        if placed is not None and (home := placed.homes.get(model)) is not None and home.engine == lost != engine:
            self._move(placed, home, engine)

    def forget(self, program: str) -> None:
        """Forget a program. Do nothing if it is not known."""
        placed = self._agents.pop(program, None) or self._single.pop(program, None)
        if placed is not None:
            self._deactivate(program, placed)

    def _touch(self, program: str, now: float, *, is_agent: bool) -> _Placed:
        """Return the homes of a program that has a new call, and forget old ones."""
        self._expire(now)
        placed = self._agents.get(program) or self._single.get(program)
        if placed is None:
            if len(self) >= MAX_PROGRAMS:
                larger = max(self._single, self._agents, key=len)
                self.forget(next(iter(larger)))
            placed = self._single[program] = _Placed(now)
        if is_agent and program in self._single:
            self._agents[program] = self._single.pop(program)
        placed.last_call = max(placed.last_call, now)
        if program not in self._agents:
            self._single.move_to_end(program)
            return placed
        self._agents.move_to_end(program)
        if not placed.is_active:
            placed.is_active = True
            self._active[program] = placed
            for home in placed.homes.values():
                self._loads[home.engine] += 1
        self._active.move_to_end(program)
        return placed

    def _expire(self, now: float) -> None:
        for programs in (self._single, self._agents):
            while programs and now - next(iter(programs.values())).last_call > IDLE_SECONDS:
                self.forget(next(iter(programs)))
        while self._active:
            program, placed = next(iter(self._active.items()))
            if now - placed.last_call <= ACTIVE_SECONDS:
                return
            self._deactivate(program, placed)

    def _deactivate(self, program: str, placed: _Placed) -> None:
        if placed.is_active:
            placed.is_active = False
            del self._active[program]
            for home in placed.homes.values():
                self._uncount(home.engine)

    def _uncount(self, engine: str) -> None:
        self._loads[engine] -= 1
        if not self._loads[engine]:
            del self._loads[engine]

    def _remove_home(self, placed: _Placed, model: str) -> None:
        home = placed.homes.pop(model)
        if placed.is_active:
            self._uncount(home.engine)

    def _move(self, placed: _Placed, home: _Home, engine: str) -> None:
        if placed.is_active:
            self._uncount(home.engine)
            self._loads[engine] += 1
        home.left.add(home.engine)
        home.left.discard(engine)
        home.engine, home.tokens = engine, 0.0

    def _new_home(self, call: Call, engines: Sequence[Engine], prefix_tokens: Mapping[Engine, int]) -> Engine:
        """Return the engine on which a program begins, or continues because its home is gone."""
        if len(engines) == 1:
            return engines[0]
        held = {}
        for engine in engines:
            tokens, programs = prefix_tokens.get(engine, 0), self._loads.get(engine.name, 0)
            if tokens or programs:
                held[engine] = tokens - round(PROGRAM_TOKENS * programs / engine.tokens_per_unit)
        return self._place(call, engines, held)

    def _load(self, engine: Engine) -> float:
        return RUNNING_TOKENS * engine.load + PROGRAM_TOKENS * self._loads.get(engine.name, 0)

    def _relief(self, home: _Home, engines: Mapping[str, Engine], prefix_tokens: Mapping[Engine, int]) -> str | None:
        """Return the engine to which an overloaded home's program moves; None if it stays."""
        load = self._load(engines[home.engine])
        best, most = None, 0.0
        if load <= MOVE_MARGIN:
            return None
        for name, engine in engines.items():
            if name == home.engine:
                continue
            cached = prefix_tokens.get(engine, 0) * engine.tokens_per_unit
            gain = load - self._load(engine) - max(0.0, home.tokens - cached) - MOVE_MARGIN
            if gain > most:
                best, most = name, gain
        return best


def _without(prefix_tokens: Mapping[Engine, int], names: Collection[str]) -> dict[Engine, int]:
    return {engine: tokens for engine, tokens in prefix_tokens.items() if engine.name not in names}
