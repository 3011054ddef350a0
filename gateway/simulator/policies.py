"""What is compared: how others order and place work, and how we do."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.engines.protocol import Engine, Urgency
from gateway.graph.call import Call, Objective
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.objective import objective
from gateway.scheduler.placement import Placement, place
from gateway.scheduler.priority import Order, Priorities

_BAND = 1e9


@dataclass(frozen=True)
class Policy:
    """One way to decide, made anew for each run."""

    name: str
    priorities: Priorities
    place: Placement
    fill_ahead: bool


class _ApplicationsFirstCome(Priorities):
    """As Parrot (Lin et al., OSDI'24, section 5) orders its queue: what a client waits for, directly or through others,
    before what is for throughput; applications in the order in which they came, and within one, calls in that order."""

    def urgency(self, call: Call) -> Urgency:
        """See `Priorities.urgency`."""
        band = _BAND if objective(call) is Objective.THROUGHPUT else 0.0
        return Urgency(band + call.session.created + 1e-9 * call.arrival, interactive=True)


class _PrefixThenTurns:
    """The engine that was given the longest beginning of the prompt; each in its turn where none was."""

    def __init__(self) -> None:
        self._turns = itertools.count()

    def __call__(self, call: Call, engines: Sequence[Engine], held: Mapping[Engine, int]) -> Engine:
        holder = _holder(held)
        if holder is not None:
            return holder
        return engines[next(self._turns) % len(engines)]


def _holder(held: Mapping[Engine, int]) -> Engine | None:
    """The engine that has most of it, the last one that was given it among equals."""
    most = max(held.values(), default=0)
    return next((engine for engine in reversed([*held]) if held[engine] == most), None)


def _idlest(call: Call, engines: Sequence[Engine], held: Mapping[Engine, int]) -> Engine:
    return min(engines, key=lambda engine: engine.load)


def _prefix_or_idlest(call: Call, engines: Sequence[Engine], held: Mapping[Engine, int]) -> Engine:
    """Parrot's: calls of one prefix together, else where there is least to do."""
    found, idlest = _holder(held), _idlest(call, engines, held)
    return found if found is not None and found.load <= 2 * idlest.load + 8 else idlest


def policy(name: str) -> Policy:
    """By one of the `POLICIES`."""
    match name:
        case "fifo":
            return Policy(name, Priorities(CostModel(), Order.ARRIVAL), _idlest, fill_ahead=False)
        case "prefix":
            return Policy(name, Priorities(CostModel(), Order.ARRIVAL), _PrefixThenTurns(), fill_ahead=False)
        case "parrot":
            return Policy(name, _ApplicationsFirstCome(CostModel()), _prefix_or_idlest, fill_ahead=False)
        case "myna":
            return Policy(name, Priorities(CostModel()), place, fill_ahead=True)
    raise ValueError(f"there is no policy {name!r}")


POLICIES = ("fifo", "prefix", "parrot", "myna")
