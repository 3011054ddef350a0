"""How long the calls of a session have spent in each phase."""

import time
from collections.abc import Collection

from gateway.graph.call import Call, CallState
from gateway.graph.events import CallChanged, VariableChanged
from gateway.graph.session import Session
from gateway.graph.variable import Variable

PHASES = ("inputs", "tool", "queue", "memory", "prompt", "answer")
"""Phases of a call: waiting for values of other calls, for values that a client sets, or for a tool that it
runs, for an engine and room in its steps, for memory; prefill; decoding."""

_SPENT_ON = {
    CallState.WAITING: "inputs",
    CallState.QUEUED: "queue",
    CallState.PREFILL: "prompt",
    CallState.DECODE: "answer",
    CallState.RUNNING: "tool",
}


def time_spent(session: Session, calls: Collection[Call]) -> dict[str, dict[str, float]]:
    """Return how long each call has spent in each phase, in seconds, by the call's id."""
    spent = {call.id: dict.fromkeys(PHASES, 0.0) for call in calls}
    since: dict[str, tuple[CallState, float]] = {}
    changes, final_times = [], dict[Variable, float]()
    for event in session.event_log.events:
        match event.change:
            case CallChanged(call, state) if call.id in spent:
                changes.append((call, state, event.time))
            case VariableChanged(variable, state) if state.is_final:
                final_times[variable] = event.time
    now = time.time()
    for call, state, changed in (*changes, *((call, call.state, now) for call in calls)):
        previous, began = since.get(call.id, (state, changed))
        since[call.id] = state, changed
        if previous in _SPENT_ON:
            spent[call.id][_SPENT_ON[previous]] += max(0.0, changed - began)
    for call in calls:
        phases = spent[call.id]
        client = min(phases["inputs"], _client_wait(call, final_times, now))
        phases["inputs"] -= client
        phases["tool"] += client
        # the engine reports how long the prompt waited for a step and for memory
        phases["memory"] = min(phases["prompt"], call.times.starved)
        queued = min(phases["prompt"] - phases["memory"], call.times.held)
        phases["queue"] += queued
        phases["prompt"] -= phases["memory"] + queued
    return spent


def _client_wait(call: Call, final_times: dict[Variable, float], now: float) -> float:
    """Return for how long only values that clients set were missing, in seconds."""
    produced = client = call.times.created
    for variable in call.inputs.values():
        final = final_times.get(variable, now)
        if variable.producer is None:
            client = max(client, final)
        else:
            produced = max(produced, final)
    return max(0.0, client - produced)
