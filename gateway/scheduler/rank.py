"""The order of waiting work: what somebody waits for before what nobody does, then first come, first served."""

from gateway.graph.call import Call, Objective
from gateway.graph.objectives import objective

_BAND = 2.0**40
"""Arrivals within one objective's band; far more than a process will ever see."""


def rank(call: Call) -> float:
    """Lower goes first."""
    return call.arrival + (_BAND if objective(call) is Objective.THROUGHPUT else 0.0)
