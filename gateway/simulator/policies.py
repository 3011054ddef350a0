"""Policies that are compared: those of other systems, and this scheduler's."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.engines.protocol import Engine, Urgency
from gateway.graph.call import Call, Objective
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.objective import objective
from gateway.scheduler.placement import Placement, place
from gateway.scheduler.priority import Order, Priorities

_THROUGHPUT_OFFSET = 1e9


@dataclass(frozen=True)
class Policy:
    """Scheduling policy. A new instance is created for each run."""

    name: str
    priorities: Priorities
    place: Placement
    fill_ahead: bool


class _ParrotPriorities(Priorities):
    """Order of Parrot (Lin et al., OSDI'24, section 5).

    Calls that a client waits for, directly or not, go before calls for throughput. Applications go in the order of
    their arrival, and so do the calls of one application.
    """

    def urgency(self, call: Call) -> Urgency:
        """Return the urgency of a call. See `Priorities.urgency`."""
        band = _THROUGHPUT_OFFSET if objective(call) is Objective.THROUGHPUT else 0.0
        return Urgency(band + call.session.created + 1e-9 * call.arrival, interactive=True)


class _PrefixOrRoundRobin:
    """Placement on the engine that received the longest beginning of the prompt; round robin if there is none."""

    def __init__(self) -> None:
        self._turns = itertools.count()

    def __call__(self, call: Call, engines: Sequence[Engine], prefix_tokens: Mapping[Engine, int]) -> Engine:
        holder = _longest_holder(prefix_tokens)
        if holder is not None:
            return holder
        return engines[next(self._turns) % len(engines)]


def _longest_holder(prefix_tokens: Mapping[Engine, int]) -> Engine | None:
    """Return the engine that received the longest beginning, the latest one among equals."""
    maximum = max(prefix_tokens.values(), default=0)
    return next((engine for engine in reversed([*prefix_tokens]) if prefix_tokens[engine] == maximum), None)


def _idlest(call: Call, engines: Sequence[Engine], prefix_tokens: Mapping[Engine, int]) -> Engine:
    return min(engines, key=lambda engine: engine.load)


def _prefix_or_idlest(call: Call, engines: Sequence[Engine], prefix_tokens: Mapping[Engine, int]) -> Engine:
    """Return Parrot's placement: calls with a common prefix on one engine, others on the idlest one."""
    holder, idlest = _longest_holder(prefix_tokens), _idlest(call, engines, prefix_tokens)
    return holder if holder is not None and holder.load <= 2 * idlest.load + 8 else idlest


def policy(name: str) -> Policy:
    """Create one of the `POLICIES` by its name."""
    match name:
        case "fifo":
            return Policy(name, Priorities(CostModel(), Order.ARRIVAL), _idlest, fill_ahead=False)
        case "prefix":
            return Policy(name, Priorities(CostModel(), Order.ARRIVAL), _PrefixOrRoundRobin(), fill_ahead=False)
        case "parrot":
            return Policy(name, _ParrotPriorities(CostModel()), _prefix_or_idlest, fill_ahead=False)
        case "myna":
            return Policy(name, Priorities(CostModel()), place, fill_ahead=True)
    raise ValueError(f"there is no policy {name!r}")


POLICIES = ("fifo", "prefix", "parrot", "myna")
